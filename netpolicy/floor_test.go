package netpolicy_test

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/netpolicy"
	"stillframe/netpolicy/farside"
	"stillframe/netpolicy/policy"
)

// TestFloorMoves: an address that becomes the node's or a peer's is closed to every sandbox, to flows that are open
// too, in the sandbox's rules and in the host's; one that is given up is open again.
func TestFloorMoves(t *testing.T) {
	const peer = "203.0.113.5"
	m := newManager(t)
	w := farside.New(t)
	w.EchoUDP(addrPort(peer + ":4000"))
	running(t, m)
	n := networkOf(t, m, allowAll)
	g := guestOf(t, n)
	c, err := g.Dial("udp4", peer+":4000")
	require.NoError(t, err)
	defer c.Close()
	say := func() error {
		require.NoError(t, c.SetDeadline(time.Now().Add(20*time.Second)))
		if _, err := c.Write([]byte("hello")); err != nil {
			return err
		}
		_, err := c.Read(make([]byte, 10))
		return err
	}
	require.NoError(t, say())

	floor := func(peers ...netip.Prefix) policy.Floor {
		return policy.NewFloor([]netip.Prefix{netip.PrefixFrom(farside.HostAddr, 32)}, peers,
			netpolicy.Reserved(netpolicy.DefaultPool))
	}
	require.NoError(t, m.SetFloor(floor(netip.MustParsePrefix(peer+"/32"))))
	require.Eventually(t, func() bool { return farside.Refused(say()) }, soon, 10*time.Millisecond)
	w.Reset()
	require.True(t, farside.Refused(say()))
	require.Empty(t, w.Packets())
	host := func() string {
		out, err := exec.Command("iptables-save", "-t", "filter").Output()
		require.NoError(t, err)
		return string(out)
	}
	require.Eventually(t, func() bool { return strings.Contains(host(), "-d "+peer+"/32 -i sfv+ -j REJECT") }, soon,
		10*time.Millisecond)

	later := networkOf(t, m, cidrs(peer+"/32"))
	_, err = guestOf(t, later).Ask(peer+":4000", []byte("hello"))
	require.True(t, farside.Refused(err), "a network that is made afterwards stands on it too: %v", err)

	require.NoError(t, m.SetFloor(floor()))
	require.Eventually(t, func() bool { return say() == nil }, soon, 10*time.Millisecond)
	require.Eventually(t, func() bool { return !strings.Contains(host(), peer) }, soon, 10*time.Millisecond)
	require.Error(t, m.SetFloor(policy.NewFloor(nil, nil, nil)), "a floor without the sandboxes' own addresses")
	require.NoError(t, say())
}

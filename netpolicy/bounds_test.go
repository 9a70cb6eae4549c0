package netpolicy_test

import (
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"stillframe/netpolicy"
	"stillframe/netpolicy/farside"
)

func bounded(b netpolicy.Bounds) func(*netpolicy.Config) {
	return func(c *netpolicy.Config) { c.Bounds = b }
}

// flows has a guest open n flows to where the policy allows it.
func flows(t *testing.T, g *farside.Guest, n int) {
	t.Helper()
	for i := range n {
		require.NoError(t, g.Send(farside.Frame{Dst: allowed, Payload: farside.UDP(uint16(10000+i), 4000, "x")}.Bytes()))
	}
}

func TestNewConnectionsASecondAreBounded(t *testing.T) {
	r := newRig(t, cidrs("203.0.113.0/24"), bounded(netpolicy.Bounds{NewPerSecond: 4}))
	time.Sleep(100 * time.Millisecond)
	r.w.Reset()
	began := time.Now()
	flows(t, r.g, 3000)
	time.Sleep(300 * time.Millisecond) // a moment for the guest to ask what is behind the fence
	seen := len(r.w.Packets())
	require.NotZero(t, seen)
	require.LessOrEqual(t, float64(seen), 20+10*time.Since(began).Seconds())
}

// A guest that fills its connection table loses new connections of its own: not its node, which still reaches the
// agent, not what it has open, and not its neighbours.
func TestConnectionTableIsBounded(t *testing.T) {
	const most = 4 * 25
	r := newRig(t, cidrs("203.0.113.0/24"), bounded(netpolicy.Bounds{Connections: most / 4, NewPerSecond: 5000}))
	r.w.EchoUDP(addrPort(allowed + ":4001"))
	neighbour := guestOf(t, networkOf(t, r.m, cidrs("203.0.113.0/24")))
	open, err := r.g.Dial("udp4", allowed+":4001")
	require.NoError(t, err)
	defer open.Close()
	say := func() {
		require.NoError(t, open.SetDeadline(time.Now().Add(20*time.Second)))
		_, err := open.Write([]byte("hello"))
		require.NoError(t, err)
		_, err = open.Read(make([]byte, 10))
		require.NoError(t, err)
	}
	say()
	flows(t, r.g, 4000)
	require.NoError(t, r.n.Namespace().Do(func() error {
		entries, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
		require.NoError(t, err)
		require.Greater(t, len(entries), most/2, "the test fills nothing")
		require.LessOrEqual(t, len(entries), most+1)
		return nil
	}))
	say()
	fence(t, neighbour)
	passes(t, r.w, neighbour, farside.Frame{Dst: allowed, Payload: hello()})

	var agent net.Listener
	require.NoError(t, r.g.Do(func() (err error) {
		agent, err = net.Listen("tcp4", netpolicy.GuestIP+":1031")
		return err
	}))
	defer agent.Close()
	go func() {
		if c, err := agent.Accept(); err == nil {
			_, _ = c.Write([]byte("agent"))
			_ = c.Close()
		}
	}()
	c, err := r.n.Namespace().DialContext(t.Context(), "tcp", netpolicy.GuestIP+":1031")
	require.NoError(t, err)
	defer c.Close()
	b := make([]byte, 10)
	n, err := c.Read(b)
	require.NoError(t, err)
	require.Equal(t, "agent", string(b[:n]))

	var clock net.PacketConn
	require.NoError(t, r.n.Namespace().Do(func() (err error) {
		clock, err = net.ListenPacket("udp4", netpolicy.HostIP+":123")
		return err
	}))
	defer clock.Close()
	go func() {
		if _, from, err := clock.ReadFrom(make([]byte, 10)); err == nil {
			_, _ = clock.WriteTo([]byte("clock"), from)
		}
	}()
	answer, err := r.g.Ask(netpolicy.HostIP+":123", []byte("time"))
	require.NoError(t, err)
	require.Equal(t, "clock", string(answer))
}

// The bound is on connections that are open, not on how many there have been.
func TestShortConnectionsMayFollowEachOther(t *testing.T) {
	r := newRig(t, denyAll, bounded(netpolicy.Bounds{Connections: 5, NewPerSecond: 5000}))
	for range 200 {
		c, err := r.g.Dial("tcp4", "203.0.113.5:443")
		require.NoError(t, err)
		_, err = c.Read(make([]byte, 200))
		require.NoError(t, err)
		require.NoError(t, c.Close())
	}
}

func TestBytesASecondAreBounded(t *testing.T) {
	const rate = 1 << 20
	r := newRig(t, cidrs("203.0.113.0/24"), bounded(netpolicy.Bounds{BytesPerSecond: rate}))
	within := func(bytes int, began time.Time) {
		require.NotZero(t, bytes)
		require.LessOrEqual(t, float64(bytes), rate*(1.5+1.1*time.Since(began).Seconds()), "a second's worth of burst")
	}
	t.Run("from the guest", func(t *testing.T) {
		r.w.Reset()
		began := time.Now()
		data := string(make([]byte, 1400))
		for range 12 << 10 {
			require.NoError(t, r.g.Send(farside.Frame{Dst: allowed, Payload: farside.UDP(5000, 4000, data)}.Bytes()))
		}
		time.Sleep(50 * time.Millisecond)
		bytes := 0
		for _, p := range r.w.Packets() {
			bytes += p.Size
		}
		within(bytes, began)
	})
	t.Run("to the guest", func(t *testing.T) {
		time.Sleep(1500 * time.Millisecond) // until it may say something again
		world := r.w.ListenPacket(allowed + ":4002")
		c, err := r.g.Dial("udp4", allowed+":4002")
		require.NoError(t, err)
		defer c.Close()
		_, err = c.Write([]byte("send"))
		require.NoError(t, err)
		_, from, err := world.ReadFrom(make([]byte, 10))
		require.NoError(t, err)
		r.g.Reset()
		began := time.Now()
		for range 12 << 10 {
			_, err := world.WriteTo(make([]byte, 1400), from)
			require.NoError(t, err)
		}
		time.Sleep(300 * time.Millisecond)
		bytes := 0
		for _, f := range r.g.Frames() {
			bytes += len(f)
		}
		within(bytes, began)
	})
}

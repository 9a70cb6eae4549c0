package netpolicy_test

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"stillframe/netpolicy"
	"stillframe/netpolicy/farside"
)

// soon is how long what is found and mended may take; on the fastest machine and the slowest.
const soon = 30 * time.Second

// restore gives a text to iptables-restore or the like, in the calling thread's namespace.
func restore(t *testing.T, program, text string, args ...string) {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Stdin = strings.NewReader(text)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
}

const openTables = "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n*raw\nCOMMIT\n*nat\nCOMMIT\n" +
	"*mangle\nCOMMIT\n"

// flushAll does what an operator does who wants all rules gone, in the calling thread's namespace.
func flushAll(t *testing.T) error {
	t.Helper()
	restore(t, "iptables-nft-restore", openTables)
	restore(t, "ip6tables-nft-restore", openTables)
	restore(t, "arptables-nft-restore", "*filter\n:INPUT ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n")
	return nil
}

// running has a manager look after its networks until the test ends.
func running(t *testing.T, m *netpolicy.Manager) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
	})
}

// counted reads a counter with one label.
func counted(t *testing.T, reg *prometheus.Registry, name, label string) float64 {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && (len(m.GetLabel()) == 0 || m.GetLabel()[0].GetValue() == label) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return 0
}

const driftTotal = "stillframe_netpolicy_drift_total"

func TestDriftIsMendedAndCounted(t *testing.T) {
	reg := prometheus.NewRegistry()
	r := newRig(t, cidrs("203.0.113.0/24"), func(c *netpolicy.Config) {
		c.Metrics = reg
		c.Interval = time.Hour // it must be the kernel that tells
	})
	running(t, r.m)
	link := func(name string, f func(netlink.Link) error) func() {
		return func() {
			l, err := netlink.LinkByName(name)
			require.NoError(t, err)
			require.NoError(t, f(l))
		}
	}
	for name, c := range map[string]struct {
		harm    func()
		counted []string
	}{
		"everything flushed": {func() { require.NoError(t, flushAll(t)) },
			[]string{"filter", "raw", "nat", "mangle", "ip6 filter", "ip6 raw", "arp filter"}},
		"one rule deleted": {func() {
			restore(t, "iptables-nft-restore", "*filter\n-D SF-OUT-0 1\nCOMMIT\n", "--noflush")
		}, []string{"filter"}},
		"one rule added": {func() {
			restore(t, "iptables-nft-restore", "*filter\n-I FORWARD 1 -i tap0 -j ACCEPT\nCOMMIT\n", "--noflush")
		}, []string{"filter"}},
		"a policy changed": {func() {
			restore(t, "iptables-nft-restore", "*filter\n:OUTPUT ACCEPT\nCOMMIT\n", "--noflush")
		}, []string{"filter"}},
		"a table added": {func() {
			restore(t, "iptables-nft-restore", "*security\n-A FORWARD -i tap0 -j ACCEPT\nCOMMIT\n")
		}, []string{"security"}},
		"IPv6 opened": {func() {
			restore(t, "ip6tables-nft-restore", "*nat\n-A PREROUTING -i tap0 -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n")
		}, []string{"ip6 nat"}},
		"the way out down":  {link(netpolicy.UplinkName, netlink.LinkSetDown), []string{"links"}},
		"the way out gone":  {link(netpolicy.UplinkName, netlink.LinkDel), []string{"links"}},
		"the guest cut off": {link(netpolicy.TapName, netlink.LinkSetDown), []string{"links"}},
		"no route": {func() {
			require.NoError(t, netlink.RouteDel(&netlink.Route{Dst: nil, Gw: gateway(t)}))
		}, []string{"links"}},
	} {
		t.Run(name, func(t *testing.T) {
			before := map[string]float64{}
			for _, k := range c.counted {
				before[k] = counted(t, reg, driftTotal, k)
			}
			require.NoError(t, r.n.Namespace().Do(func() error { c.harm(); return nil }))
			for _, k := range c.counted {
				require.Eventually(t, func() bool { return counted(t, reg, driftTotal, k) > before[k] }, soon,
					5*time.Millisecond, k)
			}
			fence(t, r.g)
			passes(t, r.w, r.g, farside.Frame{Dst: allowed, Payload: hello()})
			silent(t, r.w, r.g, farside.Frame{Dst: denied, Payload: hello()},
				farside.Frame{Dst: denied, Protocol: unix.IPPROTO_TCP,
					Payload: farside.TCP(netpolicy.GuestIP, denied, 5000, 443, 0x10)})
		})
	}
}

// gateway is the host's end, as the calling thread's namespace has it.
func gateway(t *testing.T) []byte {
	t.Helper()
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	require.NoError(t, err)
	for _, r := range routes {
		if r.Gw != nil {
			return r.Gw
		}
	}
	t.Fatal("no default route")
	return nil
}

func TestSettingsThatWereChangedAreMended(t *testing.T) {
	reg := prometheus.NewRegistry()
	r := newRig(t, cidrs("203.0.113.0/24"), func(c *netpolicy.Config) { c.Metrics = reg })
	running(t, r.m)
	for _, name := range []string{"ipv4/ip_forward", "ipv6/conf/all/disable_ipv6", "ipv4/conf/all/accept_source_route"} {
		before := counted(t, reg, driftTotal, "settings")
		require.NoError(t, r.n.Namespace().Do(func() error {
			b, err := os.ReadFile("/proc/sys/net/" + name)
			require.NoError(t, err)
			return os.WriteFile("/proc/sys/net/"+name, []byte{b[0] ^ 1}, 0)
		}))
		require.Eventually(t, func() bool { return counted(t, reg, driftTotal, "settings") > before }, soon,
			5*time.Millisecond, name)
	}
	fence(t, r.g)
	passes(t, r.w, r.g, farside.Frame{Dst: allowed, Payload: hello()})
}

// A guest that floods while its rules are flushed: once they are mended, which is noticed without waiting, nothing more
// gets out, and it never reached what the host's own rules refuse.
func TestRulesFlushedUnderAFlood(t *testing.T) {
	reg := prometheus.NewRegistry()
	r := newRig(t, cidrs("203.0.113.0/24"), func(c *netpolicy.Config) { c.Metrics = reg; c.Interval = time.Hour })
	running(t, r.m)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			for _, f := range []farside.Frame{
				{Dst: denied, Payload: hello()}, {Dst: "169.254.169.254", Payload: hello()},
				{Dst: denied, Protocol: unix.IPPROTO_TCP,
					Payload: farside.TCP(netpolicy.GuestIP, denied, 5000, 443, 0x02)},
			} {
				_ = r.g.Send(f.Bytes())
			}
		}
	}()
	require.NoError(t, r.n.Namespace().Do(func() error { return flushAll(t) }))
	require.Eventually(t, func() bool { return counted(t, reg, driftTotal, "filter") > 0 }, soon, time.Millisecond)
	for _, p := range r.w.Packets() {
		require.NotEqual(t, "169.254.169.254", p.Dst.Addr().String(), "refused by the host's rules")
		require.NotEqual(t, byte(unix.IPPROTO_TCP), p.Protocol, "TCP leaves the host only through the gate")
		require.Equal(t, farside.HostAddr, p.Src.Addr())
	}
	r.w.Reset()
	require.Empty(t, r.w.Packets())
	close(stop)
	<-done
	require.Empty(t, r.w.Packets())
}

package netpolicy_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"stillframe/netpolicy"
	"stillframe/netpolicy/farside"
	"stillframe/netpolicy/gate"
	"stillframe/netpolicy/policy"
)

// fakeGate answers every connection with where it was opened to, and every datagram with "dns". What decides by name is
// not this package's matter; that everything arrives here, as what it is, is.
type fakeGate struct {
	mu       sync.Mutex
	sessions []*fakeSession
}

type fakeSession struct {
	gate.Sandbox
	mu     sync.Mutex
	plans  []*policy.Plan
	cuts   int
	closed bool
}

func (g *fakeGate) Open(p gate.Sandbox) (netpolicy.Session, error) {
	s := &fakeSession{Sandbox: p, plans: []*policy.Plan{p.Plan}}
	g.mu.Lock()
	g.sessions = append(g.sessions, s)
	g.mu.Unlock()
	for _, l := range []net.Listener{p.TCP, p.DNSTCP} {
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					to, err := p.OriginalDst(c)
					_, _ = fmt.Fprintf(c, "gate of %s: %s %v\n", p.ID, to, err)
					_, _ = io.Copy(io.Discard, c)
				}()
			}
		}()
	}
	go func() {
		b := make([]byte, 2048)
		for {
			_, from, err := p.UDP.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = p.UDP.WriteTo([]byte("dns"), from)
		}
	}()
	return s, nil
}

func (s *fakeSession) Replace(p *policy.Plan) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.plans = append(s.plans, p)
	return nil
}

func (s *fakeSession) Cut() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cuts++
	return 0
}

func (s *fakeSession) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	_ = s.TCP.Close()
	_ = s.DNSTCP.Close()
	return s.UDP.Close()
}

func (s *fakeSession) Log(int) []gate.Decision { return nil }

func (s *fakeSession) Check(context.Context, string, uint16) gate.Decision { return gate.Decision{} }

func nothing(string) {}

func config() netpolicy.Config {
	return netpolicy.Config{
		Instance: "test",
		Floor: policy.NewFloor([]netip.Prefix{netip.PrefixFrom(farside.HostAddr, 32)},
			[]netip.Prefix{netip.MustParsePrefix("198.51.100.77/32")}, netpolicy.Reserved(netpolicy.DefaultPool)),
		Gate:     &fakeGate{},
		Interval: 100 * time.Millisecond,
	}
}

func newManager(t *testing.T, change ...func(*netpolicy.Config)) *netpolicy.Manager {
	t.Helper()
	cfg := config()
	cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	for _, f := range change {
		f(&cfg)
	}
	m, err := netpolicy.NewManager(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	return m
}

// networkOf makes a network that ends with the test.
func networkOf(t *testing.T, m *netpolicy.Manager, p policy.Policy) *netpolicy.Network {
	t.Helper()
	name := testName(t)
	n, err := m.Create(t.Context(), name, netpolicy.Spec{ID: name, Policy: p}, nothing)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Destroy(context.Background(), name)) })
	return n
}

func guestOf(t *testing.T, n *netpolicy.Network) *farside.Guest {
	t.Helper()
	return farside.NewGuest(t, n.Namespace().Do, netpolicy.TapName)
}

var (
	denyAll  = policy.Policy{Mode: policy.ModeDenyAll}
	allowAll = policy.Policy{Mode: policy.ModeAllowAll}
)

func cidrs(s ...string) policy.Policy { return policy.Policy{Mode: policy.ModeCustom, AllowCIDRs: s} }

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func TestTCPAndDNSArriveAtTheGate(t *testing.T) {
	m := newManager(t)
	w := farside.New(t)
	n := networkOf(t, m, denyAll)
	g := guestOf(t, n)
	for _, to := range []string{
		"203.0.113.5:443", "198.51.100.9:22", "169.254.169.254:80", "10.111.0.1:80", "8.8.8.8:853",
	} {
		c, err := g.Dial("tcp4", to)
		require.NoError(t, err, to)
		b := make([]byte, 200)
		k, err := c.Read(b)
		require.NoError(t, err)
		require.Equal(t, fmt.Sprintf("gate of %s: %s <nil>\n", n.Namespace().Name(), to), string(b[:k]))
		require.NoError(t, c.Close())
	}
	for _, to := range []string{"10.111.0.1:53", "8.8.8.8:53"} {
		answer, err := g.Ask(to, []byte("question"))
		require.NoError(t, err, to)
		require.Equal(t, "dns", string(answer))
	}
	require.Empty(t, w.Packets())
}

func TestKernelCarriesOnlyAllowedRanges(t *testing.T) {
	m := newManager(t)
	w := farside.New(t)
	for _, a := range []string{"203.0.113.5:4000", "203.0.114.5:4000", "10.1.2.3:4000"} {
		w.EchoUDP(addrPort(a))
	}
	n := networkOf(t, m, cidrs("203.0.113.0/24", "10.1.2.3/32"))
	g := guestOf(t, n)
	for _, to := range []string{"203.0.113.5:4000", "10.1.2.3:4000"} {
		answer, err := g.Ask(to, []byte("hello"))
		require.NoError(t, err, to)
		require.Equal(t, "hello", string(answer))
	}
	packets := w.Packets()
	require.Len(t, packets, 2)
	for _, p := range packets {
		require.Equal(t, farside.HostAddr, p.Src.Addr(), "masqueraded")
	}
	w.Reset()
	for _, to := range []string{"203.0.114.5:4000", "10.1.2.4:4000", "127.0.0.1:4000", "169.254.169.254:80"} {
		_, err := g.Ask(to, []byte("hello"))
		require.True(t, farside.Refused(err), "%s: %v", to, err)
	}
	require.Empty(t, w.Packets())
}

func TestReplaceStopsAnOpenFlow(t *testing.T) {
	m := newManager(t)
	w := farside.New(t)
	w.EchoUDP(addrPort("203.0.113.5:4000"))
	n := networkOf(t, m, cidrs("203.0.113.0/24"))
	g := guestOf(t, n)
	c, err := g.Dial("udp4", "203.0.113.5:4000")
	require.NoError(t, err)
	defer c.Close()
	b := make([]byte, 10)
	say := func() error {
		require.NoError(t, c.SetDeadline(time.Now().Add(20*time.Second)))
		if _, err := c.Write([]byte("hello")); err != nil {
			return err
		}
		_, err := c.Read(b)
		return err
	}
	require.NoError(t, say())
	var steps []string
	require.NoError(t, n.Replace(t.Context(), cidrs("203.0.114.0/24"), func(s string) { steps = append(steps, s) }))
	require.True(t, slices.Equal(netpolicy.ReplaceSteps, steps), steps)
	w.Reset()
	require.True(t, farside.Refused(say()), "the flow outlived its permission")
	require.Empty(t, w.Packets())
	require.NoError(t, n.Replace(t.Context(), allowAll, nothing))
	require.NoError(t, say())
}

// A daemon that starts again finds its networks as they were: what the kernel carries goes on, what the gate carries is
// refused in between and served after.
func TestTakeUpKeepsWhatTheKernelCarries(t *testing.T) {
	w := farside.New(t)
	w.EchoUDP(addrPort("203.0.113.5:4000"))
	first := newManager(t)
	name := testName(t)
	spec := netpolicy.Spec{ID: name, Policy: cidrs("203.0.113.0/24")}
	n, err := first.Create(t.Context(), name, spec, nothing)
	require.NoError(t, err)
	g := guestOf(t, n)
	c, err := g.Dial("udp4", "203.0.113.5:4000")
	require.NoError(t, err)
	defer c.Close()
	echo := func() {
		b := make([]byte, 10)
		require.NoError(t, c.SetDeadline(time.Now().Add(20*time.Second)))
		_, err := c.Write([]byte("hello"))
		require.NoError(t, err)
		_, err = c.Read(b)
		require.NoError(t, err)
	}
	echo()
	source := w.Packets()[0].Src
	require.NoError(t, first.Close())
	echo()
	_, err = g.Dial("tcp4", "203.0.113.5:443")
	require.ErrorIs(t, err, unix.ECONNREFUSED, "no daemon")
	_, err = g.Ask("8.8.8.8:53", []byte("question"))
	require.ErrorIs(t, err, unix.ECONNREFUSED, "no daemon")

	second := newManager(t)
	_, err = second.TakeUp(t.Context(), name, spec)
	require.NoError(t, err)
	echo()
	for _, p := range w.Packets() {
		require.Equal(t, source, p.Src, "the connection's entry was kept")
	}
	tcp, err := g.Dial("tcp4", "203.0.113.5:443")
	require.NoError(t, err)
	require.NoError(t, tcp.Close())
	_, err = second.Create(t.Context(), name, spec, nothing)
	require.ErrorIs(t, err, netpolicy.ErrInUse)
	_, err = second.TakeUp(t.Context(), testName(t), spec)
	require.ErrorIs(t, err, netpolicy.ErrNotFound)
}

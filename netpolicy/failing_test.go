package netpolicy_test

import (
	"errors"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"stillframe/netpolicy"
	"stillframe/netpolicy/farside"
	"stillframe/netpolicy/gate"
	"stillframe/netpolicy/policy"
)

// liars are programs in the place of iptables-restore: one fails, the other says that all is well and does nothing.
var liars = []string{"/bin/false", "/bin/true"}

// breakable gives a function that has another program take the place of iptables-restore; with "" itself again.
func breakable(t *testing.T, m *netpolicy.Manager) func(program string) {
	t.Helper()
	lead, itself, err := m.RestoreFrom(t.TempDir())
	require.NoError(t, err)
	return func(program string) {
		if program == "" {
			program = itself
		}
		require.NoError(t, lead(program))
	}
}

func TestCreateThatFailsLeavesNothing(t *testing.T) {
	fails := func(t *testing.T, m *netpolicy.Manager, p policy.Policy) {
		name := testName(t)
		_, err := m.Create(t.Context(), name, netpolicy.Spec{ID: name, Policy: p}, nothing)
		require.Error(t, err)
		_, err = netpolicy.Open(name)
		require.ErrorIs(t, err, netpolicy.ErrNotFound)
		_, known := m.Network(name)
		require.False(t, known)
		require.Eventually(t, func() bool { return uplinks(t) == 0 }, soon, time.Millisecond)
	}
	for _, program := range liars {
		t.Run(program, func(t *testing.T) {
			m := newManager(t)
			breakable(t, m)(program)
			fails(t, m, denyAll)
			fails(t, m, cidrs("203.0.113.0/24"))
		})
	}
	t.Run("no gate", func(t *testing.T) {
		broken := errors.New("broken")
		gate := &brokenGate{err: broken}
		m := newManager(t, func(c *netpolicy.Config) { c.Gate = gate })
		fails(t, m, denyAll)
		_, err := gate.given.TCP.Accept()
		require.Error(t, err, "the sockets are closed")
	})
	t.Run("no policy", func(t *testing.T) { fails(t, newManager(t), policy.Policy{Mode: "maybe"}) })
}

type brokenGate struct {
	err   error
	given gate.Sandbox
}

func (g *brokenGate) Open(p gate.Sandbox) (netpolicy.Session, error) {
	g.given = p
	return nil, g.err
}

func TestReplaceThatFailsCutsOff(t *testing.T) {
	changes := map[string][2]policy.Policy{
		"tighten": {cidrs("203.0.113.0/24", "198.51.100.0/24"), cidrs("203.0.113.0/24")},
		"loosen":  {cidrs("203.0.113.0/24"), cidrs("203.0.113.0/24", "198.51.100.0/24")},
		"both":    {cidrs("203.0.113.0/24"), cidrs("198.51.100.0/24")},
		"deny":    {cidrs("203.0.113.0/24"), denyAll},
	}
	for name, c := range changes {
		for _, program := range liars {
			t.Run(name+" "+program, func(t *testing.T) {
				gate := &fakeGate{}
				r := newRig(t, c[0], func(c *netpolicy.Config) { c.Gate = gate })
				passes(t, r.w, r.g, farside.Frame{Dst: allowed, Payload: hello()})
				lead := breakable(t, r.m)
				lead(program)
				require.ErrorIs(t, r.n.Replace(t.Context(), c[1], nothing), netpolicy.ErrCutOff)
				s := gate.sessions[0]
				require.Nil(t, s.plans[len(s.plans)-1], "the gate denies everything too")
				require.Positive(t, s.cuts)
				silent(t, r.w, r.g, farside.Frame{Dst: allowed, Payload: hello()}, farside.Frame{Dst: denied, Payload: hello()})

				// It stays that way when the tools work again, until a policy can be put in force.
				lead("")
				running(t, r.m)
				time.Sleep(300 * time.Millisecond) // several looks
				silent(t, r.w, r.g, farside.Frame{Dst: allowed, Payload: hello()}, farside.Frame{Dst: denied, Payload: hello()})
				require.NoError(t, r.n.Replace(t.Context(), cidrs("203.0.113.0/24"), nothing))
				passes(t, r.w, r.g, farside.Frame{Dst: allowed, Payload: hello()})
			})
		}
	}
	t.Run("no policy", func(t *testing.T) {
		r := newRig(t, cidrs("203.0.113.0/24"))
		err := r.n.Replace(t.Context(), policy.Policy{Mode: "maybe"}, nothing)
		require.Error(t, err)
		require.NotErrorIs(t, err, netpolicy.ErrCutOff)
		passes(t, r.w, r.g, farside.Frame{Dst: allowed, Payload: hello()})
	})
}

func TestWhatCannotBeMendedIsCutOff(t *testing.T) {
	for _, program := range liars {
		t.Run(program, func(t *testing.T) {
			reg := prometheus.NewRegistry()
			r := newRig(t, cidrs("203.0.113.0/24"), func(c *netpolicy.Config) { c.Metrics = reg })
			lead := breakable(t, r.m)
			lead(program)
			running(t, r.m)
			require.NoError(t, r.n.Namespace().Do(func() error {
				restore(t, "iptables-nft-restore", "*filter\n-I FORWARD 1 -i tap0 -j ACCEPT\nCOMMIT\n", "--noflush")
				return nil
			}))
			require.Eventually(t, func() bool {
				return counted(t, reg, "stillframe_netpolicy_sealed_total", "") > 0
			}, soon, time.Millisecond)
			silent(t, r.w, r.g, farside.Frame{Dst: allowed, Payload: hello()}, farside.Frame{Dst: denied, Payload: hello()})
			lead("")
			require.Eventually(t, func() bool { return up(t, r.n) }, soon, time.Millisecond, "it is tried again")
			passes(t, r.w, r.g, farside.Frame{Dst: allowed, Payload: hello()})
			silent(t, r.w, r.g, farside.Frame{Dst: denied, Payload: hello()})
		})
	}
}

// up tells whether the way to the host is.
func up(t *testing.T, n *netpolicy.Network) (is bool) {
	t.Helper()
	require.NoError(t, n.Namespace().Do(func() error {
		link, err := netlink.LinkByName(netpolicy.UplinkName)
		require.NoError(t, err)
		is = link.Attrs().OperState == netlink.OperUp
		return nil
	}))
	return is
}

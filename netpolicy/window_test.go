package netpolicy_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"stillframe/netpolicy"
	"stillframe/netpolicy/farside"
)

// flood has a guest send without end, until the function that it gives is called.
func flood(g *farside.Guest, frames ...farside.Frame) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		for ctx.Err() == nil {
			for _, f := range frames {
				_ = g.Send(f.Bytes()) // a link that is down takes nothing
			}
		}
	})
	return func() { cancel(); done.Wait() }
}

// A guest that is there before its network is complete, and floods: it gets nothing out that the policy denies.
func TestNoWindowWhileANetworkIsMade(t *testing.T) {
	for name, ready := range map[string]int{"made": 0, "ready": 2} {
		t.Run(name, func(t *testing.T) {
			w := farside.New(t)
			m := newManager(t, func(c *netpolicy.Config) { c.Ready = ready })
			if ready > 0 {
				running(t, m)
			}
			early := 0
			for range 20 {
				if floodsWhileMade(t, w, m) {
					early++
				}
			}
			require.NotZero(t, early, "the guest was never there before its network")
		})
	}
}

// floodsWhileMade makes a network and has a guest there as soon as it has a name; it tells whether that was before it
// was complete.
func floodsWhileMade(t *testing.T, w *farside.World, m *netpolicy.Manager) (early bool) {
	t.Helper()
	name := testName(t)
	var finished atomic.Bool
	made := make(chan error, 1)
	go func() {
		spec := netpolicy.Spec{ID: name, Policy: cidrs("203.0.113.0/24")}
		_, err := m.Create(context.Background(), name, spec, nothing)
		finished.Store(true)
		made <- err
	}()
	var ns *netpolicy.Namespace
	for ns == nil && !finished.Load() {
		ns, _ = netpolicy.Open(name)
	}
	if ns == nil {
		require.NoError(t, <-made)
	}
	g := farside.NewGuest(t, ns.Do, netpolicy.TapName)
	defer g.Close()
	early = !finished.Load()
	stop := flood(g, farside.Frame{Dst: denied, Payload: hello()},
		farside.Frame{Src: "100.126.0.1", Dst: denied, Payload: hello()},
		farside.Frame{Dst: denied, Protocol: unix.IPPROTO_ICMP, Payload: farside.Echo("x")})
	err := <-made
	stop()
	require.NoError(t, err)
	fence(t, g)
	require.Empty(t, w.Packets())
	passes(t, w, g, farside.Frame{Dst: allowed, Payload: hello()})
	w.Reset()
	require.NoError(t, m.Destroy(t.Context(), name))
	return early
}

// A guest that floods while its policy is tightened: from the instant that Replace has returned, not one packet.
func TestNoWindowAfterTightening(t *testing.T) {
	r := newRig(t, cidrs("203.0.113.0/24", "198.51.100.0/24"))
	stop := flood(r.g, farside.Frame{Dst: denied, Payload: hello()},
		farside.Frame{Dst: denied, Protocol: unix.IPPROTO_ICMP, Payload: farside.Echo("x")})
	defer stop()
	for range 20 {
		require.NoError(t, r.n.Replace(t.Context(), cidrs("203.0.113.0/24", "198.51.100.0/24"), nothing))
		r.w.Reset()
		require.Eventually(t, func() bool { return len(r.w.Packets()) > 0 }, soon, 1, "nothing floods")
		require.NoError(t, r.n.Replace(t.Context(), cidrs("203.0.113.0/24"), nothing))
		r.w.Reset()
		fence(t, r.g)
		require.Empty(t, r.w.Packets())
	}
}

// A sandbox that was made before there were policies has a guest and no rules. It gets them under its feet.
func TestTakeUpOfANamespaceWithoutRules(t *testing.T) {
	w := farside.New(t)
	ns := create(t)
	g := farside.NewGuest(t, ns.Do, netpolicy.TapName)
	stop := flood(g, farside.Frame{Dst: denied, Payload: hello()})
	defer stop()
	m := newManager(t)
	n, err := m.TakeUp(t.Context(), ns.Name(), netpolicy.Spec{ID: "old", Policy: cidrs("203.0.113.0/24")})
	require.NoError(t, err)
	require.Equal(t, ns.Name(), n.Namespace().Name())
	fence(t, g)
	require.Empty(t, w.Packets())
	stop()
	passes(t, w, g, farside.Frame{Dst: allowed, Payload: hello()})
}

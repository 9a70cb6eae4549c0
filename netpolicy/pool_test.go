package netpolicy_test

import (
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"stillframe/netpolicy"
	"stillframe/netpolicy/farside"
	"stillframe/netpolicy/policy"
)

func readyNames(t *testing.T) []string {
	t.Helper()
	names, err := netpolicy.List("sfpool-test-")
	require.NoError(t, err)
	return names
}

func TestNamespacesAreKeptReadyAndClosed(t *testing.T) {
	reg := prometheus.NewRegistry()
	w := farside.New(t)
	m := newManager(t, func(c *netpolicy.Config) { c.Ready = 3; c.Metrics = reg })
	running(t, m)
	filled := func() bool { return counted(t, reg, "stillframe_netpolicy_ready_namespaces", "") == 3 }
	require.Eventually(t, filled, soon, time.Millisecond)
	names := readyNames(t)
	require.Len(t, names, 3)
	for _, name := range names {
		leaks(t, w, name)
	}
	first, err := netpolicy.Open(names[0])
	require.NoError(t, err)
	node := inode(t, first)
	n := networkOf(t, m, cidrs("203.0.113.0/24"))
	require.Equal(t, node, inode(t, n.Namespace()), "it is the one that was ready")
	require.InDelta(t, 1, counted(t, reg, "stillframe_netpolicy_namespaces_taken_total", "ready"), 0)
	require.False(t, slices.Contains(readyNames(t), names[0]), "it has one name")
	g := guestOf(t, n)
	fence(t, g)
	passes(t, w, g, farside.Frame{Dst: allowed, Payload: hello()})
	silent(t, w, g, farside.Frame{Dst: denied, Payload: hello()})
	require.Eventually(t, filled, soon, time.Millisecond, "another is made in its place")
}

// What was done to a namespace while it was ready is found before a sandbox has it.
func TestReadyNamespaceThatWasChanged(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := newManager(t, func(c *netpolicy.Config) { c.Ready = 1; c.Metrics = reg })
	running(t, m)
	require.Eventually(t, func() bool { return counted(t, reg, "stillframe_netpolicy_ready_namespaces", "") == 1 },
		soon, time.Millisecond)
	ns, err := netpolicy.Open(readyNames(t)[0])
	require.NoError(t, err)
	require.NoError(t, ns.Do(func() error { return flushAll(t) }))
	node := inode(t, ns)
	w := farside.New(t)
	n := networkOf(t, m, denyAll)
	require.NotEqual(t, node, inode(t, n.Namespace()), "another is made")
	require.InDelta(t, 1, counted(t, reg, driftTotal, "ready"), 0)
	g := guestOf(t, n)
	fence(t, g)
	silent(t, w, g, farside.Frame{Dst: denied, Payload: hello()})
}

func TestNodesOfOneMachineLeaveEachOtherAlone(t *testing.T) {
	w := farside.New(t)
	one := newManager(t, func(c *netpolicy.Config) { c.Instance = "one"; c.Ready = 2 })
	running(t, one)
	require.Eventually(t, func() bool { names, _ := netpolicy.List("sfpool-one-"); return len(names) == 2 }, soon,
		time.Millisecond)
	two := newManager(t, func(c *netpolicy.Config) { c.Instance = "two" })
	names, err := netpolicy.List("sfpool-one-")
	require.NoError(t, err)
	require.Len(t, names, 2, "another node's were swept")
	for _, m := range []*netpolicy.Manager{one, two, one, two} {
		g := guestOf(t, networkOf(t, m, cidrs("203.0.113.0/24")))
		fence(t, g)
		passes(t, w, g, farside.Frame{Dst: allowed, Payload: hello()})
	}
}

// Many at once get different addresses, and the pool's end is an error and no collision.
func TestPairsDoNotCollide(t *testing.T) {
	var networks sync.Map
	m := newManager(t, func(c *netpolicy.Config) {
		c.Pool = mustPrefix("100.127.0.0/28") // eight pairs
		c.Floor = policy.NewFloor(nil, nil, netpolicy.Reserved(c.Pool))
	})
	var all sync.WaitGroup
	for i := range 8 {
		name := testName(t)
		all.Go(func() {
			n, err := m.Create(t.Context(), name, netpolicy.Spec{ID: name, Policy: denyAll}, nothing)
			if err == nil {
				networks.Store(i, n)
			}
		})
	}
	all.Wait()
	seen := map[string]bool{}
	networks.Range(func(_, n any) bool {
		require.NoError(t, n.(*netpolicy.Network).Namespace().Do(func() error {
			seen[string(gateway(t))] = true
			return nil
		}))
		return true
	})
	require.Len(t, seen, 8)
	name := testName(t)
	_, err := m.Create(t.Context(), name, netpolicy.Spec{ID: name, Policy: denyAll}, nothing)
	require.ErrorContains(t, err, "used up")
	n, _ := networks.Load(3)
	require.NoError(t, m.Destroy(t.Context(), n.(*netpolicy.Network).Namespace().Name()))
	networkOf(t, m, denyAll)
}

func TestManagerRefusesWhatCannotBeRight(t *testing.T) {
	for name, change := range map[string]func(*netpolicy.Config){
		"no instance":                  func(c *netpolicy.Config) { c.Instance = "" },
		"a long instance":              func(c *netpolicy.Config) { c.Instance = "ninechars" },
		"no gate":                      func(c *netpolicy.Config) { c.Gate = nil },
		"a floor without the pool":     func(c *netpolicy.Config) { c.Floor = policy.Floor{} },
		"a pool that is none":          func(c *netpolicy.Config) { c.Pool = mustPrefix("100.126.0.0/31") },
		"a pool that is not on floors": func(c *netpolicy.Config) { c.Pool = mustPrefix("100.120.0.0/16") },
	} {
		cfg := config()
		change(&cfg)
		_, err := netpolicy.NewManager(cfg)
		require.Error(t, err, name)
	}
}

func save(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("iptables-nft-save").Output()
	require.NoError(t, err)
	return string(out)
}

// A network that is gone leaves nothing open in this process, which would keep its namespace in the kernel.
func TestNothingIsHeldOfWhatIsGone(t *testing.T) {
	m := newManager(t)
	open := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(entries)
	}
	name := testName(t)
	once := func() {
		n, err := m.Create(t.Context(), name, netpolicy.Spec{ID: name, Policy: cidrs("203.0.113.0/24")}, nothing)
		require.NoError(t, err)
		require.NoError(t, n.Replace(t.Context(), denyAll, nothing))
		require.NoError(t, m.Destroy(t.Context(), name))
		_, err = n.Namespace().DialContext(t.Context(), "udp", netpolicy.GuestIP+":1")
		require.ErrorIs(t, err, netpolicy.ErrNotFound)
		require.ErrorIs(t, n.Replace(t.Context(), denyAll, nothing), netpolicy.ErrNotFound)
	}
	once()
	before := open()
	for range 10 {
		once()
	}
	require.Eventually(t, func() bool { return open() <= before }, soon, time.Millisecond, "%d were open", before)
}

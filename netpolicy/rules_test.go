package netpolicy

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"stillframe/netpolicy/policy"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

func testFloor(t *testing.T) policy.Floor {
	t.Helper()
	own := []netip.Prefix{netip.MustParsePrefix("198.51.100.1/32")}
	peers := []netip.Prefix{netip.MustParsePrefix("198.51.100.2/32"), netip.MustParsePrefix("10.9.0.3/32")}
	f, err := policy.NewFloor(own, peers, Reserved(DefaultPool)).OpenPrivate(netip.MustParsePrefix("10.20.0.0/16"))
	require.NoError(t, err)
	return f
}

func compiled(t *testing.T, mode string, cidrs ...string) *policy.Plan {
	t.Helper()
	p, err := policy.Compile(policy.Policy{Mode: mode, AllowCIDRs: cidrs})
	require.NoError(t, err)
	return p
}

// ruleCases are the sets of rules that have a golden file.
func ruleCases(t *testing.T) map[string]struct {
	bounds   Bounds
	policies []forwarding
} {
	floor := testFloor(t)
	of := func(mode string, cidrs ...string) forwarding { return forwardingOf(compiled(t, mode, cidrs...), floor) }
	return map[string]struct {
		bounds   Bounds
		policies []forwarding
	}{
		"deny-all":  {Bounds{}, []forwarding{of(policy.ModeDenyAll)}},
		"allow-all": {Bounds{}, []forwarding{of(policy.ModeAllowAll)}},
		"custom-names-only": {Bounds{}, []forwarding{
			forwardingOf(compiled(t, policy.ModeCustom), floor)}},
		"custom": {Bounds{}, []forwarding{
			of(policy.ModeCustom, "203.0.113.0/24", "198.51.100.0/24", "10.1.2.3/32")}},
		"custom-everything": {Bounds{}, []forwarding{of(policy.ModeCustom, "0.0.0.0/0")}},
		"replacing": {Bounds{}, []forwarding{
			of(policy.ModeCustom, "203.0.113.0/24"), of(policy.ModeCustom, "198.51.100.0/24")}},
		"bounded": {Bounds{Connections: 100, NewPerSecond: 3000, BytesPerSecond: 10_000_000},
			[]forwarding{of(policy.ModeDenyAll)}},
	}
}

func TestRulesAreGolden(t *testing.T) {
	for name, c := range ruleCases(t) {
		t.Run(name, func(t *testing.T) {
			b := c.bounds.orDefault()
			got := filterTable(b, c.policies...) + fixedTables(b)
			file := filepath.Join("testdata", name+".rules")
			if *rewrite {
				require.NoError(t, os.WriteFile(file, []byte(got), 0o644))
			}
			want, err := os.ReadFile(file)
			require.NoError(t, err)
			require.Equal(t, string(want), got, "-rewrite writes it anew")
		})
	}
}

// What iptables-save prints is, but for counters, what iptables-restore was given: else comparing would be in vain.
func TestRulesReadBackAsWritten(t *testing.T) {
	tools, err := findTools(t.Context())
	require.NoError(t, err)
	for name, c := range ruleCases(t) {
		t.Run(name, func(t *testing.T) {
			k := kernel{tools: tools, bounds: c.bounds.orDefault()}
			inNamespace(t, func(ctx context.Context) {
				require.NoError(t, k.restoreAll(ctx, c.policies))
				have, _, err := readStable(ctx, k.readAll)
				require.NoError(t, err)
				want := k.meant(c.policies)
				for _, table := range have.diff(want) {
					t.Error(have.explain(table, want))
				}
				// And a difference is seen.
				_, err = run(ctx, tools.restore, "*filter\n-A OUTPUT -o up0 -j ACCEPT\nCOMMIT\n", "--noflush")
				require.NoError(t, err)
				have, _, err = readStable(ctx, k.readAll)
				require.NoError(t, err)
				require.Equal(t, []string{"filter"}, have.diff(want))
			})
		})
	}
}

func TestByteRatesReadBack(t *testing.T) {
	tools, err := findTools(t.Context())
	require.NoError(t, err)
	inNamespace(t, func(ctx context.Context) {
		for _, rate := range []int{
			1, 1024, 16000, 1 << 20, 1_500_000, 10_000_000, 100 << 20, 125_000_000, 1_250_000_000, 9e9,
		} {
			k := kernel{tools: tools, bounds: Bounds{BytesPerSecond: rate}.orDefault()}
			require.NoError(t, k.restoreAll(ctx, nil))
			have, _, err := readStable(ctx, k.readAll)
			require.NoError(t, err)
			require.Empty(t, have.diff(k.meant(nil)), rate)
			k.bounds.BytesPerSecond /= 2
			if rate > 2048 {
				require.Equal(t, []string{"raw"}, have.diff(k.meant(nil)), rate)
			}
		}
	})
}

// inNamespace calls f on a thread in a namespace of its own that ends with it.
func inNamespace(t *testing.T, f func(context.Context)) {
	t.Helper()
	ns, err := Create(t.Context(), fmt.Sprintf("sfnettest-in-%d", os.Getpid()))
	require.NoError(t, err)
	defer func() { require.NoError(t, Destroy(context.Background(), ns.name)) }()
	require.NoError(t, ns.Do(func() error { f(t.Context()); return nil }))
}

// randomPlan draws a policy whose ranges meet each other and the floor.
func randomPlan(t *testing.T, r *rand.Rand) *policy.Plan {
	switch r.IntN(6) {
	case 0:
		return compiled(t, policy.ModeAllowAll)
	case 1:
		return compiled(t, policy.ModeDenyAll)
	}
	var cidrs []string
	for range 1 + r.IntN(6) {
		p, err := randomAddr(r).Prefix(r.IntN(33))
		require.NoError(t, err)
		cidrs = append(cidrs, p.String())
	}
	return compiled(t, policy.ModeCustom, cidrs...)
}

// randomAddr draws an address from where something may be decided.
func randomAddr(r *rand.Rand) netip.Addr {
	near := []string{
		"198.51.100.1", "198.51.100.2", "10.9.0.3", "10.20.0.0", "10.111.0.1", "100.126.3.4", "169.254.169.254",
		"127.0.0.1", "203.0.113.5", "0.0.0.0", "255.255.255.255", "224.0.0.1", "172.16.9.9", "192.168.0.1",
	}
	b := netip.MustParseAddr(near[r.IntN(len(near))]).As4()
	for range r.IntN(3) {
		b[r.IntN(4)] ^= 1 << r.IntN(8)
	}
	return netip.AddrFrom4(b)
}

// The kernel carries exactly what the plan reaches by address: it and the gate cannot disagree.
func TestForwardingAgreesWithThePlan(t *testing.T) {
	floor := testFloor(t)
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 1))
		plan := randomPlan(t, r)
		f := forwardingOf(plan, floor)
		for range 30 {
			a := randomAddr(r)
			_, want := plan.Reach(floor, a)
			require.Equal(t, want, f.allows(a), "seed %d: %s of\n%s", seed, a, plan)
		}
	}
}

// A node's own addresses are those of its ends of the pairs too. They make no rules, or every sandbox would change
// those of all others at the next start.
func TestFloorRangesThatLieInOthersMakeNoRules(t *testing.T) {
	var own []netip.Prefix
	for i := range byte(200) {
		own = append(own, netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 126, 0, i}), 32))
	}
	peers := []netip.Prefix{netip.MustParsePrefix("198.51.100.2/32"), netip.MustParsePrefix("198.51.100.2/32")}
	plain, full := policy.NewFloor(nil, peers, Reserved(DefaultPool)), policy.NewFloor(own, peers, Reserved(DefaultPool))
	for _, plan := range []*policy.Plan{
		compiled(t, policy.ModeAllowAll), compiled(t, policy.ModeCustom, "100.64.0.0/10"),
	} {
		require.Equal(t, forwardingOf(plan, plain), forwardingOf(plan, full))
	}
}

// within may say no where it is yes, never the other way round: then Replace would open too early.
func TestWithinIsNeverWrong(t *testing.T) {
	floor := testFloor(t)
	yes := 0
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 2))
		f, g := forwardingOf(randomPlan(t, r), floor), forwardingOf(randomPlan(t, r), floor)
		if !f.within(g) {
			continue
		}
		yes++
		for range 300 {
			a := randomAddr(r)
			require.False(t, f.allows(a) && !g.allows(a), "seed %d: %s", seed, a)
		}
	}
	require.Greater(t, yes, 500, "it says no to everything")
}

func TestWithinSeesPlainCases(t *testing.T) {
	floor := testFloor(t)
	of := func(mode string, cidrs ...string) forwarding { return forwardingOf(compiled(t, mode, cidrs...), floor) }
	all, none := of(policy.ModeAllowAll), of(policy.ModeDenyAll)
	one, two := of(policy.ModeCustom, "203.0.113.0/24"), of(policy.ModeCustom, "203.0.113.0/24", "198.51.100.0/24")
	for i, c := range []struct {
		f, g forwarding
		want bool
	}{
		{none, all, true}, {none, none, true}, {one, all, true}, {one, two, true}, {all, all, true},
		{all, none, false}, {two, one, false}, {all, two, false}, {one, none, false}, {two, all, true},
		{of(policy.ModeCustom, "10.0.0.0/8"), all, false}, {all, of(policy.ModeCustom, "0.0.0.0/0"), true},
		{of(policy.ModeCustom, "0.0.0.0/0"), all, false}, {of(policy.ModeCustom, "10.20.1.0/24"), all, true},
	} {
		require.Equal(t, c.want, c.f.within(c.g), "case %d", i)
	}
}

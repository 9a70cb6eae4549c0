package netpolicy_test

import (
	"context"
	"fmt"
	"log/slog"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stillframe/netpolicy"
	"stillframe/netpolicy/policy"
)

// Figures for whoever changes this package; those that count are made by stillframe-bench.

func benchPolicy() policy.Policy {
	var ranges []string
	for i := range 10 {
		ranges = append(ranges, fmt.Sprintf("203.0.%d.0/24", i))
	}
	return cidrs(ranges...)
}

func benchManager(b *testing.B, ready int) *netpolicy.Manager {
	cfg := config()
	cfg.Ready = ready
	cfg.Logger = slog.New(slog.DiscardHandler)
	m, err := netpolicy.NewManager(cfg)
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, m.Close()) })
	return m
}

func BenchmarkCreate(b *testing.B) {
	for name, p := range map[string]policy.Policy{"names": denyAll, "ranges": benchPolicy()} {
		for _, ready := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/ready=%v", name, ready), func(b *testing.B) {
				m := benchManager(b, 1)
				for i := range b.N {
					b.StopTimer()
					if ready {
						require.NoError(b, m.Fill(b.Context()))
					}
					id := fmt.Sprintf("sfbench-%d", i)
					b.StartTimer()
					_, err := m.Create(b.Context(), id, netpolicy.Spec{ID: id, Policy: p}, nothing)
					b.StopTimer()
					require.NoError(b, err)
					require.NoError(b, m.Destroy(b.Context(), id))
					b.StartTimer()
				}
			})
		}
	}
}

func BenchmarkBareRestore(b *testing.B) {
	rules := netpolicy.RulesText(benchPolicy())
	for range b.N {
		b.StopTimer()
		ns, err := netpolicy.Create(b.Context(), "sfbench-bare")
		require.NoError(b, err)
		require.NoError(b, ns.Do(func() error {
			cmd := exec.Command("iptables-nft-restore")
			cmd.Stdin = strings.NewReader(rules)
			b.StartTimer()
			defer b.StopTimer()
			return cmd.Run()
		}))
		require.NoError(b, netpolicy.Destroy(b.Context(), ns.Name()))
		b.StartTimer()
	}
}

func BenchmarkLook(b *testing.B) {
	m := benchManager(b, 0)
	for i := range 100 {
		id := fmt.Sprintf("sfbench-%d", i)
		_, err := m.Create(b.Context(), id, netpolicy.Spec{ID: id, Policy: benchPolicy()}, nothing)
		require.NoError(b, err)
		b.Cleanup(func() { require.NoError(b, netpolicy.Destroy(context.Background(), id)) })
	}
	for b.Loop() {
		m.Look(b.Context())
	}
}

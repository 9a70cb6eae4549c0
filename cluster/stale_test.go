package cluster

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/fsm"
)

// TestStateAsOfIsHonest writes through one node and looks at the stale states of all: each has everything that was
// acknowledged before the instant that it tells.
func TestStateAsOfIsHonest(t *testing.T) {
	c := startTrio(t, func(cfg *Config) {
		steady(cfg)
		cfg.FreshInterval = 2 * time.Millisecond
	})
	l, f := c.followers()
	type acked struct {
		id fsm.OrgID
		at time.Time
	}
	var (
		mu      sync.Mutex
		written []acked
		work    sync.WaitGroup
	)
	ctx, cancel := context.WithCancel(t.Context())
	work.Go(func() {
		defer cancel()
		for k := range 150 {
			cmd := putOrg(fmt.Sprint("org", k))
			if _, err := c.nodes[f[0]].Apply(deadline(t), cmd); !assertNoError(t, err) {
				return
			}
			mu.Lock()
			written = append(written, acked{cmd.Org.ID, time.Now()})
			mu.Unlock()
		}
	})
	looks := make([]int, 3)
	for i, n := range c.nodes {
		work.Go(func() {
			for ; ctx.Err() == nil; time.Sleep(time.Millisecond) {
				state, _, asOf := n.StateAsOf()
				mu.Lock()
				done := written
				mu.Unlock()
				for _, w := range done {
					if _, there := state.Org(w.id); !there && w.at.Before(asOf) {
						t.Errorf("%s was acknowledged at %v and is not in node %d's state as of %v", w.id, w.at, i, asOf)
						return
					}
				}
				if len(done) > 0 && asOf.After(done[0].at) {
					looks[i]++
				}
			}
		})
	}
	work.Wait()
	for i, n := range looks {
		require.Positive(t, n, "node %d (the leader is %d) never told an instant after the first write", i, l)
	}
}

// TestStateAsOfStandsStill cuts a node's majority off: its state is still there, and its instant does not move on.
func TestStateAsOfStandsStill(t *testing.T) {
	c := startTrio(t, func(cfg *Config) { cfg.FreshInterval = 5 * time.Millisecond })
	l, f := c.followers()
	left := c.nodes[f[0]]
	apply(t, c.nodes[l], putOrg("before"))
	wrote := time.Now()
	require.Eventually(t, func() bool {
		_, _, asOf := left.StateAsOf()
		return asOf.After(wrote)
	}, time.Minute, time.Millisecond)
	c.stop(f[1])
	c.stop(l)
	alone := time.Now()
	for range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		_, err := left.Linearizable(ctx)
		cancel()
		require.Error(t, err)
		state, position, asOf := left.StateAsOf()
		require.False(t, asOf.After(alone))
		require.Positive(t, position)
		_, there := state.OrgByName("before")
		require.True(t, there)
	}
	c.start(l)
	require.Eventually(t, func() bool {
		_, _, asOf := left.StateAsOf()
		return asOf.After(alone)
	}, time.Minute, time.Millisecond, "with a majority it knows again")
}

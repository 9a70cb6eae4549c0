package cluster

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestRoundsBeginAfterTheirCallers has many callers ask at once: none gets an answer that was begun before its call,
// and they share rounds.
func TestRoundsBeginAfterTheirCallers(t *testing.T) {
	n := start(t, testConfig(t, t.TempDir()))
	var clock, asked atomic.Int64
	r := rounds[int64]{n: n, ask: func() (int64, error) {
		asked.Add(1)
		began := clock.Add(1)
		time.Sleep(time.Millisecond)
		return began, nil
	}}
	var callers sync.WaitGroup
	for range 50 {
		callers.Go(func() {
			for range 20 {
				before := clock.Add(1)
				got, err := r.join(deadline(t))
				if err != nil || got < before {
					t.Errorf("an answer begun at %d for a call at %d: %v", got, before, err)
				}
			}
		})
	}
	callers.Wait()
	require.Less(t, asked.Load(), int64(500), "callers that wait at the same time share a round")

	refused := errors.New("refused")
	r.ask = func() (int64, error) { return 0, refused }
	_, err := r.join(deadline(t))
	require.ErrorIs(t, err, refused)

	release := make(chan struct{})
	r.ask = func() (int64, error) { <-release; return 1, nil }
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = r.join(ctx)
	require.ErrorIs(t, err, context.Canceled)
	close(release)
	_, err = r.join(deadline(t))
	require.NoError(t, err)
}

// TestForwardedTogether puts many proposals through a follower at once: each is answered for itself, refusals too, and
// what a caller gave up before it was sent is certainly not done.
func TestForwardedTogether(t *testing.T) {
	c := startTrio(t, steady)
	l, f := c.followers()
	follower := c.nodes[f[0]]
	apply(t, follower, putOrg("taken"))
	var callers sync.WaitGroup
	for i := range 200 {
		callers.Go(func() {
			cmd := putOrg("org" + string(rune('a'+i%26)) + string(rune('a'+i/26)))
			if i%5 == 0 {
				cmd.Org.Name = "taken"
			}
			res, err := follower.Apply(deadline(t), cmd)
			_, there := follower.State().Org(cmd.Org.ID)
			if (i%5 == 0) != (res.Err != nil) || (err == nil) != there {
				t.Errorf("%d: %v, %v, there %v", i, res.Err, err, there)
			}
		})
	}
	callers.Wait()
	require.Len(t, c.nodes[l].State().Orgs(), 161)

	given := &forwarding{leader: c.nodes[l].ID(), done: make(chan forwardResult, 1)}
	given.taken.Store(true) // by its caller, whose time was up
	last := c.nodes[l].Status().Last
	follower.forward.call([]*forwarding{given})
	require.Empty(t, given.done)
	require.Equal(t, last, c.nodes[l].Status().Last)
}

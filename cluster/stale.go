package cluster

import (
	"context"
	"sync/atomic"
	"time"

	"stillframe/fsm"
)

// freshness remembers the latest instant of which this node knows that its state has everything acknowledged before it.
// It never goes back.
type freshness struct{ at atomic.Pointer[time.Time] }

// note records that the state is known to be complete up to an instant.
func (f *freshness) note(at time.Time) {
	for {
		old := f.at.Load()
		if old != nil && !at.After(*old) {
			return
		}
		if f.at.CompareAndSwap(old, &at) {
			return
		}
	}
}

// StateAsOf gives the latest state that is applied here, the position of its last entry, and the latest instant of
// which it is known that everything acknowledged before it, by whichever node, is in the state. The zero time: of no
// instant, since this node's start. It asks nobody and never waits, also on a node that is cut off, whose instant then
// stands still. The instant is of this process's clock: what other nodes' clocks say does not enter.
func (n *Node) StateAsOf() (*fsm.State, uint64, time.Time) {
	var asOf time.Time
	if at := n.fresh.at.Load(); at != nil { // before the state, which may only be newer than the instant says
		asOf = *at
	}
	v := n.machine.view.Load()
	return v.state, v.touched, asOf
}

// keepFresh makes sure, every FreshInterval, how far this node's state is, so that a stale read can say how old it is
// even where nothing else is asked. Where a linearizable read cannot be had, the last known instant stays. It ends
// with ctx.
func (n *Node) keepFresh(ctx context.Context) {
	ticker := time.NewTicker(n.cfg.FreshInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		try, done := context.WithTimeout(ctx, n.cfg.IOTimeout)
		_, _ = n.Linearizable(try) // notes the instant; without a leader there is none to note
		done()
	}
}

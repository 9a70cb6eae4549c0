package cluster

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"stillframe/fsm"
)

// watch follows the leadership and owns the goroutine that runs while this node has it. It never blocks on Raft itself:
// the library waits for it to read.
func (n *Node) watch(notify <-chan bool) {
	defer close(n.watching)
	end := func() {}
	defer func() { end() }()
	for {
		select {
		case leader := <-notify:
			end()
			end = func() {}
			if leader {
				end = n.startTerm()
			}
		case <-n.failed:
			n.shutGate()
			n.drain()
			if err := n.stopRaft(); err != nil { // neither votes nor leads from here on
				n.log.Warn("stopping after the failure", "error", err)
			}
			return
		case <-n.closing:
			return
		}
	}
}

// startTerm starts the leader's work and gives the function that ends it and waits.
func (n *Node) startTerm() func() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.runTerm(ctx)
	}()
	return func() {
		cancel()
		<-done
		n.term.Store(0)
	}
}

// runTerm is what a leader does, until ctx says that the term is over.
func (n *Node) runTerm(ctx context.Context) {
	if !n.catchUp(ctx) {
		return
	}
	n.refreshAddress(ctx)
	var supervising sync.WaitGroup
	supervising.Go(func() { n.supervise(ctx) })
	defer supervising.Wait()
	ticker := time.NewTicker(n.cfg.TickInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			n.tick(ctx, now)
		}
	}
}

// catchUp passes a barrier, after which everything that earlier leaders committed is applied, and lets the node serve.
func (n *Node) catchUp(ctx context.Context) bool {
	for {
		term := n.raft.CurrentTerm()
		index, err := n.barrier(ctx)
		if err == nil && term == n.raft.CurrentTerm() && n.Failure() == nil {
			n.term.Store(term)
			n.machine.advance(index)
			n.log.Info("serving as the leader", "term", term)
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(retryPause):
			n.log.Warn("the leader's barrier is tried again", "term", term, "error", err)
		}
	}
}

func (n *Node) barrier(ctx context.Context) (uint64, error) {
	if !n.enter() {
		return 0, errShuttingDown()
	}
	type passed struct {
		index uint64
		err   error
	}
	answer := make(chan passed, 1)
	go func() {
		defer n.leave()
		future := n.raft.Barrier(barrierTimeout)
		p := passed{err: future.Error()}
		if f, ok := future.(raft.IndexFuture); ok && p.err == nil {
			p.index = f.Index()
		}
		answer <- p
	}()
	select {
	case p := <-answer:
		return p.index, p.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// refreshAddress puts this node's own address right in the membership, after it moved.
func (n *Node) refreshAddress(ctx context.Context) {
	id, addr := raft.ServerID(n.id), n.trans.LocalAddr()
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		if s.ID != id || s.Address == addr || ctx.Err() != nil || !n.enter() {
			continue
		}
		n.log.Info("this node has a new address", "old", s.Address, "new", addr)
		go func() {
			defer n.leave()
			if err := n.raft.AddVoter(id, addr, 0, n.cfg.EnqueueTimeout).Error(); err != nil {
				n.log.Warn("the new address is not in the membership", "error", err)
			}
		}()
	}
}

// tick proposes that time passes, only when that would change something: an idle cluster's log does not grow.
func (n *Node) tick(ctx context.Context, now time.Time) {
	expired, due := n.State().Due(fsm.At(now))
	if !due {
		return
	}
	cmd := fsm.Tick{Now: fsm.At(now)}
	for range min(expired, maxTickIntents) {
		cmd.IntentIDs = append(cmd.IntentIDs, NewIntentID())
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.EnqueueTimeout)
	defer cancel()
	if _, err := n.Apply(ctx, cmd); err != nil && !errors.Is(err, context.Canceled) {
		n.log.Warn("time could not pass; trying again", "error", err)
	}
}

// maxTickIntents bounds a Tick's size in the log; what is over it waits for the next.
const maxTickIntents = 1000

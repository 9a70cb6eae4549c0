package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"stillframe/fsm"
)

// Apply proposes a command and waits until it is applied here, or ctx ends.
//
//	error            meaning
//	nil              done: committed and applied; the Result is its answer
//	of the Result    refused: the state machine said no, the same on every node; the Result has the rest
//	KindTooLarge     refused: it does not fit into the log
//	KindUnavailable  certainly not applied, now or later; proposing again is safe
//	KindUnknown      may be applied, now or later; propose it again only if the state machine can tell it is the same
//
// How the outcomes of the library are told apart. The line is whether the leader's loop took the proposal, for then
// it has an index and may be on a disk, from where a later leader can commit it:
//
//	ctx over before the proposal      unavailable  nothing was proposed
//	not the leader, or not yet ready  unavailable  nothing was proposed
//	newer than a member's program     unavailable  nothing was proposed
//	ErrEnqueueTimeout                 unavailable  the loop never took it
//	ErrNotLeader                      unavailable  answered by a loop that does not write entries, before an index
//	ErrLeadershipTransferInProgress   unavailable  answered before an index
//	ErrRaftShutdown, no index         unavailable  the loop had ended and never took it
//	ErrRaftShutdown, with an index    unknown      committed, but not handed to the state machine
//	ErrLeadershipLost                 unknown      written here, perhaps elsewhere; the next leader keeps or drops it
//	ErrAbortedByRestore               unknown      written, and superseded here by a snapshot brought in by hand
//	an error of the disk              unknown      part of the entry's batch may have been written
//	ctx over while waiting            unknown      the proposal goes on without its caller
//	the node stops while waiting      unknown      likewise
//	the entry is not known here       unknown      other nodes may know it; this one stops (see Failed)
//
// On a node that is not the leader the proposal is sent to the leader, once, and the answer waits until its entry is
// applied here too:
//
//	no leader is known, or it cannot be reached    unavailable  nothing was sent
//	the leader's own answer                        as above
//	no answer, or none that can be read            unknown      the leader may have taken it
//	done there, but ctx over before it shows here  unknown      done; State does not have it yet
func (n *Node) Apply(ctx context.Context, cmd fsm.Command) (fsm.Result, error) {
	data, err := fsm.Encode(cmd)
	if err != nil {
		return fsm.Result{}, err
	}
	if err := ctx.Err(); err != nil {
		return fsm.Result{}, fsm.Wrap(fsm.KindUnavailable, err, "the deadline passed before anything was done")
	}
	if leader := n.elsewhere(); leader != "" {
		return n.applyAt(ctx, leader, data)
	}
	o := n.applyHere(ctx, data)
	return o.result, o.err
}

// applyHere proposes as the leader, or says that this node is not.
func (n *Node) applyHere(ctx context.Context, data []byte) outcome {
	if !n.IsLeader() {
		return outcome{err: n.notLeader()}
	}
	if err := n.beyondLevel(data); err != nil {
		return outcome{err: err}
	}
	if !n.enter() {
		return outcome{err: errShuttingDown()}
	}
	answer := make(chan outcome, 1)
	go func() {
		defer n.leave()
		answer <- n.propose(data, n.enqueueTimeout(ctx))
	}()
	select {
	case o := <-answer:
		return o
	case <-ctx.Done():
		return outcome{err: fsm.Wrap(fsm.KindUnknown, ctx.Err(), "the deadline passed while the outcome was open")}
	case <-n.stopped:
		return outcome{err: fsm.Errorf(fsm.KindUnknown, "the node stopped while the outcome was open")}
	}
}

// beyondLevel refuses what a member of the cluster could not apply: it would stop there.
func (n *Node) beyondLevel(data []byte) error {
	state := n.State()
	if need, level := n.needs(data), state.Level(); need > level {
		return fsm.Errorf(fsm.KindUnavailable, "not before every node of the cluster runs a program of level %d or later: "+
			"node %s is at %d", need, state.Outdated(), level)
	}
	return nil
}

// outcome is what became of a proposal.
type outcome struct {
	index  uint64 // of the entry, when it was applied, be it to be refused
	result fsm.Result
	err    error // nil, never a nil *fsm.Error
}

// propose runs one proposal to its end.
func (n *Node) propose(data []byte, enqueue time.Duration) outcome {
	future := n.raft.Apply(data, enqueue)
	if err := future.Error(); err != nil {
		return outcome{err: proposalError(err, future.Index())}
	}
	a, ok := future.Response().(applied)
	switch {
	case !ok:
		return outcome{err: fsm.Errorf(fsm.KindUnknown, "the state machine gave no answer")}
	case a.err != nil:
		return outcome{err: fsm.Wrap(fsm.KindUnknown, a.err, "the outcome is not known: this node is stopping")}
	case a.result.Err != nil:
		return outcome{index: future.Index(), result: a.result, err: a.result.Err}
	}
	return outcome{index: future.Index(), result: a.result}
}

// proposalError tells certainly-not-applied from unknown, by the table at Apply. A proposal gets its index before
// anything of it is written, and every error without one comes from before that, whatever it is called.
func proposalError(err error, index uint64) *fsm.Error {
	switch {
	case index != 0:
		return fsm.Wrap(fsm.KindUnknown, fmt.Errorf("log index %d: %w", index, err), "the outcome is not known")
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return fsm.Wrap(fsm.KindUnavailable, err, "the node is too busy")
	case errors.Is(err, raft.ErrRaftShutdown):
		return errShuttingDown()
	}
	return fsm.Wrap(fsm.KindUnavailable, err, "this node is not the leader")
}

// enqueueTimeout is the time for the main loop to take a proposal: the configured bound, or less where ctx has less.
func (n *Node) enqueueTimeout(ctx context.Context) time.Duration {
	timeout := n.cfg.EnqueueTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(deadline))
	}
	return max(timeout, time.Millisecond) // the library takes zero for no bound
}

func errShuttingDown() *fsm.Error {
	return fsm.Errorf(fsm.KindUnavailable, "the node is shutting down")
}

func (n *Node) notLeader() *fsm.Error {
	if err := n.Failure(); err != nil {
		return fsm.Wrap(fsm.KindUnavailable, err, "the node has stopped")
	}
	switch n.Leader().ID {
	case "":
		return fsm.Errorf(fsm.KindUnavailable, "the cluster has no leader at the moment; nothing was done")
	case n.id:
		return fsm.Errorf(fsm.KindUnavailable, "this node leads, but is not ready yet; nothing was done")
	}
	return fsm.Errorf(fsm.KindUnavailable, "this node is not the leader; nothing was done")
}

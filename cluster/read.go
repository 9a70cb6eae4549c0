package cluster

import (
	"context"
	"encoding/hex"
	"time"

	"github.com/hashicorp/raft"

	"stillframe/fsm"
)

// State gives the latest state that is applied here, without a lock. On a node that is not the leader it may be old.
func (n *Node) State() *fsm.State { return n.machine.view.Load().state }

// Changed gives a channel that is closed when the next state is there, and at times when it is the same one. To miss no
// change, take the channel first, then look at State, then wait.
func (n *Node) Changed() <-chan struct{} { return n.machine.view.Load().changed }

// WaitIntent waits until an intent is closed here, and gives it. When ctx ends first, the error is KindTimeout and the
// intent is as last seen. KindNotFound: there is no such intent, or it was closed long ago. KindUnavailable: the node
// stops.
func (n *Node) WaitIntent(ctx context.Context, id fsm.IntentID) (fsm.Intent, error) {
	for {
		v := n.machine.view.Load()
		in, ok := v.state.Intent(id)
		switch {
		case !ok:
			return fsm.Intent{}, fsm.Errorf(fsm.KindNotFound, "intent %s not found", id)
		case in.State != fsm.IntentOpen:
			return in, nil
		}
		if err := n.wait(ctx, v); err != nil {
			return in, err
		}
	}
}

// Linearizable gives a state that has everything which was done before the call. A node that is not the leader asks the
// leader how far that is and waits until it is there itself. KindUnavailable where there is no leader, it cannot be
// reached, or it cannot reach a majority; KindTimeout when ctx ends first.
func (n *Node) Linearizable(ctx context.Context) (*fsm.State, error) {
	began := time.Now()
	if fsm.Bug("stale-read") {
		return n.State(), nil
	}
	if leader := n.elsewhere(); leader != "" {
		position, err := n.positionAt(ctx, leader)
		if err != nil {
			return nil, err
		}
		v, err := n.waitView(ctx, func(v *view) bool { return v.touched >= position })
		if err != nil {
			return nil, err
		}
		n.fresh.note(began)
		return v.state, nil
	}
	v, err := n.readHere(ctx)
	if err != nil {
		return nil, err
	}
	n.fresh.note(began)
	return v.state, nil
}

// readHere gives, as the leader, a view that has everything which was done before the call.
func (n *Node) readHere(ctx context.Context) (*view, error) {
	term := n.term.Load()
	if !n.IsLeader() {
		return nil, n.notLeader()
	}
	index := n.raft.CommitIndex()
	if err := n.verifyLeader(ctx); err != nil {
		return nil, err
	}
	if term != n.term.Load() || !n.IsLeader() {
		return nil, n.notLeader() // another term: its barrier, not ours, covers what was committed between
	}
	return n.waitView(ctx, func(v *view) bool { return v.index >= index })
}

// waitView waits for a view that will do.
func (n *Node) waitView(ctx context.Context, enough func(*view) bool) (*view, error) {
	for {
		v := n.machine.view.Load()
		if enough(v) {
			return v, nil
		}
		if err := n.wait(ctx, v); err != nil {
			return nil, err
		}
	}
}

// verifyLeader asks a majority whether this node is still the leader.
func (n *Node) verifyLeader(ctx context.Context) error {
	if !n.enter() {
		return errShuttingDown()
	}
	answer := make(chan error, 1)
	go func() {
		defer n.leave()
		answer <- n.raft.VerifyLeader().Error()
	}()
	select {
	case err := <-answer:
		if err != nil {
			return fsm.Wrap(fsm.KindUnavailable, err, "this node is not the leader")
		}
		return nil
	case <-ctx.Done():
		return fsm.Wrap(fsm.KindTimeout, ctx.Err(), "no answer in time from a majority of the nodes")
	case <-n.stopped:
		return errShuttingDown()
	}
}

// wait waits for the view after v.
func (n *Node) wait(ctx context.Context, v *view) error {
	select {
	case <-v.changed:
		return nil
	case <-ctx.Done():
		return fsm.Wrap(fsm.KindTimeout, ctx.Err(), "the deadline passed while waiting")
	case <-n.closing:
		return errShuttingDown()
	case <-n.failed:
		return n.notLeader()
	}
}

// IsLeader says whether this node is the leader and has applied all that earlier leaders committed. It can be out of
// date by the time it returns; what the answer is used for must not depend on it.
func (n *Node) IsLeader() bool {
	if n.Failure() != nil {
		return false
	}
	term := n.term.Load()
	return term != 0 && n.raft.State() == raft.Leader && n.raft.CurrentTerm() == term
}

// WaitLeader waits until IsLeader.
func (n *Node) WaitLeader(ctx context.Context) error {
	for {
		v := n.machine.view.Load()
		if n.IsLeader() {
			return nil
		}
		if err := n.wait(ctx, v); err != nil {
			return err
		}
	}
}

// Leader gives the leader as far as this node knows; the zero Server when it knows none.
func (n *Node) Leader() Server {
	addr, id := n.raft.LeaderWithID()
	return Server{ID: fsm.NodeID(id), Addr: string(addr)}
}

// Status is a look at a node's part in the cluster, for people and metrics.
type Status struct {
	ID       fsm.NodeID
	Leader   Server
	Ready    bool   // see IsLeader
	State    string // the library's word: Follower, Candidate, Leader, Shutdown
	Term     uint64
	Commit   uint64 // index of the last entry known to be committed
	Applied  uint64 // index of the last entry known to be in State
	Last     uint64 // index of the last entry in the log
	Position uint64 // index of the last entry that reached the state machine; equal on all nodes with equal states
	// Digest is of the state at Position, where it was asked for: it takes as long as writing the state.
	Digest  string
	Stopped bool // the node takes no part any more: see Failed
	// Unproven: it does not vote or lead yet, for it may lack what it once had.
	Unproven bool
	Version  string // of its program
	Clock    int64  // its clock when it answered, Unix nanoseconds
	// Skew is how far its clock is ahead of the asking node's, and Trip the time that the answer took: the skew is known
	// to half of that. Both are zero of the node itself.
	Skew, Trip time.Duration
}

// Status gives the node's status now, without the digest: see StatusOf.
func (n *Node) Status() Status { return n.status(false) }

func (n *Node) status(digest bool) Status {
	v := n.machine.view.Load()
	s := Status{
		ID: n.id, Leader: n.Leader(), Ready: n.IsLeader(), State: n.raft.State().String(),
		Term: n.raft.CurrentTerm(), Commit: n.raft.CommitIndex(), Applied: v.index, Position: v.touched,
		Last: n.raft.LastIndex(), Stopped: n.Failure() != nil, Unproven: !n.trans.admitted(),
		Version: n.cfg.Version, Clock: time.Now().UnixNano(),
	}
	if digest {
		sum := v.state.Digest()
		s.Digest = hex.EncodeToString(sum[:])
	}
	return s
}

// Servers gives the members of the cluster as this node's log has them, and which of them vote.
func (n *Node) Servers() map[fsm.NodeID]bool {
	out := map[fsm.NodeID]bool{}
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		out[fsm.NodeID(s.ID)] = s.Suffrage == raft.Voter
	}
	return out
}

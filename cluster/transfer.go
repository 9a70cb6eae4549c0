package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/hashicorp/raft"

	"stillframe/fsm"
)

const (
	pathTransfer = "/cluster/transfer"
	pathRemove   = "/cluster/remove"
)

// orderRequest is what an operator wants the leader to do about a node.
type orderRequest struct {
	Node  fsm.NodeID `json:"node"`
	Force bool       `json:"force,omitempty"`
}

// orderAnswer says what came of it. Node is who leads after a transfer.
type orderAnswer struct {
	Node   fsm.NodeID `codec:"n,omitempty"`
	Failed *fsm.Error `codec:"f,omitempty"`
}

func (n *Node) serveOrders() {
	serve := func(path string, do func(context.Context, orderRequest) (fsm.NodeID, error)) {
		n.port.routes.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			var req orderRequest
			if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<10)).Decode(&req); err != nil {
				answer(w, orderAnswer{Failed: fsm.Errorf(fsm.KindInvalid, "the request cannot be read")})
				return
			}
			to, err := do(r.Context(), req)
			a := orderAnswer{Node: to}
			if err != nil {
				a = orderAnswer{Failed: asError(err)}
			}
			answer(w, a)
		})
	}
	serve(pathTransfer, n.transferAndWait)
	serve(pathRemove, n.removeHere)
}

// order has the leader do something, here or there. It is sent once.
func (n *Node) order(
	ctx context.Context, path string, req orderRequest, here func(context.Context, orderRequest) (fsm.NodeID, error),
) (fsm.NodeID, error) {
	leader := n.elsewhere()
	if leader == "" {
		return here(ctx, req)
	}
	body, err := json.Marshal(req)
	if err != nil {
		return "", err
	}
	var a orderAnswer
	sent, err := n.call(ctx, leader, http.MethodPost, path, body, &a)
	switch {
	case err != nil && sent:
		return "", fsm.Wrap(fsm.KindUnknown, err, "the outcome is not known: the leader did not answer")
	case err != nil:
		return "", fsm.Wrap(fsm.KindUnavailable, err, "the leader, %s, cannot be reached", n.label(leader))
	case a.Failed != nil:
		return "", a.Failed
	}
	return a.Node, nil
}

// Transfer hands the leadership to a node, or to the fittest one where to is empty, and gives the new leader, once that
// takes calls. Only a voter that answers and is not far behind is handed to: during the attempt nobody can write.
func (n *Node) Transfer(ctx context.Context, to fsm.NodeID) (fsm.NodeID, error) {
	leader, err := n.order(ctx, pathTransfer, orderRequest{Node: to}, n.transferAndWait)
	if err != nil {
		return "", err
	}
	n.awaitLeader(ctx) // here too
	return leader, nil
}

func (n *Node) transferAndWait(ctx context.Context, req orderRequest) (fsm.NodeID, error) {
	leader, err := n.transferHere(ctx, req)
	if err == nil {
		n.awaitLeader(ctx)
	}
	return leader, err
}

// awaitLeader waits until a leader takes calls from here, for half of IOTimeout: whoever waits for the answer waits no
// longer than the whole. That there is none then is for the next call to find out.
func (n *Node) awaitLeader(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.IOTimeout/2)
	defer cancel()
	for ctx.Err() == nil {
		if _, err := n.Linearizable(ctx); err == nil {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(joinPause / 5):
		}
	}
}

func (n *Node) transferHere(ctx context.Context, req orderRequest) (fsm.NodeID, error) {
	if n.raft.State() != raft.Leader {
		return "", n.notLeader()
	}
	if req.Node == n.id {
		return n.id, nil
	}
	to, err := n.heir(ctx, req.Node)
	if err != nil {
		return "", err
	}
	return fsm.NodeID(to.ID), n.handTo(ctx, to)
}

// maxLag is how many entries a node may be behind to be handed the leadership.
const maxLag = 1000

// heir finds whom to hand the leadership to: the wanted node, or else the voter that has most of the log; one that is
// drained only where there is no other.
func (n *Node) heir(ctx context.Context, wanted fsm.NodeID) (raft.Server, error) {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.TransferTimeout)
	defer cancel()
	var best raft.Server
	var bestLast uint64
	var why error = fsm.Errorf(fsm.KindUnavailable, "there is no other voter")
	for _, drained := range []bool{false, true} {
		for _, s := range n.raft.GetConfiguration().Configuration().Servers {
			id := fsm.NodeID(s.ID)
			node, _ := n.State().Node(id)
			if id == n.id || (wanted != "" && id != wanted) || (wanted == "" && node.Drained != drained) {
				continue
			}
			last, err := n.fit(ctx, s)
			if err != nil {
				why = err
			} else if best.ID == "" || last > bestLast {
				best, bestLast = s, last
			}
		}
		if best.ID != "" {
			return best, nil
		}
	}
	if wanted != "" && n.raft.State() == raft.Leader {
		if _, there := n.Servers()[wanted]; !there {
			why = fsm.Errorf(fsm.KindNotFound, "%s is no member", n.label(wanted))
		}
	}
	return raft.Server{}, why
}

// fit says how much of the log a node has, or why it cannot lead.
func (n *Node) fit(ctx context.Context, s raft.Server) (uint64, error) {
	id := fsm.NodeID(s.ID)
	if s.Suffrage != raft.Voter {
		return 0, fsm.Errorf(fsm.KindConflict, "node %s has no vote", n.label(id))
	}
	status, err := n.StatusOf(ctx, id, false)
	switch {
	case err != nil:
		return 0, err
	case status.Stopped || status.Unproven || status.Last+maxLag < n.raft.LastIndex():
		return 0, fsm.Errorf(fsm.KindUnavailable, "node %s is too far behind to lead", n.label(id))
	}
	return status.Last, nil
}

// handTo hands the leadership to a node. The library gives it at most an election timeout, and goes on refusing writes
// until its own request to the other node has ended, for IOTimeout at the most.
func (n *Node) handTo(ctx context.Context, to raft.Server) error {
	if !n.enter() {
		return errShuttingDown()
	}
	moved := make(chan error, 1)
	go func() {
		defer n.leave()
		moved <- n.raft.LeadershipTransferToServer(to.ID, to.Address).Error()
	}()
	select {
	case err := <-moved:
		if err != nil {
			return fsm.Wrap(fsm.KindUnavailable, err, "the leadership was not handed to %s", n.label(fsm.NodeID(to.ID)))
		}
		n.log.Info("leadership handed over", "to", string(to.ID))
		return nil
	case <-time.After(n.cfg.TransferTimeout):
		return fsm.Errorf(fsm.KindUnknown, "the leadership was not handed to %s in time", n.label(fsm.NodeID(to.ID)))
	case <-ctx.Done():
		return fsm.Wrap(fsm.KindUnknown, ctx.Err(), "the deadline passed while the leadership was handed over")
	}
}

// handOver gives the leadership to another voter before this node stops, where it has it and there is one.
func (n *Node) handOver() {
	if n.raft.State() != raft.Leader || n.otherVoters() == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), n.cfg.TransferTimeout)
	defer cancel()
	if _, err := n.transferHere(ctx, orderRequest{}); err != nil {
		n.log.Warn("leadership not handed over", "error", err)
	}
}

// Remove ends a node's membership for good. It is refused where too few voters would be left that answer, and, without
// force, where the node holds sandboxes or snapshots: with force they are gone. Repeating it changes nothing.
func (n *Node) Remove(ctx context.Context, node fsm.NodeID, force bool) error {
	req := orderRequest{Node: node, Force: force}
	if leader := n.Leader().ID; leader == node {
		if _, err := n.Transfer(ctx, ""); err != nil {
			return err
		}
		if err := n.waitLeaderBut(ctx, node); err != nil {
			return err
		}
	}
	_, err := n.order(ctx, pathRemove, req, n.removeHere)
	return err
}

// waitLeaderBut waits until another node than the given one leads.
func (n *Node) waitLeaderBut(ctx context.Context, node fsm.NodeID) error {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.IOTimeout)
	defer cancel()
	for {
		if leader := n.Leader().ID; leader != "" && leader != node {
			return nil
		}
		select {
		case <-ctx.Done():
			return fsm.Errorf(fsm.KindUnavailable, "there is no other leader yet")
		case <-time.After(joinPause):
		}
	}
}

func (n *Node) removeHere(ctx context.Context, req orderRequest) (fsm.NodeID, error) {
	if !n.IsLeader() {
		return "", n.notLeader()
	}
	if req.Node == n.id {
		return "", fsm.Errorf(fsm.KindConflict, "this node leads: the leadership must be handed over first")
	}
	voter, there := n.Servers()[req.Node]
	known, registered := n.State().Node(req.Node)
	if !there && !registered {
		return "", fsm.Errorf(fsm.KindNotFound, "node %s is not known", req.Node)
	}
	if voter && !known.Removed() {
		if err := n.quorumWithout(ctx, req.Node); err != nil {
			return "", err
		}
	}
	// First the word that its certificate is no good: a node that is only out of the membership would join again.
	cmd := fsm.RemoveNode{Now: fsm.At(time.Now()), Node: req.Node, Force: req.Force}
	if err := n.applyAsLeader(ctx, cmd); err != nil {
		return "", err
	}
	return "", n.expel(req.Node)
}

// expel takes a node that was removed out of Raft's membership. The leader's supervision goes on trying.
func (n *Node) expel(id fsm.NodeID) error {
	if _, there := n.Servers()[id]; !there {
		return nil
	}
	return n.change("the removal of a member", func(wait time.Duration) raft.IndexFuture {
		return n.raft.RemoveServer(raft.ServerID(id), 0, wait)
	})
}

// quorumWithout makes sure that, without a node, a majority of the voters that are left answers now.
func (n *Node) quorumWithout(ctx context.Context, without fsm.NodeID) error {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.TransferTimeout)
	defer cancel()
	voters, there := 0, 0
	var errs []error
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		if s.Suffrage != raft.Voter || fsm.NodeID(s.ID) == without {
			continue
		}
		voters++
		if fsm.NodeID(s.ID) == n.id {
			there++
		} else if _, err := n.fit(ctx, s); err == nil {
			there++
		} else {
			errs = append(errs, err)
		}
	}
	if there <= voters/2 {
		return fsm.Wrap(fsm.KindConflict, errors.Join(errs...), "without node %s only %d of %d voters would answer: the "+
			"cluster would stand still", n.label(without), there, voters)
	}
	return nil
}

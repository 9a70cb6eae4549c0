package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"stillframe/fsm"
)

const (
	pathHello = "/cluster/hello"
	pathJoin  = "/cluster/join"
)

// fileUnproven is in the log's folder while the node may have voted or acknowledged entries that it no longer has: from
// a start on an empty log until it is known that there was no cluster yet, or everything is there again. Such a node
// votes for nobody, or a majority could be made of nodes that have forgotten.
const fileUnproven = "unproven"

// memberLevel is the fsm.Level from which addresses are in the state. Below it, while the first nodes register or old
// programs are about, they are in Raft's membership and the identity folders.
const memberLevel = 2

// joinPause is between two looks at whether this node is where it should be.
const joinPause = 250 * time.Millisecond

// helloAnswer says whether a node knows of any cluster.
type helloAnswer struct {
	Fresh bool `codec:"f"` // it does not: see unled
}

// joinRequest asks to be a member at an address.
type joinRequest struct {
	Node fsm.NodeID `json:"node"`
	Name string     `json:"name"`
	Addr string     `json:"addr"`
}

// joinAnswer says that it is one. A node that has everything up to Index has all that it can ever have acknowledged.
type joinAnswer struct {
	Index  uint64     `codec:"i,omitempty"`
	Failed *fsm.Error `codec:"f,omitempty"`
}

// unled says whether this node has never heard of a leader: its log holds nothing but, at most, the first membership or
// the backup that it started from.
func (n *Node) unled() bool { return n.raft.CurrentTerm() <= seedTerm }

func (n *Node) serveJoin() {
	n.port.routes.HandleFunc("GET "+pathHello, func(w http.ResponseWriter, _ *http.Request) {
		answer(w, helloAnswer{Fresh: n.unled()})
	})
	n.port.routes.HandleFunc("POST "+pathJoin, func(w http.ResponseWriter, r *http.Request) {
		var req joinRequest
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<10)).Decode(&req); err != nil {
			answer(w, joinAnswer{Failed: fsm.Errorf(fsm.KindInvalid, "the request to join cannot be read")})
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), n.cfg.IOTimeout)
		defer cancel()
		index, err := n.takeIn(ctx, req)
		a := joinAnswer{Index: index}
		if err != nil {
			a = joinAnswer{Failed: asError(err)}
		}
		answer(w, a)
	})
}

// takeIn makes a node a member at an address, or passes the request on to the leader, once.
func (n *Node) takeIn(ctx context.Context, req joinRequest) (uint64, error) {
	if leader := n.elsewhere(); leader != "" && leader != req.Node {
		return n.askToJoin(ctx, leader, req)
	}
	if !n.IsLeader() {
		return 0, n.notLeader()
	}
	known, _ := n.State().Node(req.Node)
	if known.Removed() {
		return 0, fsm.Wrap(fsm.KindConflict, errExpelled, "node %s was removed from the cluster", n.label(req.Node))
	}
	if known.Addr != req.Addr && n.State().Level() >= memberLevel {
		cmd := fsm.PutMember{Now: fsm.At(time.Now()), Node: req.Node, Name: req.Name, Addr: req.Addr}
		if err := n.applyAsLeader(ctx, cmd); err != nil {
			return 0, err
		}
		n.log.Info("member is at an address", "of", string(req.Node), "name", req.Name, "address", req.Addr,
			"was", known.Addr)
	}
	if err := n.setServer(req.Node, req.Addr); err != nil {
		return 0, err
	}
	return n.raft.LastIndex(), nil
}

// setServer puts a node into Raft's membership: a new one without a vote, one that is there at its address.
func (n *Node) setServer(id fsm.NodeID, addr string) error {
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		if s.ID != raft.ServerID(id) {
			continue
		}
		if s.Address == raft.ServerAddress(addr) {
			return nil
		}
		if s.Suffrage == raft.Voter {
			return n.change("a member's address", func(wait time.Duration) raft.IndexFuture {
				return n.raft.AddVoter(s.ID, raft.ServerAddress(addr), 0, wait)
			})
		}
	}
	return n.change("a new member", func(wait time.Duration) raft.IndexFuture {
		return n.raft.AddNonvoter(raft.ServerID(id), raft.ServerAddress(addr), 0, wait)
	})
}

// change makes one change to Raft's membership and waits for it.
func (n *Node) change(what string, do func(time.Duration) raft.IndexFuture) error {
	if !n.enter() {
		return errShuttingDown()
	}
	done := make(chan error, 1)
	go func() {
		defer n.leave()
		done <- do(n.cfg.EnqueueTimeout).Error()
	}()
	select {
	case err := <-done:
		if err != nil {
			return fsm.Wrap(fsm.KindUnavailable, err, "%s is not in the membership", what)
		}
		return nil
	case <-time.After(n.cfg.IOTimeout): // a majority is not there; the change goes on without us
		return fsm.Errorf(fsm.KindUnknown, "%s may or may not be in the membership", what)
	case <-n.stopped:
		return errShuttingDown()
	}
}

// askToJoin asks another node to be taken in.
func (n *Node) askToJoin(ctx context.Context, node fsm.NodeID, req joinRequest) (uint64, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return 0, err
	}
	var a joinAnswer
	if _, err := n.call(ctx, node, http.MethodPost, pathJoin, body, &a); err != nil {
		return 0, fsm.Wrap(fsm.KindUnavailable, err, "node %s does not answer", n.label(node))
	}
	if a.Failed != nil {
		return 0, a.Failed
	}
	return a.Index, nil
}

// belong sees to it, for as long as the node runs, that it is a member at its address: it founds the cluster with the
// others where there is none yet, and else asks to be taken in.
func (n *Node) belong(ctx context.Context, founders []Server) {
	said := time.Time{}
	for ctx.Err() == nil {
		err := n.settle(ctx, founders)
		if err != nil && time.Since(said) > n.cfg.IOTimeout {
			n.log.Info("not a settled member yet", "error", err)
			said = time.Now()
		}
		select {
		case <-ctx.Done():
		case <-time.After(joinPause):
		}
	}
}

// settle does one look. A sole member has nobody to tell where it is.
func (n *Node) settle(ctx context.Context, founders []Server) error {
	if len(founders) > 1 && !n.trans.admitted() && n.unled() {
		if found, err := n.found(ctx, founders); found || err != nil {
			return err
		}
	}
	if n.trans.admitted() && n.atHome() {
		return nil
	}
	req := joinRequest{Node: n.id, Name: n.cfg.Identity.Self().Name, Addr: n.Addr()}
	index, err := n.askAnyToJoin(ctx, req)
	if err != nil {
		return err
	}
	return n.prove(ctx, index)
}

// atHome says whether the cluster has this node at the address at which it is.
func (n *Node) atHome() bool {
	servers := n.raft.GetConfiguration().Configuration().Servers
	if len(servers) == 1 && servers[0].ID == raft.ServerID(n.id) {
		return true
	}
	known, _ := n.State().Node(n.id)
	for _, s := range servers {
		if s.ID == raft.ServerID(n.id) && s.Address == raft.ServerAddress(n.Addr()) {
			return known.Addr == n.Addr() || n.State().Level() < memberLevel
		}
	}
	return false
}

// askAnyToJoin asks the leader or, where none is known, the members one after the other.
func (n *Node) askAnyToJoin(ctx context.Context, req joinRequest) (uint64, error) {
	if n.Leader().ID != "" {
		return n.takeIn(ctx, req)
	}
	errs := []error{errors.New("no member is known to have a leader")}
	for _, id := range n.everybody() {
		index, err := n.askToJoin(ctx, id, req)
		if err == nil {
			return index, nil
		}
		errs = append(errs, err)
	}
	return 0, errors.Join(errs...)
}

// everybody gives the other nodes that there may be: those that the cluster has, and those of the identity folder.
func (n *Node) everybody() []fsm.NodeID {
	out := n.others()
	seen := map[fsm.NodeID]bool{n.id: true}
	for _, id := range out {
		seen[id] = true
	}
	for _, m := range n.cfg.Identity.Members() {
		if !seen[m.ID] {
			out = append(out, m.ID)
		}
	}
	return out
}

// found writes the first membership into an empty log, once all founders are seen and none knows of a cluster: every
// one of them writes the same. One that is missing may be the one that knows. A log that begins with a backup has it
// already.
func (n *Node) found(ctx context.Context, founders []Server) (bool, error) {
	answers := make([]error, len(founders))
	var asking sync.WaitGroup
	var mu sync.Mutex
	cluster := false
	for i, f := range founders {
		if f.ID == n.id {
			continue
		}
		asking.Go(func() {
			var a helloAnswer
			_, answers[i] = n.call(ctx, f.ID, http.MethodGet, pathHello, nil, &a)
			mu.Lock()
			defer mu.Unlock()
			cluster = cluster || (answers[i] == nil && !a.Fresh)
		})
	}
	asking.Wait()
	if cluster {
		return false, nil
	}
	if err := errors.Join(answers...); err != nil {
		return false, fsm.Wrap(fsm.KindUnavailable, err, "not all founders of the cluster are there")
	}
	n.log.Info("founding a new cluster", "voters", len(founders))
	if n.raft.LastIndex() > 0 {
		return true, n.admit()
	}
	err := n.raft.BootstrapCluster(n.members()).Error()
	if errors.Is(err, raft.ErrCantBootstrap) {
		return false, nil // a leader was quicker
	}
	if err != nil {
		return false, err
	}
	return true, n.admit()
}

// members is the first membership of a new cluster.
func (n *Node) members() raft.Configuration {
	var members raft.Configuration
	for _, v := range n.cfg.Voters {
		addr := raft.ServerAddress(v.Addr)
		if v.ID == n.id && (addr == "" || freePort(v.Addr)) {
			addr = n.trans.LocalAddr()
		}
		members.Servers = append(members.Servers, raft.Server{ID: raft.ServerID(v.ID), Address: addr})
	}
	return members
}

// prove waits until the log holds all up to an index that the leader named, and lets the node vote.
func (n *Node) prove(ctx context.Context, index uint64) error {
	if n.trans.admitted() {
		return nil
	}
	for n.raft.LastIndex() < index {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(joinPause):
		}
	}
	return n.admit()
}

// admit lets the node vote, now and after a restart.
func (n *Node) admit() error {
	err := os.Remove(filepath.Join(n.cfg.Dir, fileUnproven))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	n.trans.admit()
	return nil
}

// proven says whether the node may vote from the start: it has a log and nothing says that it may lack some of it. An
// empty log leaves its mark before anything can be written to it.
func proven(dir string, blank bool) (bool, error) {
	mark := filepath.Join(dir, fileUnproven)
	if blank {
		return false, os.WriteFile(mark, nil, 0o600)
	}
	_, err := os.Lstat(mark)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return false, err
}

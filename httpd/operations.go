package httpd

import (
	"context"
	"net/http"
	"sync"
	"time"

	"stillframe/fsm"
)

// Operations is what an operator does about the cluster's members, beyond what goes into the log as a command.
type Operations interface {
	// Leader is who leads, as far as this node knows; empty: nobody.
	Leader() fsm.NodeID
	// Transfer hands the leadership to a node, or to the fittest where to is empty, and gives the new leader.
	Transfer(ctx context.Context, to fsm.NodeID) (fsm.NodeID, error)
	// Remove ends a node's membership for good. Without force it is refused for one that holds anything.
	Remove(ctx context.Context, node fsm.NodeID, force bool) error
}

// operationRoutes are the part of the administration API that is about the cluster's members.
func (s *Server) operationRoutes() []route {
	if s.cfg.Operations == nil {
		return nil
	}
	return []route{
		{method: post, path: "/admin/v1/cluster/transfer", open: true, do: s.transfer},
		{method: post, path: "/admin/v1/cluster/remove", open: true, do: s.removeNode},
		{method: post, path: "/admin/v1/cluster/drain", open: true, do: s.drain},
	}
}

// findNode finds a member by ID or, where only one has it, by name.
func findNode(state *fsm.State, ref string) (fsm.Node, error) {
	var found []fsm.Node
	for _, n := range state.Nodes() {
		if string(n.ID) == ref {
			return n, nil
		}
		if n.Name == ref {
			found = append(found, n)
		}
	}
	switch len(found) {
	case 0:
		return fsm.Node{}, failf(fsm.KindNotFound, "no node %q is in the cluster", ref)
	case 1:
		return found[0], nil
	}
	return fsm.Node{}, failf(fsm.KindConflict, "%d nodes are named %q: give the id", len(found), ref)
}

// operation is what a request of this file asks for.
type operation struct {
	node                  fsm.Node
	force, undo, snapshot bool
}

// operation reads a request. node may be left out where optional.
func (s *Server) operation(c *call, optional bool) (op operation, err error) {
	errs := &fieldErrors{}
	body, err := c.body(errs)
	if err != nil {
		return op, err
	}
	op.force, op.undo, op.snapshot = body.boolean("force"), body.boolean("undo"), body.boolean("snapshot")
	ref := ""
	if body.has("node") || !optional {
		ref, _ = body.required("node")
	}
	if op.undo && op.snapshot {
		body.bad("snapshot", "has no meaning with undo")
	}
	if err := errs.err(); err != nil {
		return op, err
	}
	if ref == "" {
		return op, nil
	}
	state, err := s.read(c.ctx)
	if err != nil {
		return op, err
	}
	op.node, err = findNode(state, ref)
	return op, err
}

// operationTime bounds what asks other nodes, which answer within seconds or not at all.
const operationTime = 45 * time.Second

func (s *Server) transfer(c *call) (reply, error) {
	op, err := s.operation(c, true)
	if err != nil {
		return reply{}, err
	}
	ctx, cancel := context.WithTimeout(c.ctx, operationTime)
	defer cancel()
	leader, err := s.cfg.Operations.Transfer(ctx, op.node.ID)
	if err != nil {
		return reply{}, err
	}
	n, _ := s.log.State().Node(leader)
	return jsonReply(http.StatusOK, map[string]any{"leader": leader, "name": n.Label()})
}

func (s *Server) removeNode(c *call) (reply, error) {
	op, err := s.operation(c, false)
	if err != nil {
		return reply{}, err
	}
	ctx, cancel := context.WithTimeout(c.ctx, operationTime)
	defer cancel()
	if err := s.cfg.Operations.Remove(ctx, op.node.ID, op.force); err != nil {
		return reply{}, err
	}
	return jsonReply(http.StatusOK, map[string]any{"removed": op.node.ID, "name": op.node.Label()})
}

// drained is the answer to a drain.
type drained struct {
	Node    fsm.NodeID `json:"node"`
	Name    string     `json:"name"`
	Drained bool       `json:"drained"`
	Leader  fsm.NodeID `json:"leader,omitempty"` // after a handover; empty: none was needed, or none was possible
	// Snapshots are the sandboxes that were to be snapshotted, with what came of it.
	Snapshots []drainedSandbox `json:"snapshots,omitempty"`
	Sandboxes int              `json:"sandboxes"` // that are on the node still
}

type drainedSandbox struct {
	Sandbox  fsm.SandboxID  `json:"sandbox_id"`
	Snapshot fsm.SnapshotID `json:"snapshot_id,omitempty"`
	Name     string         `json:"name,omitempty"`
	Error    string         `json:"error,omitempty"`
}

// drain has a node take no new sandboxes (or take them again), hands the leadership over, and snapshots what runs there
// where that is asked for. It may be repeated: what was snapshotted is not there any more.
func (s *Server) drain(c *call) (reply, error) {
	op, err := s.operation(c, false)
	if err != nil {
		return reply{}, err
	}
	if err := s.apply(c, fsm.DrainNode{Now: s.now(), Node: op.node.ID, Drained: !op.undo}); err != nil {
		return reply{}, err
	}
	out := drained{Node: op.node.ID, Name: op.node.Label(), Drained: !op.undo}
	if !op.undo && s.cfg.Operations.Leader() == op.node.ID {
		ctx, cancel := context.WithTimeout(c.ctx, operationTime)
		defer cancel()
		if out.Leader, err = s.cfg.Operations.Transfer(ctx, ""); err != nil {
			// Not the drain's failure: the leader itself goes on trying.
			s.logger.WarnContext(ctx, "a drained node leads still", "node", op.node.ID, "error", err)
		}
	}
	if op.snapshot {
		if out.Snapshots, err = s.snapshotAll(c, op.node.ID); err != nil {
			return reply{}, err
		}
	}
	out.Sandboxes = len(s.log.State().SandboxesOn(op.node.ID))
	return jsonReply(http.StatusOK, out)
}

// drainTime bounds a drain's snapshots, and drainPause is between two looks at sandboxes that are neither running nor
// stopped yet. drainsAtOnce is how many snapshots are under way together.
const (
	drainTime    = 30 * time.Minute
	drainPause   = 200 * time.Millisecond
	drainsAtOnce = 2
)

// snapshotAll snapshots every running sandbox of a node and deletes it after that. One that is starting, being
// snapshotted by somebody else or being deleted is waited for; each is tried once.
func (s *Server) snapshotAll(c *call, node fsm.NodeID) ([]drainedSandbox, error) {
	ctx, cancel := context.WithTimeout(c.ctx, drainTime)
	defer cancel()
	var out []drainedSandbox
	tried := map[fsm.SandboxID]bool{}
	for {
		state, err := s.read(ctx)
		if err != nil {
			return out, err
		}
		var running []fsm.Sandbox
		waiting := false
		for _, sb := range state.SandboxesOn(node) {
			switch {
			case sb.State == fsm.SandboxRunning && !tried[sb.ID]:
				running = append(running, sb)
				tried[sb.ID] = true
			case sb.State != fsm.SandboxRunning && sb.State != fsm.SandboxStopped:
				waiting = true
			}
		}
		out = append(out, s.snapshotEach(ctx, c, running)...)
		if !waiting && len(running) == 0 {
			return out, nil
		}
		select {
		case <-ctx.Done():
			return out, failf(fsm.KindTimeout, "not all sandboxes were snapshotted in time; repeating the drain goes on with "+
				"those that are left")
		case <-time.After(drainPause):
		}
	}
}

func (s *Server) snapshotEach(ctx context.Context, c *call, sandboxes []fsm.Sandbox) []drainedSandbox {
	out := make([]drainedSandbox, len(sandboxes))
	slots := make(chan struct{}, drainsAtOnce)
	var all sync.WaitGroup
	for i, sb := range sandboxes {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			out[i] = s.snapshotOne(ctx, c, sb)
		})
	}
	all.Wait()
	return out
}

// snapshotOne keeps a sandbox as a snapshot that bears its id, in its own organization.
func (s *Server) snapshotOne(ctx context.Context, c *call, sb fsm.Sandbox) drainedSandbox {
	out := drainedSandbox{Sandbox: sb.ID}
	own := &call{ctx: ctx, fc: c.fc, id: c.id}
	own.org, _ = s.log.State().Org(sb.Org)
	intent, err := s.carryOut(own, fsm.CreateSnapshot{
		Now: s.now(), Intent: s.newIntent(), Org: sb.Org, Sandbox: sb.ID, Snapshot: fsm.SnapshotID(s.cfg.NewID("snap")),
		GeneratedName: "drained-" + string(sb.ID), KillAfter: true,
	}, fsm.Request{})
	switch {
	case err != nil:
		out.Error = asAPIError(err).message
	case intent.ResultSnapshot != nil:
		out.Snapshot, out.Name = intent.ResultSnapshot.ID, intent.ResultSnapshot.Name
	}
	return out
}

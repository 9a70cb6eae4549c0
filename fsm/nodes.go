package fsm

import "time"

// The command types of this file.
const (
	TypeMarkNode CommandType = iota + 22
	TypePutMember
	TypeRemoveNode
	TypeDrainNode
)

// MarkNode is the leader's decision that a node is lost, having heard nothing of it for a lease, or that it is there
// again. It names the epoch of the node that it was made at and is refused as superseded at any other: a node that
// registered meanwhile, or of which a later leader has decided, is not struck by an old decision.
//
// A node that is lost has no open intents: what was to be created, restored or snapshotted has failed and its names are
// free; what was to be deleted is gone, for its owner removes what the log no longer has as soon as it is back. Nothing
// new is placed on it. Its sandboxes stay as they were last known.
type MarkNode struct {
	Now   Time   `codec:"now"`
	Node  NodeID `codec:"id"`
	Lost  bool   `codec:"l,omitempty"`
	Epoch uint64 `codec:"ep"`
}

// PutMember makes a node a member at an address, or changes its address. It holds nothing before it registers. A node
// that was removed stays so: conflict.
type PutMember struct {
	Now  Time   `codec:"now"`
	Node NodeID `codec:"id"`
	Name string `codec:"n"`
	Addr string `codec:"a"` // host:port for other nodes
}

// RemoveNode ends a node's membership for good: its id is never taken in again. One that holds sandboxes or snapshots
// is removed with Force only, and they are gone with it. Repeating it changes nothing.
type RemoveNode struct {
	Now   Time   `codec:"now"`
	Node  NodeID `codec:"id"`
	Force bool   `codec:"f,omitempty"`
}

// DrainNode says whether a node takes new sandboxes.
type DrainNode struct {
	Now     Time   `codec:"now"`
	Node    NodeID `codec:"id"`
	Drained bool   `codec:"d,omitempty"`
}

func (MarkNode) commandType() CommandType   { return TypeMarkNode }
func (PutMember) commandType() CommandType  { return TypePutMember }
func (RemoveNode) commandType() CommandType { return TypeRemoveNode }
func (DrainNode) commandType() CommandType  { return TypeDrainNode }

// Lost says that the leader has given the node up for now.
func (n Node) Lost() bool { return n.LostAt != 0 }

// Removed says that the node is no member any more, for good.
func (n Node) Removed() bool { return n.RemovedAt != 0 }

// Label is what people call the node.
func (n Node) Label() string { return n.label() }

// applyNodes applies the commands of this file; known is false for any other.
func (d *draft) applyNodes(cmd Command) (res Result, known bool) {
	switch c := cmd.(type) {
	case MarkNode:
		return Result{Err: d.applyMarkNode(c)}, true
	case PutMember:
		return Result{Err: d.applyPutMember(c)}, true
	case RemoveNode:
		return Result{Err: d.applyRemoveNode(c)}, true
	case DrainNode:
		return Result{Err: d.applyDrainNode(c)}, true
	}
	return Result{}, false
}

// member finds a node that is not removed.
func (d *draft) member(now Time, id NodeID) (Node, *Error) {
	var p problems
	p.now(now)
	p.id("the node's id", string(id))
	if p.err != nil {
		return Node{}, p.err
	}
	n, ok := d.Node(id)
	switch {
	case !ok:
		return Node{}, Errorf(KindNotFound, "node %s not found", id)
	case n.Removed():
		return Node{}, Errorf(KindConflict, "node %s was removed from the cluster", n.label())
	}
	return n, nil
}

func (d *draft) applyMarkNode(c MarkNode) *Error {
	n, err := d.member(c.Now, c.Node)
	if err != nil {
		return err
	}
	if n.Epoch != c.Epoch {
		return Errorf(KindSuperseded, "node %s is at epoch %d, not %d", n.label(), n.Epoch, c.Epoch)
	}
	if n.Lost() == c.Lost {
		return nil
	}
	n.Epoch++
	n.LostAt = 0
	if c.Lost {
		n.LostAt = c.Now
	}
	d.putNode(n)
	if c.Lost {
		d.supersede(c.Now, n)
	}
	return nil
}

// supersede closes the open intents of a node that cannot be asked any more.
func (d *draft) supersede(now Time, n Node) {
	for _, in := range d.OpenIntents(n.ID) {
		d.supersedeOne(now, n, in)
	}
}

// supersedeOne closes an open intent without its owner: deletions as done, all else as failed. A sandbox that survives
// gets a new epoch, so that what the owner says of the old one is refused.
func (d *draft) supersedeOne(now Time, n Node, in Intent) Intent {
	in.ClosedAt, in.KeepUntil = now, max(in.KeepUntil, now+IntentRetention)
	if in.State = IntentDone; in.Kind != IntentDelete && in.Kind != IntentDeleteSnapshot {
		in.State = IntentFailed
		in.Error = Errorf(KindUnavailable, "node %s, which was to do this, does not answer; it was not done, and a new "+
			"request (under a new Idempotency-Key, where there was one) may succeed", n.label())
	}
	d.closeIntent(&in, Complete{})
	if sb, ok := d.Sandbox(in.Sandbox); ok {
		sb.Epoch++
		d.putSandbox(sb)
		in.ResultSandbox = &sb
	}
	d.putIntent(in)
	return in
}

// openOn is what becomes of an intent just opened: one of a lost owner is closed at once. Only deletions can be, since
// nothing else is opened there.
func (d *draft) openOn(now Time, in Intent) Intent {
	if n, _ := d.Node(in.Owner); n.Lost() {
		return d.supersedeOne(now, n, in)
	}
	return in
}

// ownerThere refuses what a lost owner would have to do.
func (d *draft) ownerThere(id NodeID) *Error {
	if n, _ := d.Node(id); n.Lost() {
		return Errorf(KindUnavailable, "node %s, on which it is, has not answered since %s", n.label(),
			n.LostAt.Std().Format(time.RFC3339))
	}
	return nil
}

func (d *draft) applyPutMember(c PutMember) *Error {
	var p problems
	p.now(c.Now)
	p.id("the node's id", string(c.Node))
	p.name("the node's name", c.Name)
	p.name("the node's address", c.Addr)
	if p.err != nil {
		return p.err
	}
	n, ok := d.Node(c.Node)
	if n.Removed() {
		return Errorf(KindConflict, "node %s was removed from the cluster; it joins again only under a new identity",
			n.label())
	}
	for _, other := range d.Nodes() {
		if other.ID != c.Node && (other.Addr == c.Addr || (!ok && other.Name == c.Name)) {
			return Errorf(KindConflict, "node %s has the name %q or the address %s already", other.ID, c.Name, c.Addr)
		}
	}
	if !ok {
		n = Node{ID: c.Node, Name: c.Name}
	}
	n.Addr = c.Addr
	d.putNode(n)
	return nil
}

func (d *draft) applyRemoveNode(c RemoveNode) *Error {
	var p problems
	p.now(c.Now)
	p.id("the node's id", string(c.Node))
	if p.err != nil {
		return p.err
	}
	n, ok := d.Node(c.Node)
	if n.Removed() {
		return nil
	}
	if !ok {
		n = Node{ID: c.Node} // a member that has never been here: its certificate must not be good either
	}
	sandboxes, snapshots := d.SandboxesOn(c.Node), d.SnapshotsOn(c.Node)
	if !c.Force && len(sandboxes)+len(snapshots) > 0 {
		return Errorf(KindConflict, "node %s holds %d sandboxes and %d snapshots, which would be gone with it", n.label(),
			len(sandboxes), len(snapshots))
	}
	d.supersede(c.Now, n)
	for _, sb := range sandboxes {
		d.dropSandbox(sb.ID)
	}
	for _, sn := range snapshots {
		// A sandbox that another node restored from it lives on, and is from nowhere.
		for _, sb := range follow(d.snapshotSandboxes, joined(string(sn.ID), ""), d.Sandbox) {
			sb.Snapshot = ""
			d.putSandbox(sb)
		}
		d.dropSnapshot(sn.ID)
	}
	d.putNode(Node{ID: n.ID, Name: n.Name, Epoch: n.Epoch + 1, RegisteredAt: n.RegisteredAt, RemovedAt: c.Now})
	return nil
}

func (d *draft) applyDrainNode(c DrainNode) *Error {
	n, err := d.member(c.Now, c.Node)
	if err != nil {
		return err
	}
	n.Drained = c.Drained
	d.putNode(n)
	return nil
}

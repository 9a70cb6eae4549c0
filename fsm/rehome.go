package fsm

// Size is how much of what takes room a state has.
type Size struct {
	Orgs, Nodes, Templates, Sandboxes, Snapshots, Intents, Requests int
}

// Size counts the rows of the tables. It takes no time worth counting.
func (s *State) Size() Size {
	return Size{
		Orgs: s.orgs.Len(), Nodes: s.nodes.Len(), Templates: s.templates.Len(), Sandboxes: s.sandboxes.Len(),
		Snapshots: s.snapshots.Len(), Intents: s.intents.Len(), Requests: s.requests.Len(),
	}
}

// Rehome gives the state as a new cluster of these members takes it over from a backup, at an instant. It is a function
// of its arguments alone: members that start from the same backup start from the same state.
//
// What a member owns stays as it is: the member, starting, compares it with what it finds on its host, as after any
// stop. A member that the backup does not know has no capacity until it registers. Of a node that is no member, nobody
// can find anything:
//
//   - What it was to create, restore, snapshot or change has failed, and the names are free. What it was to delete is
//     gone.
//   - Its sandboxes are stopped and say why; they can be deleted.
//   - Its snapshots keep their names, for the data is where it was and the node may join again under its identity.
//     Until then nothing restores from them.
//   - It is listed as lost; one that holds nothing is forgotten.
func (s *State) Rehome(at Time, members []NodeID) (*State, error) {
	var p problems
	p.now(at)
	p.addf(len(members) > 0, "a cluster has at least one member")
	if p.err != nil {
		return nil, p.err
	}
	d := s.draft()
	isMember := map[NodeID]bool{}
	for _, id := range members {
		isMember[id] = true
		n, ok := d.Node(id)
		if n.Removed() {
			return nil, Errorf(KindConflict, "node %s was removed from the cluster and cannot be a member again", n.label())
		}
		if !ok {
			d.putNode(Node{ID: id})
		}
	}
	for _, n := range all(d.nodes) {
		switch {
		case n.Removed():
		case isMember[n.ID]:
			n.Addr = "" // that of the old cluster
			d.putNode(n)
		default:
			d.leaveBehind(at, n)
		}
	}
	return &d.State, nil
}

// leaveBehind deals with what a node has that is no member of the cluster any more.
func (d *draft) leaveBehind(at Time, n Node) {
	d.supersede(at, n)
	reason := "node " + n.label() + ", on which it was, is not part of the cluster that was restored from a backup"
	for _, sb := range d.SandboxesOn(n.ID) {
		if sb.State != SandboxStopped {
			sb.setState(at, SandboxStopped, reason)
			sb.Epoch++
			d.putSandbox(sb)
		}
	}
	if sandboxes, snapshots := d.Held(n.ID); sandboxes+snapshots == 0 {
		drop(&d.nodes, []byte(n.ID))
		return
	}
	n.Addr, n.Epoch = "", n.Epoch+1
	if !n.Lost() {
		n.LostAt = at
	}
	d.putNode(n)
}

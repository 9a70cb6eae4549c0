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
// stop. Of a node that is no member, nobody can find anything:
//
//   - What it was to create, restore or snapshot has failed, and the names are free. What it was to delete is gone.
//   - Its sandboxes are stopped and say why. They belong to the first member now, which can delete them.
//   - Its snapshots keep their names and their owner, for the data is where it was and the node may join again under
//     its identity. Until then nothing restores from them. The node is listed as drained.
//   - A node that holds no snapshot is forgotten.
//
// A member that the backup does not know has no capacity until it registers.
func (s *State) Rehome(at Time, members []NodeID) (*State, error) {
	if len(members) == 0 {
		return nil, Errorf(KindInvalid, "a cluster has at least one member")
	}
	d := s.draft()
	isMember := map[NodeID]bool{}
	for _, id := range members {
		isMember[id] = true
		if _, ok := d.Node(id); !ok {
			d.putNode(Node{ID: id})
		}
	}
	for _, n := range all(d.nodes) {
		if isMember[n.ID] {
			continue
		}
		if err := d.leaveBehind(at, n, members[0]); err != nil {
			return nil, err
		}
	}
	return &d.State, nil
}

// leaveBehind deals with what a node has that is no member of the cluster any more.
func (d *draft) leaveBehind(at Time, n Node, heir NodeID) error {
	reason := "node " + n.label() + ", on which it was, is not part of the cluster that was restored from a backup"
	for _, in := range d.OpenIntents(n.ID) {
		c := Complete{Now: at, Intent: in.ID, Owner: in.Owner, Epoch: in.Epoch}
		if in.Kind != IntentDelete && in.Kind != IntentDeleteSnapshot {
			c.Error, c.SandboxStopped = Errorf(KindUnavailable, "%s", reason), reason
		}
		if _, err := d.applyComplete(c); err != nil {
			return err
		}
	}
	for _, sb := range d.SandboxesOn(n.ID) {
		if sb.State != SandboxStopped {
			sb.setState(at, SandboxStopped, reason)
		}
		sb.Epoch++
		sb.Owner = heir
		d.putSandbox(sb)
	}
	if len(d.SnapshotsOn(n.ID)) == 0 {
		drop(&d.nodes, []byte(n.ID))
		return nil
	}
	n.Drained = true
	d.putNode(n)
	return nil
}

package fsm

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestRehomeKeepsMembers takes a state over to the nodes that it is from: nothing changes.
func TestRehomeKeepsMembers(t *testing.T) {
	w := fullWorld(t)
	var ids []NodeID
	for _, n := range w.s.Nodes() {
		ids = append(ids, n.ID)
	}
	s, err := w.s.Rehome(w.now, ids)
	require.NoError(t, err)
	require.Equal(t, w.s.Digest(), s.Digest())
}

// TestRehomeLeavesNodesBehind takes a state with intents of every kind over to a cluster of strangers.
func TestRehomeLeavesNodesBehind(t *testing.T) {
	w := fullWorld(t)
	before := w.s.Digest()
	s, err := w.s.Rehome(w.now, []NodeID{"node-new", "node-other"})
	require.NoError(t, err)
	require.NoError(t, s.Check())
	require.Equal(t, before, w.s.Digest(), "the old state is as it was")

	again, err := roundTrip(t, w.s).Rehome(w.now, []NodeID{"node-new", "node-other"})
	require.NoError(t, err)
	require.Equal(t, s.Digest(), again.Digest(), "every member comes to the same state")

	for _, n := range w.s.Nodes() {
		require.Empty(t, s.OpenIntents(n.ID))
		require.Empty(t, s.SandboxesOn(n.ID))
	}
	heirs := s.SandboxesOn("node-new")
	require.NotEmpty(t, heirs)
	for _, sb := range heirs {
		require.Equal(t, SandboxStopped, sb.State)
		require.NotEmpty(t, sb.StateReason)
		old, ok := w.s.Sandbox(sb.ID)
		require.True(t, ok)
		require.Greater(t, sb.Epoch, old.Epoch, "what the old owner says is superseded")
	}
	_, there := s.Sandbox("sbx-2")
	require.False(t, there, "its restore was under way")
	_, there = s.Sandbox("sbx-3")
	require.False(t, there, "its deletion was under way")

	kept, ok := s.SnapshotByName("org-a", "base")
	require.True(t, ok)
	require.Equal(t, SnapshotReady, kept.State)
	_, taken := s.SnapshotByName("org-a", "taking")
	require.False(t, taken, "its name is free: it was being taken")
	_, taken = s.SnapshotByName("org-a", "other")
	require.False(t, taken, "it was being deleted")
	holder, ok := s.Node(kept.Owner)
	require.True(t, ok && holder.Drained)

	// It goes on: nothing restores from data that is not there, and a stopped sandbox can be deleted by its heir.
	next := *w
	next.s = s
	next.refused(w.restore("base", "sbx-9"), KindUnavailable, "which holds the data")
	in := next.ok(DeleteSandbox{Now: w.now, Intent: "int-heir", Org: "org-a", Sandbox: heirs[0].ID}).Intent
	require.Equal(t, NodeID("node-new"), in.Owner)
	next.done(in, nil)
	next.ok(RegisterNode{Now: w.now, Node: Node{
		ID: "node-new", Capacity: Capacity{VCPU: 64, MemoryMiB: 1 << 20, DiskMiB: 1 << 20},
	}})
	next.running("sbx-10")

	_, err = w.s.Rehome(w.now, nil)
	require.Error(t, err)
	_, err = w.s.Rehome(0, []NodeID{"node-new"})
	require.Error(t, err, "intents are closed at an instant")
}

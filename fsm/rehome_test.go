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

	stopped := 0
	for _, n := range w.s.Nodes() {
		require.Empty(t, s.OpenIntents(n.ID))
		for _, sb := range s.SandboxesOn(n.ID) {
			require.Equal(t, SandboxStopped, sb.State)
			require.NotEmpty(t, sb.StateReason)
			old, ok := w.s.Sandbox(sb.ID)
			require.True(t, ok)
			if old.State != SandboxStopped {
				require.Greater(t, sb.Epoch, old.Epoch, "what the old owner says is superseded")
			}
			stopped++
		}
		left, ok := s.Node(n.ID)
		require.True(t, !ok || left.Lost())
	}
	require.Positive(t, stopped)
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

	// It goes on: nothing restores from data that is not there, and what is stopped can be deleted.
	next := *w
	next.s = s
	next.refused(w.restore("base", "sbx-9"), KindUnavailable, "which holds the data")
	in := next.ok(DeleteSandbox{Now: w.now, Intent: "int-del", Org: "org-a", Sandbox: "sbx-1"}).Intent
	require.Equal(t, IntentDone, in.State)
	_, there = next.s.Sandbox("sbx-1")
	require.False(t, there)
	next.ok(RegisterNode{Now: w.now, Node: Node{
		ID: "node-new", Capacity: Capacity{VCPU: 64, MemoryMiB: 1 << 20, DiskMiB: 1 << 20},
	}})
	next.running("sbx-10")
	next.ok(RegisterNode{Now: w.now, Node: Node{
		ID: kept.Owner, Capacity: Capacity{VCPU: 64, MemoryMiB: 1 << 20, DiskMiB: 1 << 20},
	}})
	next.ok(w.restore("base", "sbx-9")) // it has joined again

	_, err = w.s.Rehome(w.now, nil)
	require.Error(t, err)
	_, err = w.s.Rehome(0, []NodeID{"node-new"})
	require.Error(t, err, "intents are closed at an instant")
}

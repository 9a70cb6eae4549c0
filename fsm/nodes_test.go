package fsm

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func (w *world) node(id NodeID) Node {
	w.t.Helper()
	n, ok := w.s.Node(id)
	require.True(w.t, ok, "node %s", id)
	return n
}

// mark decides about node-1 at its present epoch.
func (w *world) mark(lost bool) MarkNode {
	w.t.Helper()
	return MarkNode{Now: w.now, Node: "node-1", Lost: lost, Epoch: w.node("node-1").Epoch}
}

// TestLostNode has a node with an intent of each kind open when it is given up: names are free, nothing waits for it,
// and what it says afterwards is refused.
func TestLostNode(t *testing.T) {
	w := newWorld(t)
	w.ok(PutOrg{Now: w.now, Org: Org{ID: "org-a", Name: "alpha", MaxSandboxes: 4}})
	sb := w.running("sbx-1")
	w.ready("sbx-1", "snap-1", "base")
	w.ready("sbx-1", "snap-2", "doomed")
	creating := w.ok(w.create("sbx-2")).Intent
	snapping := w.ok(w.snap("sbx-1", "snap-3", "name")).Intent
	deleting := w.ok(DeleteSnapshot{Now: w.now, Intent: "int-ds", Org: "org-a", Snapshot: "snap-2"}).Intent
	w.running("sbx-3")
	removing := w.ok(DeleteSandbox{Now: w.now, Intent: "int-d", Org: "org-a", Sandbox: "sbx-3"}).Intent

	w.pass(time.Minute)
	w.ok(w.mark(true))
	n := w.node("node-1")
	require.Equal(t, w.now, n.LostAt)
	require.Equal(t, uint64(1), n.Epoch)
	require.Empty(t, w.s.OpenIntents("node-1"))
	for _, in := range []Intent{creating, snapping} {
		closed, _ := w.s.Intent(in.ID)
		require.Equal(t, IntentFailed, closed.State, in.Kind)
		require.Equal(t, KindUnavailable, closed.Error.Kind)
		require.Contains(t, closed.Error.Message, "node first,")
		res := w.refused(w.complete(in, &testManifest), KindSuperseded, "failed")
		require.Equal(t, in.ID, res.Intent.ID, "the owner is told what became of it")
	}
	for _, in := range []Intent{deleting, removing} {
		closed, _ := w.s.Intent(in.ID)
		require.Equal(t, IntentDone, closed.State, in.Kind)
	}
	for _, id := range []SandboxID{"sbx-2", "sbx-3"} {
		_, there := w.s.Sandbox(id)
		require.False(t, there, "%s", id)
	}
	_, taken := w.s.SnapshotByName("org-a", "name")
	require.False(t, taken, "the name is free")
	_, taken = w.s.SnapshotByName("org-a", "doomed")
	require.False(t, taken)

	now := w.sandbox("sbx-1")
	require.Equal(t, SandboxRunning, now.State, "as last known")
	require.Equal(t, snapping.Epoch+1, now.Epoch)
	w.refused(ReportStopped{Now: w.now, Sandbox: "sbx-1", Owner: "node-1", Epoch: sb.Epoch, Reason: "x"},
		KindSuperseded, "epoch")
}

// TestNothingIsPutOnALostNode has every call that would open an intent there.
func TestNothingIsPutOnALostNode(t *testing.T) {
	w := newWorld(t)
	w.running("sbx-1")
	w.running("sbx-2")
	w.ready("sbx-1", "snap-1", "base")
	w.ok(w.mark(true))
	w.refused(w.create("sbx-3"), KindUnavailable, "1 lost")
	w.refused(w.snap("sbx-1", "snap-2", "more"), KindUnavailable, "node first, on which it is, has not answered since")
	w.refused(w.restore("base", "sbx-4"), KindUnavailable, "does not answer")

	// What may be deleted is gone at once.
	in := w.ok(DeleteSandbox{Now: w.now, Intent: "int-d1", Org: "org-a", Sandbox: "sbx-1"}).Intent
	require.Equal(t, IntentDone, in.State)
	in = w.ok(DeleteSnapshot{Now: w.now, Intent: "int-d2", Org: "org-a", Snapshot: "snap-1"}).Intent
	require.Equal(t, IntentDone, in.State)
	w.pass(time.Hour)
	w.ok(Tick{Now: w.now, IntentIDs: []IntentID{"int-t1"}})
	require.Empty(t, w.s.SandboxesOn("node-1"), "beyond its timeout")
	require.Empty(t, w.s.SnapshotsOn("node-1"))
	require.Zero(t, w.s.Used("node-1"))

	w.ok(w.mark(false))
	require.False(t, w.node("node-1").Lost())
	require.Equal(t, NodeID("node-1"), w.running("sbx-3").Owner)
}

// TestOldDecisions has decisions about a node that came back meanwhile.
func TestOldDecisions(t *testing.T) {
	w := newWorld(t)
	register := RegisterNode{Now: w.now, Node: Node{
		ID: "node-1", Name: "first", Capacity: Capacity{VCPU: 4, MemoryMiB: 4096, DiskMiB: 40960},
	}}
	in := w.ok(w.create("sbx-1")).Intent
	old := w.mark(true)
	w.ok(register) // it has been started again: that is a word from it
	w.refused(old, KindSuperseded, "epoch 1, not 0")
	require.Len(t, w.s.OpenIntents("node-1"), 1)
	w.ok(w.mark(true))
	w.refused(old, KindSuperseded, "epoch 2, not 0")
	old = w.mark(false)
	w.ok(register)
	require.False(t, w.node("node-1").Lost(), "who registers is there")
	w.ok(w.mark(true))
	w.refused(old, KindSuperseded, "epoch")
	again := w.mark(true)
	w.ok(again)
	require.Equal(t, again.Epoch, w.node("node-1").Epoch, "deciding the same twice changes nothing")
	w.refused(w.complete(in, nil), KindSuperseded, "failed")
	w.refused(MarkNode{Now: w.now, Node: "node-9"}, KindNotFound, "node-9")
	w.refused(MarkNode{Now: w.now}, KindInvalid, "id")
}

func TestMembers(t *testing.T) {
	w := newWorld(t)
	put := PutMember{Now: w.now, Node: "node-2", Name: "second", Addr: "10.0.0.2:7071"}
	w.ok(put)
	require.Equal(t, Node{ID: "node-2", Name: "second", Addr: "10.0.0.2:7071"}, w.node("node-2"))
	w.ok(RegisterNode{Now: w.now, Node: Node{ID: "node-2", Name: "second", Addr: "x", LostAt: 1, RemovedAt: 1, Epoch: 9}})
	require.Equal(t, Node{ID: "node-2", Name: "second", Addr: "10.0.0.2:7071", RegisteredAt: w.now}, w.node("node-2"),
		"what the cluster says of a node is not the node's to say")
	put.Addr = "10.0.0.3:7071"
	w.ok(put)
	require.Equal(t, "10.0.0.3:7071", w.node("node-2").Addr, "it has moved")
	w.refused(PutMember{Now: w.now, Node: "node-3", Name: "third", Addr: put.Addr}, KindConflict, "node-2")
	w.refused(PutMember{Now: w.now, Node: "node-3", Name: "second", Addr: "x"}, KindConflict, "node-2")
	w.refused(PutMember{Now: w.now, Node: "node-3", Name: "third"}, KindInvalid, "address")

	w.ok(RemoveNode{Now: w.now, Node: "node-2"})
	w.ok(RemoveNode{Now: w.now, Node: "node-2"})
	require.True(t, w.node("node-2").Removed())
	require.Len(t, w.s.Nodes(), 1)
	w.refused(put, KindConflict, "was removed")
	w.refused(RegisterNode{Now: w.now, Node: Node{ID: "node-2"}}, KindConflict, "was removed")
	w.refused(MarkNode{Now: w.now, Node: "node-2", Epoch: w.node("node-2").Epoch}, KindConflict, "was removed")
	w.refused(DrainNode{Now: w.now, Node: "node-2", Drained: true}, KindConflict, "was removed")
	w.ok(PutMember{Now: w.now, Node: "node-4", Name: "second", Addr: put.Addr})
	w.ok(RemoveNode{Now: w.now, Node: "node-5"})
	require.True(t, w.node("node-5").Removed(), "also one that was never here: its certificate exists")
}

func TestRemoveNodeThatHoldsThings(t *testing.T) {
	w := newWorld(t)
	w.running("sbx-1")
	w.ready("sbx-1", "snap-1", "base")
	in := w.ok(w.snap("sbx-1", "snap-2", "name")).Intent
	restored := w.ok(w.restore("base", "sbx-2")).Intent
	remove := RemoveNode{Now: w.now, Node: "node-1"}
	w.refused(remove, KindConflict, "2 sandboxes and 2 snapshots")
	remove.Force = true
	w.ok(remove)
	require.Empty(t, w.s.SandboxesOn("node-1"))
	require.Empty(t, w.s.SnapshotsOn("node-1"))
	for _, id := range []IntentID{in.ID, restored.ID} {
		closed, _ := w.s.Intent(id)
		require.Equal(t, IntentFailed, closed.State)
	}
	_, taken := w.s.SnapshotByName("org-a", "base")
	require.False(t, taken)
	w.refused(w.create("sbx-3"), KindUnavailable, "no node is registered")
}

// TestRemoveNodeWithClonesElsewhere removes the node of a snapshot that another one has restored.
func TestRemoveNodeWithClonesElsewhere(t *testing.T) {
	w := newWorld(t)
	w.running("sbx-1")
	w.ready("sbx-1", "snap-1", "base")
	sn := w.snapshot("snap-1")
	w.ok(RegisterNode{Now: w.now, Node: Node{
		ID: "node-1", Name: "first", Level: Level, Capacity: Capacity{VCPU: 1, MemoryMiB: 1, DiskMiB: 1},
	}})
	w.ok(RegisterNode{Now: w.now, Node: Node{
		ID: "node-2", Name: "second", Level: Level, Capacity: Capacity{VCPU: 9, MemoryMiB: 1 << 20, DiskMiB: 1 << 20},
		VMM: sn.Manifest.VMM, VMMVersion: sn.Manifest.VMMVersion, CPUFingerprint: sn.Manifest.CPUFingerprint,
	}})
	in := w.ok(w.restore("base", "sbx-2")).Intent
	require.Equal(t, NodeID("node-2"), in.Owner)
	w.done(in, nil)
	w.ok(RemoveNode{Now: w.now, Node: "node-1", Force: true})
	require.Equal(t, SandboxRunning, w.sandbox("sbx-2").State)
	require.Empty(t, w.sandbox("sbx-2").Snapshot)
}

func TestDrain(t *testing.T) {
	w := newWorld(t)
	sb := w.running("sbx-1")
	w.ok(DrainNode{Now: w.now, Node: "node-1", Drained: true})
	w.refused(w.create("sbx-2"), KindUnavailable, "1 drained")
	require.Equal(t, sb, w.sandbox("sbx-1"), "what runs there is left alone")
	w.ready("sbx-1", "snap-1", "base")
	w.ok(DrainNode{Now: w.now, Node: "node-1"})
	w.running("sbx-2")
	w.refused(DrainNode{Now: w.now, Node: "node-7"}, KindNotFound, "node-7")
}

// TestPlacementByTemplate has nodes that say which images they have.
func TestPlacementByTemplate(t *testing.T) {
	w := newWorld(t)
	room := Capacity{VCPU: 64, MemoryMiB: 1 << 20, DiskMiB: 1 << 20}
	w.ok(RegisterNode{Now: w.now, Node: Node{ID: "node-2", Capacity: room, Templates: []string{"sha256:bb"}}})
	require.Equal(t, NodeID("node-1"), w.running("sbx-1").Owner, "it has not said: it is tried")
	w.ok(RegisterNode{Now: w.now, Node: Node{ID: "node-3", Capacity: room, Templates: []string{"sha256:bb", "sha256:aa"}}})
	require.Equal(t, NodeID("node-3"), w.running("sbx-2").Owner)
	w.ok(DrainNode{Now: w.now, Node: "node-3", Drained: true})
	w.ok(w.mark(true))
	w.ok(PutMember{Now: w.now, Node: "node-4", Name: "fourth", Addr: "d:1"})
	w.refused(w.create("sbx-3"), KindUnavailable,
		"of 4 nodes, 1 lost, 1 drained, 1 without the template, 1 not registered")
	w.refused(RegisterNode{Now: w.now, Node: Node{ID: "node-5", Templates: []string{""}}}, KindInvalid, "digest")
}

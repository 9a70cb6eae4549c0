package fsm

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestCreateSnapshot(t *testing.T) {
	w := newWorld(t)
	c := w.create("sbx-1")
	c.EnvVars = map[string]string{"A": "1"}
	c.NetworkPolicy = &NetworkPolicy{Mode: "deny-all"}
	w.done(w.ok(c).Intent, nil)
	w.pass(time.Second)
	in := w.ok(w.snap("sbx-1", "snap-1", "base")).Intent
	require.Equal(t, Intent{
		ID: "int-snap-snap-1", Kind: IntentSnapshot, Org: "org-a", Sandbox: "sbx-1", Snapshot: "snap-1",
		Owner: "node-1", Epoch: 2, State: IntentOpen, CreatedAt: w.now, KeepUntil: w.now + IntentRetention,
	}, in)
	require.Equal(t, SandboxSnapshotting, w.sandbox("sbx-1").State)
	want := Snapshot{
		ID: "snap-1", Org: "org-a", Name: "base", Sandbox: "sbx-1", Template: "tpl-1", TemplateName: "system/debian",
		VCPU: 1, MemoryMiB: 1024, DiskMiB: 10240, EnvVars: c.EnvVars, NetworkPolicy: c.NetworkPolicy,
		State: SnapshotCreating, Owner: "node-1", Epoch: 2, Intent: in.ID, CreatedAt: w.now,
	}
	require.Equal(t, want, w.snapshot("snap-1"))

	w.refused(w.complete(in, nil), KindInvalid, "manifest")
	bad := testManifest
	bad.Files = []File{{Name: "ram", Stored: 1 << 60}, {Name: "disk", Stored: 1}}
	w.refused(w.complete(in, &bad), KindInvalid, `"disk"`)

	closed := w.done(in, &testManifest)
	want.State, want.Intent, want.Manifest = SnapshotReady, "", &testManifest
	require.Equal(t, want, w.snapshot("snap-1"))
	require.Equal(t, &want, closed.ResultSnapshot)
	sb := w.sandbox("sbx-1")
	require.Equal(t, SandboxRunning, sb.State)
	require.Equal(t, t0.Add(300*time.Second), sb.TimeoutAt, "a snapshot does not move the timeout")
	require.Equal(t, Capacity{VCPU: 1, MemoryMiB: 1024, DiskMiB: 10240 + 4}, w.s.Used("node-1"),
		"3 MiB and a byte stored take 4")
	require.Equal(t, []Snapshot{want}, slices.Collect(w.s.Snapshots("org-a")))
	require.Equal(t, []Snapshot{want}, w.s.SnapshotsOn("node-1"))
}

func TestSnapshotNames(t *testing.T) {
	w := newWorld(t)
	w.running("sbx-1")
	w.running("sbx-2")
	in := w.ok(w.snap("sbx-1", "snap-1", "base")).Intent
	w.refused(w.snap("sbx-2", "snap-2", "base"), KindConflict, `snapshot name "base" is being created`)
	w.done(in, &testManifest)
	w.refused(w.snap("sbx-2", "snap-2", "base"), KindConflict, `snapshot name "base" already exists`)

	del := w.ok(DeleteSnapshot{Now: w.now, Intent: "int-d", Org: "org-a", Snapshot: "snap-1"}).Intent
	w.refused(w.snap("sbx-2", "snap-2", "base"), KindConflict, `already exists and is being deleted`)
	w.done(del, nil)
	_, ok := w.s.SnapshotByName("org-a", "base")
	require.False(t, ok)

	in = w.ok(w.snap("sbx-2", "snap-2", "base")).Intent
	w.fail(in, "disk full")
	_, ok = w.s.SnapshotByName("org-a", "base")
	require.False(t, ok, "a failed creation gives the name back")
	w.ready("sbx-2", "snap-3", "base")

	other := w.create("sbx-b")
	other.Org = "org-b"
	w.done(w.ok(other).Intent, nil)
	snap := w.snap("sbx-b", "snap-b", "base")
	snap.Org = "org-b"
	w.ok(snap) // names are an organization's own
	for org, want := range map[OrgID]SnapshotID{"org-a": "snap-3", "org-b": "snap-b"} {
		got, ok := w.s.SnapshotByName(org, "base")
		require.True(t, ok)
		require.Equal(t, want, got.ID)
	}
}

func TestSnapshotRefusals(t *testing.T) {
	w := newWorld(t)
	starting := w.ok(w.create("sbx-0")).Intent
	w.running("sbx-1")
	for _, name := range []string{"a/b", strings.Repeat("x", 65), ".a", "-a", "a b", "ä", "a\n"} {
		w.refused(w.snap("sbx-1", "snap-1", name), KindInvalid, "name must be")
	}
	nameless := w.snap("sbx-1", "snap-1", "")
	nameless.GeneratedName = ""
	w.refused(nameless, KindInvalid, "name must be")
	foreign := w.snap("sbx-1", "snap-1", "base")
	foreign.Org = "org-b"
	w.refused(foreign, KindNotFound, "sandbox sbx-1 not found")
	w.refused(w.snap("sbx-9", "snap-1", "base"), KindNotFound, "sandbox sbx-9 not found")
	w.refused(w.snap("sbx-0", "snap-1", "base"), KindConflict, "sandbox sbx-0 is starting")
	w.refused(w.snap("sbx-1", "", "base"), KindInvalid, "snapshot's id")
	w.fail(starting, "no")
	w.ready("sbx-1", "snap-1", "base")
	w.refused(w.snap("sbx-1", "snap-1", "base2"), KindConflict, "snapshot snap-1 already exists")
	twice := w.snap("sbx-1", "snap-2", "base2")
	twice.Intent = "int-snap-snap-1"
	w.refused(twice, KindConflict, "intent int-snap-snap-1 already exists")

	w.ok(PutOrg{Now: w.now, Org: Org{ID: "org-a", Name: "alpha", MaxSnapshots: 1}})
	w.refused(w.snap("sbx-1", "snap-2", "base2"), KindLimit, "1 of at most 1 snapshots")
}

func TestGeneratedNames(t *testing.T) {
	w := newWorld(t)
	w.running("sbx-1")
	long := strings.Repeat("n", 64)
	for i, want := range []string{"quiet-otter", "quiet-otter-2", "quiet-otter-3"} {
		require.Equal(t, want, w.ready("sbx-1", "snap-"+string(rune('a'+i)), "").Name)
	}
	for i, want := range []string{long, long[:62] + "-2"} {
		c := w.snap("sbx-1", "snap-l"+string(rune('a'+i)), "")
		c.GeneratedName = long
		require.Equal(t, want, w.done(w.ok(c).Intent, &testManifest).ResultSnapshot.Name)
	}
}

func TestSnapshotKillAfter(t *testing.T) {
	w := newWorld(t)
	w.running("sbx-1")
	c := w.snap("sbx-1", "snap-1", "base")
	c.KillAfter = true
	in := w.ok(c).Intent

	w.refused(w.complete(in, &testManifest), KindInvalid, "next intent")
	taken := w.complete(in, &testManifest)
	taken.NextIntent = in.ID
	w.refused(taken, KindConflict, "already exists")

	done := w.complete(in, &testManifest)
	done.NextIntent = "int-next"
	closed := w.ok(done).Intent
	require.Equal(t, SandboxRunning, closed.ResultSandbox.State)
	next, ok := w.s.Intent("int-next")
	require.True(t, ok)
	require.Equal(t, IntentDelete, next.Kind)
	require.Equal(t, SandboxID("sbx-1"), next.Sandbox)
	require.Equal(t, SandboxDeleting, w.sandbox("sbx-1").State)
	w.done(next, nil)
	_, ok = w.s.Sandbox("sbx-1")
	require.False(t, ok)
	require.Equal(t, SnapshotReady, w.snapshot("snap-1").State, "the snapshot outlives its source")
}

func TestSnapshotKillAfterFails(t *testing.T) {
	w := newWorld(t)
	w.running("sbx-1")
	c := w.snap("sbx-1", "snap-1", "base")
	c.KillAfter = true
	w.fail(w.ok(c).Intent, "disk full")
	require.Equal(t, SandboxRunning, w.sandbox("sbx-1").State, "no snapshot, no kill")
	require.Empty(t, w.s.OpenIntents("node-1"))
}

func TestSnapshotLosesItsSource(t *testing.T) {
	for _, done := range []bool{true, false} {
		w := newWorld(t)
		w.running("sbx-1")
		in := w.ok(w.snap("sbx-1", "snap-1", "base")).Intent
		c := w.complete(in, &testManifest)
		c.SandboxStopped = "the VM ended"
		if !done {
			c.Error = Errorf(KindInternal, "the VM ended")
		}
		w.ok(c)
		require.Equal(t, SandboxStopped, w.sandbox("sbx-1").State)
		require.Equal(t, "the VM ended", w.sandbox("sbx-1").StateReason)
		_, kept := w.s.Snapshot("snap-1")
		require.Equal(t, done, kept)
	}
}

func TestRestoreSnapshot(t *testing.T) {
	w := newWorld(t)
	c := w.create("sbx-1")
	c.EnvVars = map[string]string{"A": "1"}
	c.NetworkPolicy = &NetworkPolicy{Mode: "deny-all"}
	w.done(w.ok(c).Intent, nil)
	taking := w.ok(w.snap("sbx-1", "snap-1", "base")).Intent
	w.refused(w.restore("base", "sbx-2"), KindNotFound, `"base" is still being created`)
	w.done(taking, &testManifest)

	in := w.ok(w.restore("base", "sbx-2")).Intent
	require.Equal(t, IntentRestore, in.Kind)
	sb := w.sandbox("sbx-2")
	require.Equal(t, Sandbox{
		ID: "sbx-2", Org: "org-a", Template: "tpl-1", TemplateName: "system/debian", TemplateDigest: "sha256:aa",
		Snapshot: "snap-1", VCPU: 1, MemoryMiB: 1024, DiskMiB: 10240, TimeoutSec: 60,
		EnvVars: c.EnvVars, NetworkPolicy: c.NetworkPolicy,
		State: SandboxStarting, Owner: "node-1", Epoch: 1, Intent: in.ID, CreatedAt: w.now,
		UpdatedAt: w.now, StateAt: w.now,
	}, sb)
	w.done(in, nil)

	other := w.restore("base", "sbx-3")
	other.NetworkPolicy = &NetworkPolicy{Mode: "allow-all"}
	w.ok(other)
	require.Equal(t, "allow-all", w.sandbox("sbx-3").NetworkPolicy.Mode)

	w.refused(w.restore("nope", "sbx-4"), KindNotFound, `snapshot "nope" not found`)
	foreign := w.restore("base", "sbx-4")
	foreign.Org = "org-b"
	w.refused(foreign, KindNotFound, `snapshot "base" not found`)
	w.refused(w.restore("base", "sbx-2"), KindConflict, "sandbox sbx-2 already exists")
	w.refused(w.restore("", "sbx-4"), KindInvalid, "snapshot_name")
	big := w.restore("base", "sbx-4")
	big.TimeoutSec = 0
	w.refused(big, KindInvalid, "timeout")

	// A second node has room, but the data is on the first, whose disk is full with three sandboxes and a snapshot.
	w.ok(RegisterNode{Now: w.now, Node: Node{
		ID: "node-2", Capacity: Capacity{VCPU: 64, MemoryMiB: 1 << 20, DiskMiB: 1 << 20},
	}})
	w.refused(w.restore("base", "sbx-4"), KindUnavailable, "node first, which holds the data, has no room")
}

func TestRestoreOnDrainedNode(t *testing.T) {
	w := &world{t: t, s: New(), now: t0}
	w.ok(PutOrg{Now: w.now, Org: Org{ID: "org-a", Name: "alpha"}})
	d := w.s.draft()
	d.putNode(Node{ID: "n", Name: "old", Drained: true, Capacity: Capacity{VCPU: 9, MemoryMiB: 9999, DiskMiB: 99999}})
	d.putTemplate(Template{ID: "tpl-1", Name: "system/debian", Digest: "d"})
	d.putSnapshot(Snapshot{
		ID: "snap-1", Org: "org-a", Name: "base", Template: "tpl-1", VCPU: 1, MemoryMiB: 1, DiskMiB: 1,
		State: SnapshotReady, Owner: "n", Epoch: 1, Manifest: &testManifest,
	})
	w.s = &d.State
	w.refused(w.restore("base", "sbx-2"), KindUnavailable, "node old, which holds the data, is drained")
}

func TestDeleteSnapshot(t *testing.T) {
	w := newWorld(t)
	del := func(id SnapshotID, org OrgID) DeleteSnapshot {
		return DeleteSnapshot{Now: w.now, Intent: IntentID("int-del-" + id), Org: org, Snapshot: id}
	}
	w.running("sbx-1")
	taking := w.ok(w.snap("sbx-1", "snap-1", "base")).Intent
	w.refused(del("snap-1", "org-a"), KindNotFound, "snap-1 not found")
	w.done(taking, &testManifest)
	w.refused(del("snap-1", "org-b"), KindNotFound, "snap-1 not found")
	w.refused(del("snap-9", "org-a"), KindNotFound, "snap-9 not found")
	w.refused(del("", "org-a"), KindInvalid, "snapshot's id")

	restoring := w.ok(w.restore("base", "sbx-2")).Intent
	w.refused(del("snap-1", "org-a"), KindConflict, "in use by sandbox sbx-2")
	w.fail(restoring, "no")

	in := w.ok(del("snap-1", "org-a")).Intent
	require.Equal(t, IntentDeleteSnapshot, in.Kind)
	require.Equal(t, uint64(3), in.Epoch)
	again := del("snap-1", "org-a")
	again.Intent = "int-again"
	w.refused(again, KindConflict, "being deleted")
	w.refused(w.restore("base", "sbx-3"), KindNotFound, `"base" not found`)

	closed := w.fail(in, "busy")
	sn := w.snapshot("snap-1")
	require.Equal(t, SnapshotReady, sn.State)
	require.Equal(t, &testManifest, sn.Manifest)
	require.Equal(t, &sn, closed.ResultSnapshot)
	w.done(w.ok(again).Intent, nil)
	_, ok := w.s.Snapshot("snap-1")
	require.False(t, ok)
	require.Equal(t, SandboxRunning, w.sandbox("sbx-1").State)
	require.Equal(t, Capacity{VCPU: 1, MemoryMiB: 1024, DiskMiB: 10240}, w.s.Used("node-1"))
}

// TestRestoreElsewhere: the holder of the data first, then the freest of those that understand it, as long as every
// program in the cluster knows of it.
func TestRestoreElsewhere(t *testing.T) {
	w := newWorld(t)
	mf := testManifest
	node := func(id NodeID, change func(*Node)) {
		t.Helper()
		n := Node{
			ID: id, Name: "name of " + string(id), Level: levelRestoreElsewhere, VMM: mf.VMM, VMMVersion: mf.VMMVersion,
			CPUFingerprint: mf.CPUFingerprint, Templates: []string{mf.TemplateDigest},
			Capacity: Capacity{VCPU: 8, MemoryMiB: 1 << 20, DiskMiB: 1 << 20},
		}
		if change != nil {
			change(&n)
		}
		w.ok(RegisterNode{Now: w.now, Node: n})
	}
	full := func(n *Node) { n.Capacity = Capacity{VCPU: 2, MemoryMiB: 2048, DiskMiB: 20480} }
	node("node-1", full)
	w.running("sbx-1")
	w.done(w.ok(w.snap("sbx-1", "snap-1", "base")).Intent, &mf)
	w.refused(w.restore("base", "sbx-2"), KindUnavailable, "node name of node-1, which holds the data, has no room")

	// Each of these lacks one thing.
	node("node-2", func(n *Node) { n.VMMVersion += "x" })
	node("node-3", func(n *Node) { n.CPUFingerprint += "x" })
	node("node-4", func(n *Node) { n.Templates = []string{"sha256:other"} })
	node("node-5", func(n *Node) { n.Capacity.MemoryMiB = 1 })
	node("node-6", func(n *Node) { n.VMM += "x" })
	w.refused(w.restore("base", "sbx-2"), KindUnavailable, "and no other node that has the template, the same VMM")

	node("node-7", func(n *Node) { n.Capacity.MemoryMiB = 1 << 19 })
	node("node-8", nil)
	w.done(w.ok(w.restore("base", "sbx-2")).Intent, nil)
	require.Equal(t, NodeID("node-8"), w.sandbox("sbx-2").Owner, "the freest")
	w.refused(DeleteSnapshot{Now: w.now, Intent: "int-del", Org: "org-a", Snapshot: "snap-1"}, KindConflict, "in use")

	node("node-1", nil)
	w.ok(w.restore("base", "sbx-3"))
	require.Equal(t, NodeID("node-1"), w.sandbox("sbx-3").Owner, "at home where there is room")

	node("node-1", full)
	node("node-9", func(n *Node) { n.Level = levelRestoreElsewhere - 1 })
	w.refused(w.restore("base", "sbx-4"), KindUnavailable, "node name of node-1, which holds the data, has no room")
	node("node-9", nil)
	w.ok(w.restore("base", "sbx-4"))
}

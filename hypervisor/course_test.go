package hypervisor

import (
	"context"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"stillframe/fsm"
	"stillframe/netpolicy"
)

// fixedLog is a log that stands still.
type fixedLog struct{ state *fsm.State }

func (l fixedLog) State() *fsm.State        { return l.state }
func (l fixedLog) Changed() <-chan struct{} { return nil }
func (l fixedLog) Apply(context.Context, fsm.Command) (fsm.Result, error) {
	return fsm.Result{}, fsm.Errorf(fsm.KindUnavailable, "this log stands still")
}

// TestPlansAreTheSteps has a node take, for every kind of intent, the steps that the model takes, in that order: what
// TestModel explores is what a node does.
func TestPlansAreTheSteps(t *testing.T) {
	e := newExplorer(scenarios[0], "")
	state := e.logs.states[e.initial().log]
	do := func(cmd fsm.Command) fsm.Intent {
		next, res := state.Apply(cmd)
		require.Nil(t, res.Err)
		state = next
		return res.Intent
	}
	create := do(fsm.CreateSandbox{
		Now: modelTime, Intent: "int-create", Org: modelOrg, Sandbox: "sbx-new", TemplateName: "system/t", VCPU: 1,
		MemoryMiB: modelSize, DiskMiB: modelSize, TimeoutSec: 60,
	})
	snapshot := do(fsm.CreateSnapshot{
		Now: modelTime, Intent: "int-snap", Org: modelOrg, Sandbox: "sbx-0", Snapshot: "snap-0", Name: "x",
		GeneratedName: "g",
	})
	o := &Owner{cfg: Config{
		Node: nodeID(0), DataDir: t.TempDir(), Log: fixedLog{state},
		Images: &Images{Templates: []TemplateImage{{Digest: "sha256:0"}}}, Networks: struct{ Networks }{},
	}}
	requireSteps(t, o, create, Steps[fsm.IntentCreate])
	requireSteps(t, o, snapshot, Steps[fsm.IntentSnapshot])

	// What an earlier run of the daemon has left decides what is left to do.
	require.NoError(t, os.MkdirAll(o.snapshotTmp("snap-0"), 0o700))
	requireSteps(t, o, snapshot, []Step{StepPrepare})
	require.NoError(t, os.Rename(o.snapshotTmp("snap-0"), o.snapshotDir("snap-0")))
	require.NoError(t, os.WriteFile(snapshotFiles{o.snapshotDir("snap-0")}.manifest(), []byte("{}"), 0o600))
	requireSteps(t, o, snapshot, []Step{StepPublish, StepCommit})

	do(fsm.Complete{
		Now: modelTime, Intent: snapshot.ID, Owner: snapshot.Owner, Epoch: snapshot.Epoch,
		Manifest: &fsm.Manifest{Version: 1, TemplateDigest: "sha256:0"},
	})
	restore := do(fsm.RestoreSnapshot{
		Now: modelTime, Intent: "int-restore", Org: modelOrg, Sandbox: "sbx-back", SnapshotName: "x", TimeoutSec: 60,
	})
	o.cfg.Log = fixedLog{state}
	requireSteps(t, o, restore, Steps[fsm.IntentRestore])
	requireSteps(t, o, fsm.Intent{Kind: fsm.IntentDelete, Sandbox: "sbx-0"}, Steps[fsm.IntentDelete])
	requireSteps(t, o, fsm.Intent{Kind: fsm.IntentDeleteSnapshot, Snapshot: "snap-0"}, Steps[fsm.IntentDeleteSnapshot])
	requireSteps(t, o, fsm.Intent{Kind: fsm.IntentSetPolicy, Sandbox: "sbx-0"}, Steps[fsm.IntentSetPolicy])
	require.Len(t, Steps, 6, "a kind of intent that this test does not know")
}

func requireSteps(t *testing.T, o *Owner, in fsm.Intent, want []Step) {
	t.Helper()
	p, err := o.plan(in)
	require.NoError(t, err)
	require.NotNil(t, p.undo)
	// The steps within a step are the network's, and not the plan's.
	within := slices.Concat(netpolicy.CreateSteps, netpolicy.ReplaceSteps)
	want = slices.DeleteFunc(slices.Clone(want), func(s Step) bool { return slices.Contains(within, string(s)) })
	require.Equal(t, want, p.names(), "%s", in.Kind)
}

// TestPlanningFailsWithAnUndo: what an earlier run has left is taken away also when nothing can be planned any more.
func TestPlanningFailsWithAnUndo(t *testing.T) {
	o := &Owner{cfg: Config{Node: nodeID(0), DataDir: t.TempDir(), Log: fixedLog{fsm.New()}, Images: &Images{}}}
	for kind := range Steps {
		p, err := o.plan(fsm.Intent{Kind: kind, Sandbox: "sbx-0", Snapshot: "snap-0"})
		require.NotNil(t, p.undo, "%s", kind)
		if err == nil {
			require.Contains(t, []fsm.IntentKind{fsm.IntentDelete, fsm.IntentDeleteSnapshot, fsm.IntentSetPolicy}, kind)
		}
	}
	p, err := o.plan(fsm.Intent{Kind: "another"})
	require.Error(t, err)
	require.NotNil(t, p.undo)
}

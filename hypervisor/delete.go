package hypervisor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"stillframe/fsm"
)

func (o *Owner) planDelete(in fsm.Intent) plan {
	return plan{undo: nothingToUndo, steps: []step{
		{StepStop, func(ctx context.Context) error { return o.stopVMM(ctx, in.Sandbox) }},
		{StepUnlink, func(ctx context.Context) error { return o.destroyNetwork(ctx, in.Sandbox) }},
		{StepRemove, func(context.Context) error { return os.RemoveAll(o.sandboxDir(in.Sandbox)) }},
		{StepCommit, nil},
	}}
}

func (o *Owner) planDeleteSnapshot(in fsm.Intent) plan {
	return plan{undo: nothingToUndo, steps: []step{
		{StepRemove, func(context.Context) error { return o.removeSnapshot(in.Snapshot) }},
		{StepCommit, nil},
	}}
}

// nothingToUndo is for what only takes away: a deletion that failed leaves what it has not come to.
func nothingToUndo(context.Context, *fsm.Complete) {}

// removeSnapshot removes a snapshot's data. The folder loses its final name first: from then on the snapshot is gone,
// whatever becomes of the rest, which the next start sweeps up. An error means that nothing is gone; were it given for
// what comes after, a snapshot whose deletion failed would be listed again without its data.
func (o *Owner) removeSnapshot(id fsm.SnapshotID) error {
	doomed := o.snapshotDir(id) + goneSuffix
	if err := os.RemoveAll(doomed); err != nil {
		return err
	}
	if err := os.Rename(o.snapshotDir(id), doomed); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := errors.Join(os.RemoveAll(doomed), os.RemoveAll(o.snapshotTmp(id))); err != nil {
		o.log.Error("a snapshot's files could not be removed whole; the next start tries again", "snapshot", id,
			"error", err)
	}
	return nil
}

// removeSnapshotFolder removes one folder below snapshots/, whatever its name.
func (o *Owner) removeSnapshotFolder(name string) error {
	return os.RemoveAll(filepath.Join(o.snapshotsDir(), name))
}

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
	return plan{steps: []step{
		{StepStop, func(ctx context.Context) error { return o.stopVMM(ctx, in.Sandbox) }},
		{StepUnlink, func(ctx context.Context) error { return o.destroyNetwork(ctx, in.Sandbox) }},
		{StepRemove, func(context.Context) error { return os.RemoveAll(o.sandboxDir(in.Sandbox)) }},
		o.commit(in, nil),
	}}
}

func (o *Owner) planDeleteSnapshot(in fsm.Intent) plan {
	return plan{steps: []step{
		{StepRemove, func(context.Context) error { return o.removeSnapshot(in.Snapshot) }},
		o.commit(in, nil),
	}}
}

// removeSnapshot removes a snapshot's data. The folder loses its final name first, so that a removal that is cut short
// leaves nothing that looks whole.
func (o *Owner) removeSnapshot(id fsm.SnapshotID) error {
	doomed := o.snapshotDir(id) + ".gone"
	if err := os.RemoveAll(doomed); err != nil {
		return err
	}
	if err := os.Rename(o.snapshotDir(id), doomed); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return errors.Join(os.RemoveAll(doomed), os.RemoveAll(o.snapshotTmp(id)))
}

// removeSnapshotFolder removes one folder below snapshots/, whatever its name.
func (o *Owner) removeSnapshotFolder(name string) error {
	return os.RemoveAll(filepath.Join(o.snapshotsDir(), name))
}

package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"stillframe/fsm"
	"stillframe/hypervisor/vmm"
)

// takeUp brings the node from whatever an earlier run left to what the log says: running VMs are adopted and, where a
// snapshot was interrupted in its pause, resumed; VMs that died meanwhile are reported; what no sandbox or snapshot
// accounts for is removed. Open intents are not touched here: carrying them out again undoes or finishes them.
func (o *Owner) takeUp(ctx context.Context, state *fsm.State) error {
	local, err := o.localSandboxes()
	if err != nil {
		return err
	}
	for _, id := range local {
		if !keepsSandbox(state, o.cfg.Node, id) {
			o.log.Warn("removing a sandbox that the log does not know", "sandbox", id)
			o.metrics.takenUp.WithLabelValues("removed").Inc()
			if err := o.destroy(ctx, id); err != nil {
				return fmt.Errorf("remove leftover sandbox %s: %w", id, err)
			}
		}
	}
	for _, sb := range state.SandboxesOn(o.cfg.Node) {
		if !takesUp(sb) {
			continue
		}
		if err := o.adopt(ctx, sb); err != nil {
			return fmt.Errorf("sandbox %s: %w", sb.ID, err)
		}
	}
	if err := o.copies.load(); err != nil {
		return fmt.Errorf("copies of other nodes' snapshots: %w", err)
	}
	return o.sweepSnapshots(state)
}

func (o *Owner) localSandboxes() ([]fsm.SandboxID, error) {
	entries, err := os.ReadDir(o.sandboxesDir())
	if err != nil {
		return nil, err
	}
	var ids []fsm.SandboxID
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "sbx-") && e.IsDir() {
			ids = append(ids, fsm.SandboxID(e.Name()))
		}
	}
	return ids, nil
}

// adopt takes up one VM, or reports that it is gone.
func (o *Owner) adopt(ctx context.Context, sb fsm.Sandbox) error {
	m, err := o.reattach(ctx, sb)
	if errors.Is(err, vmm.ErrGone) || errors.Is(err, os.ErrNotExist) {
		o.metrics.takenUp.WithLabelValues("lost").Inc()
		o.log.Error("VM lost while the daemon was not running", "sandbox", sb.ID, "error", err)
		const reason = "its VMM ended while the daemon was not running"
		if sb.State == fsm.SandboxSnapshotting {
			// The snapshot intent is open and will say so, if the outcome of an earlier run does not come first.
			o.workers.Go(func() { o.reportStopped(sb.ID, reason) })
			return nil
		}
		return o.propose(ctx, stopped(sb, reason))
	}
	if err != nil {
		return err
	}
	o.metrics.takenUp.WithLabelValues("adopted").Inc()
	if m.egress.mendable && m.egress.fault != nil {
		o.workers.Go(func() { o.keepApplying(m) })
	}
	o.log.Info("VM taken up again", "sandbox", sb.ID, "pid", m.proc.Record().PID)
	if gone := o.ensureRunning(ctx, sb.ID, sb.State == fsm.SandboxSnapshotting); gone != "" {
		o.log.Error("VM lost at take-up", "sandbox", sb.ID, "reason", gone)
	}
	return nil
}

func (o *Owner) reattach(ctx context.Context, sb fsm.Sandbox) (*machine, error) {
	rec, err := findVMM(machineFiles{o.sandboxDir(sb.ID)})
	if err != nil {
		return nil, err
	}
	proc, err := vmm.Adopt(rec)
	if err != nil {
		return nil, err
	}
	e, err := o.takeUpNetwork(ctx, sb)
	if err != nil {
		return nil, errors.Join(err, proc.Close())
	}
	return o.attach(sb.ID, e, proc)
}

// resumePatience bounds how long a VM may be left paused because its VMM does not answer.
const resumePatience = 10 * time.Second

// vmmNotRunning is why a sandbox is stopped whose VMM's end nobody has seen.
const vmmNotRunning = "its VMM is not running"

// ensureRunning resumes a VM that stands still. It is the last line of "a source is never left paused": where the VMM
// does not answer now, a goroutine goes on trying for as long as the VMM lives. doubt says that a request to pause may
// still be on its way to a VMM that hung: that the VM runs now does not mean that it will in a moment, so it is looked
// at again. The result says why the VM is gone, if it is.
func (o *Owner) ensureRunning(ctx context.Context, id fsm.SandboxID, doubt bool) (gone string) {
	m, err := o.machine(id)
	if err != nil {
		return vmmNotRunning
	}
	tryCtx, cancel := context.WithTimeout(ctx, resumePatience)
	defer cancel()
	err = o.resumeIfPaused(tryCtx, m)
	switch {
	case !m.proc.Alive():
		return "its VMM ended: " + m.proc.ExitStatus()
	case err != nil:
		o.log.Error("the VMM does not answer; trying on to resume its VM", "sandbox", id, "error", err)
	case !doubt:
		return ""
	}
	o.workers.Add(1)
	go func() {
		defer o.workers.Done()
		o.keepResuming(m)
	}()
	return ""
}

// settledAfter is how many looks in a row, a second apart, must find the VM running before keepResuming believes it: a
// VMM that hung carries out what waited in its socket in no order that one could rely on.
const settledAfter = 3

func (o *Owner) keepResuming(m *machine) {
	for found := 0; found < settledAfter; {
		select {
		case <-m.detached:
			return
		case <-m.proc.Exited():
			return
		case <-time.After(time.Second):
		}
		if sb, ok := o.cfg.Log.State().Sandbox(m.id); !ok || sb.State == fsm.SandboxSnapshotting {
			found = 0 // a snapshot under way pauses it rightly, and sees to it itself
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), resumePatience)
		err := o.resumeIfPaused(ctx, m)
		cancel()
		if found++; err != nil {
			found = 0
		}
	}
	o.log.Info("the VMM answers and its VM runs", "sandbox", m.id)
}

func (o *Owner) resumeIfPaused(ctx context.Context, m *machine) error {
	ctx, cancel := m.untilExit(ctx)
	defer cancel()
	state, err := m.api.State(ctx)
	if err != nil {
		return err
	}
	switch state {
	case vmm.StateRunning:
		return nil
	case vmm.StatePaused:
		if fsm.Bug("no-resume") {
			return nil
		}
		o.metrics.takenUp.WithLabelValues("resumed").Inc()
		o.log.Warn("resuming a VM that was left paused", "sandbox", m.id)
		return o.metrics.vmmCall("vm.resume", func() error { return m.api.Resume(ctx) })
	}
	return fmt.Errorf("its VM is %s", state)
}

// sweepSnapshots removes snapshot folders that nothing accounts for: of snapshots that failed or were deleted while
// this node could not hear of it.
func (o *Owner) sweepSnapshots(state *fsm.State) error {
	entries, err := os.ReadDir(o.snapshotsDir())
	if err != nil {
		return err
	}
	for _, e := range entries {
		if keepsSnapshot(state, o.cfg.Node, e.Name()) {
			continue
		}
		o.log.Warn("removing snapshot data that the log does not account for", "folder", e.Name())
		o.metrics.takenUp.WithLabelValues("removed").Inc()
		if err := o.removeSnapshotFolder(e.Name()); err != nil {
			return err
		}
	}
	return nil
}

// propose puts a command of the owner's own into the log, trying again while its outcome is not known: the commands it
// is used for are fenced, so that repeating one is harmless. A refusal as superseded is success: the log has moved on.
func (o *Owner) propose(ctx context.Context, cmd func() fsm.Command) error {
	for {
		_, err := o.cfg.Log.Apply(ctx, cmd())
		var refused *fsm.Error
		if err == nil || (errors.As(err, &refused) && refused.Kind == fsm.KindSuperseded) {
			return nil
		}
		if refused != nil && refused.Kind != fsm.KindUnknown && refused.Kind != fsm.KindUnavailable {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// stopped is the report that a running sandbox has lost its VM, made anew for every try so that it bears its time.
func stopped(sb fsm.Sandbox, reason string) func() fsm.Command {
	return func() fsm.Command {
		return fsm.ReportStopped{Now: fsm.At(time.Now()), Sandbox: sb.ID, Owner: sb.Owner, Epoch: sb.Epoch, Reason: reason}
	}
}

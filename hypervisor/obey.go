package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"stillframe/fsm"
)

// errSuperseded is why an intent under way is given up: the log has closed it without this node, which the leader had
// given up for lost.
var errSuperseded = errors.New("the log has closed the intent: this node was given up for lost")

// job is an intent under way.
type job struct {
	in     fsm.Intent
	cancel context.CancelCauseFunc
	// decided is set when either its commit has begun or it has been given up, whichever came first.
	decided bool
}

// end takes a job off the books and has the loop look for what waited for it.
func (o *Owner) end(in fsm.Intent) {
	o.mu.Lock()
	o.jobs[in.ID].cancel(context.Canceled)
	delete(o.jobs, in.ID)
	o.mu.Unlock()
	o.wakeUp()
	o.workers.Done()
}

func (o *Owner) wakeUp() {
	select {
	case o.wake <- struct{}{}:
	default: // it is to look anyway
	}
}

// mayCommit says whether a job may propose its outcome; from then on only the log's answer counts.
func (o *Owner) mayCommit(id fsm.IntentID) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	j := o.jobs[id]
	if j == nil || j.decided {
		return false
	}
	j.decided = true
	return true
}

// obey gives up jobs that the log has closed against what they do. A deletion goes on to its end: that is what the log
// wants, too.
func (o *Owner) obey(state *fsm.State) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, j := range o.jobs {
		if j.decided || j.in.Kind == fsm.IntentDelete || j.in.Kind == fsm.IntentDeleteSnapshot {
			continue
		}
		if closedWithout(state, j.in) {
			j.decided = true
			j.cancel(errSuperseded)
		}
	}
}

// comeBack compares the node with the log after it was given up for lost and is there again: what was deleted
// meanwhile is destroyed, and VMs that ended are reported. Without an error it has seen to everything.
func (o *Owner) comeBack(ctx context.Context) error {
	// The folders are listed before the state is read: what is made meanwhile is not among them.
	sandboxes, err := o.localSandboxes()
	if err != nil {
		return err
	}
	snapshots, err := os.ReadDir(o.snapshotsDir())
	if err != nil {
		return err
	}
	state := o.cfg.Log.State()
	var errs []error
	for _, id := range sandboxes {
		if !keepsSandbox(state, o.cfg.Node, id) {
			errs = append(errs, o.destroyStray(ctx, id))
		}
	}
	for _, e := range snapshots {
		if name, _, _ := strings.Cut(e.Name(), "."); !keepsSnapshot(state, o.cfg.Node, e.Name()) {
			errs = append(errs, o.removeStray(fsm.SnapshotID(name), e.Name()))
		}
	}
	for _, sb := range state.SandboxesOn(o.cfg.Node) {
		if _, err := o.machine(sb.ID); err != nil && sb.State == fsm.SandboxRunning {
			errs = append(errs, o.reportStray(ctx, sb))
		}
	}
	return errors.Join(errs...)
}

// errOccupied says that a job is about the thing: it is looked at again when that has ended.
var errOccupied = errors.New("an intent on it is under way")

func (o *Owner) destroyStray(ctx context.Context, id fsm.SandboxID) error {
	if o.occupied(id, "") {
		return fmt.Errorf("sandbox %s: %w", id, errOccupied)
	}
	o.log.Warn("removing a sandbox that the log no longer has", "sandbox", id)
	o.metrics.takenUp.WithLabelValues("removed").Inc()
	return o.destroy(ctx, id)
}

func (o *Owner) removeStray(id fsm.SnapshotID, folder string) error {
	if o.occupied("", id) {
		return fmt.Errorf("snapshot %s: %w", id, errOccupied)
	}
	o.log.Warn("removing snapshot data that the log no longer has", "snapshot", id, "folder", folder)
	o.metrics.takenUp.WithLabelValues("removed").Inc()
	return o.removeSnapshotFolder(folder)
}

func (o *Owner) reportStray(ctx context.Context, sb fsm.Sandbox) error {
	if o.occupied(sb.ID, "") {
		return fmt.Errorf("sandbox %s: %w", sb.ID, errOccupied)
	}
	return o.propose(ctx, stopped(sb, vmmNotRunning))
}

// occupied says whether a job is about a sandbox or a snapshot.
func (o *Owner) occupied(sandbox fsm.SandboxID, snapshot fsm.SnapshotID) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, j := range o.jobs {
		if (sandbox != "" && j.in.Sandbox == sandbox) || (snapshot != "" && j.in.Snapshot == snapshot) {
			return true
		}
	}
	return false
}

// watchEpoch starts comeBack, in a goroutine of its own, when the log says that this node was away: its epoch has
// moved. Only one runs at a time; where it could not do everything it is started again at the next change.
func (o *Owner) watchEpoch(ctx context.Context, state *fsm.State) {
	self, ok := state.Node(o.cfg.Node)
	if !ok || self.Lost() || self.Removed() {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if self.Epoch == o.seenEpoch || o.comingBack || o.stopping {
		return
	}
	o.comingBack = true
	o.workers.Add(1)
	go func() {
		defer o.workers.Done()
		err := o.comeBack(ctx)
		if err != nil {
			o.log.Warn("not everything that is of no use any more could be removed; trying again", "error", err)
		}
		o.mu.Lock()
		o.comingBack = false
		if err == nil {
			o.seenEpoch = self.Epoch
		}
		o.mu.Unlock()
	}()
}

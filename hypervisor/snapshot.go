package hypervisor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"stillframe/fsm"
	"stillframe/hypervisor/guest"
	"stillframe/hypervisor/store"
	"stillframe/hypervisor/vmm"
)

// exposure is a snapshot on its way to ready.
type exposure struct {
	o     *Owner
	in    fsm.Intent
	sn    fsm.Snapshot
	m     *machine
	tmp   snapshotFiles
	image string // digest of the template image under the disk

	ram, disk *store.Capture
	paused    bool
	pausedAt  time.Time
	manifest  fsm.Manifest
}

func (o *Owner) snapshotTmp(id fsm.SnapshotID) string { return o.snapshotDir(id) + tmpSuffix }

// planSnapshot also serves an intent that an earlier run of the daemon left open: the data that run had published is
// completed, anything less is undone and the intent fails, because the instant that was asked for has passed.
func (o *Owner) planSnapshot(in fsm.Intent) (plan, error) {
	e := &exposure{o: o, in: in, tmp: snapshotFiles{o.snapshotTmp(in.Snapshot)}}
	sn, ok := o.cfg.Log.State().Snapshot(in.Snapshot)
	e.sn = sn
	if !ok {
		return plan{undo: e.undo}, fsm.Errorf(fsm.KindInternal, "intent %s is for snapshot %s, which is not there", in.ID,
			in.Snapshot)
	}
	do := map[Step]func(context.Context) error{
		StepPrepare: e.prepare, StepAhead: e.ahead, StepPause: e.pause, StepVMSnapshot: e.vmSnapshot,
		StepCapture: e.capture, StepResume: e.resume, StepClock: e.setClock, StepVerify: e.verify, StepDigest: e.digest,
		StepPublish: e.publish,
	}
	mf, err := readManifest(o.snapshotDir(in.Snapshot))
	published := err == nil
	_, err = os.Stat(e.tmp.dir)
	begun := err == nil
	switch {
	case published:
		e.manifest = mf
		do[StepPublish] = func(context.Context) error { return o.files.SyncDir(o.snapshotsDir()) }
	case begun:
		do[StepPrepare] = func(context.Context) error {
			return fsm.Errorf(fsm.KindUnavailable, "the node was restarted while snapshot %s was being taken", sn.Name)
		}
	default:
		sb, ok := o.cfg.Log.State().Sandbox(in.Sandbox)
		if !ok {
			return plan{undo: e.undo}, fsm.Errorf(fsm.KindInternal, "intent %s is for sandbox %s, which is not there", in.ID,
				in.Sandbox)
		}
		e.image = sb.TemplateDigest
	}
	p := plan{undo: e.undo, fill: e.outcome}
	for _, name := range snapshotSteps(published, begun) {
		p.steps = append(p.steps, step{name, do[name]})
	}
	return p, nil
}

// outcome says that the snapshot is ready, and what has become of its source.
func (e *exposure) outcome(c *fsm.Complete) {
	c.Manifest = &e.manifest
	if e.in.KillAfter {
		c.NextIntent = e.o.cfg.NewIntentID()
	}
	if _, err := e.o.machine(e.in.Sandbox); err != nil {
		c.SandboxStopped = vmmNotRunning
	}
}

// undo leaves the source running and no file behind. It says why the source's VM is gone, where it is.
func (e *exposure) undo(ctx context.Context, c *fsm.Complete) {
	ctx, cancel := context.WithTimeout(ctx, e.o.cfg.Deadline)
	defer cancel()
	gone := e.o.ensureRunning(ctx, e.in.Sandbox, e.paused)
	for _, c := range []*store.Capture{e.ram, e.disk} {
		if c != nil {
			if err := c.Abort(); err != nil {
				e.o.log.Warn("a capture was not undone cleanly", "snapshot", e.sn.ID, "error", err)
			}
		}
	}
	if err := e.o.removeSnapshot(e.in.Snapshot); err != nil {
		e.o.log.Error("a failed snapshot's files could not be removed; the next start tries again", "snapshot", e.sn.ID,
			"error", err)
	}
	if gone != "" {
		c.SandboxStopped = gone
		c.Error = fsm.Errorf(fsm.KindConflict, "the snapshot could not be taken: the sandbox has stopped (%s)", gone)
	}
}

func (e *exposure) prepare(context.Context) (err error) {
	if e.m, err = e.o.machine(e.in.Sandbox); err != nil {
		return err
	}
	if err := e.o.files.EnsureSpace(e.o.snapshotsDir(), minimumSpace); err != nil {
		return err
	}
	return os.Mkdir(e.tmp.dir, 0o700)
}

// both does the same to RAM and disk at once and gives the first error.
func (e *exposure) both(f func(name string, c *store.Capture) error) error {
	var g errgroup.Group
	g.Go(func() error { return f("ram", e.ram) })
	g.Go(func() error { return f("disk", e.disk) })
	return g.Wait()
}

// ahead moves whatever can be moved while the guest still runs, so that the pause has little left to do.
func (e *exposure) ahead(ctx context.Context) error {
	var g errgroup.Group
	g.Go(func() (err error) {
		e.ram, err = e.o.files.Begin(ctx, store.Request{Source: e.m.files.ram(), Dest: e.tmp.ram(), Mapped: true})
		return err
	})
	g.Go(func() (err error) {
		e.disk, err = e.o.files.Begin(ctx, store.Request{Source: e.m.files.disk(), Dest: e.tmp.disk()})
		return err
	})
	return g.Wait()
}

func (e *exposure) pause(ctx context.Context) error {
	// Marked before the call: when its outcome is not known, the VM must be resumed.
	e.paused, e.pausedAt = true, time.Now()
	return e.o.metrics.vmmCall("vm.pause", func() error { return e.m.api.Pause(ctx) })
}

func (e *exposure) vmSnapshot(ctx context.Context) error {
	return e.o.metrics.vmmCall("vm.snapshot", func() error { return e.m.api.Snapshot(ctx, e.tmp.dir) })
}

// capture comes after vm.snapshot, never before: saving device state may still write to the guest's memory.
func (e *exposure) capture(ctx context.Context) error {
	if fsm.Bug("torn") {
		_ = e.m.api.Resume(ctx) // deliberately wrong
		defer func() { _ = e.m.api.Pause(ctx) }()
		time.Sleep(100 * time.Millisecond)
	}
	return e.both(func(_ string, c *store.Capture) error {
		_, err := c.Freeze(ctx)
		return err
	})
}

func (e *exposure) resume(ctx context.Context) error {
	if err := e.o.metrics.vmmCall("vm.resume", func() error { return e.m.api.Resume(ctx) }); err != nil {
		return err
	}
	held := time.Since(e.pausedAt)
	e.paused = false
	e.manifest.PauseNanos = held.Nanoseconds()
	e.manifest.TakenAt = fsm.At(e.pausedAt)
	e.o.metrics.pause.Observe(held.Seconds())
	return nil
}

// setClock gives the source's wall clock the time it stood still. A guest whose agent does not answer keeps a clock
// that lags by the pause; that is no reason to give up a snapshot.
func (e *exposure) setClock(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := e.m.guest.SetIdentity(ctx, guest.Identity{SandboxID: string(e.in.Sandbox)})
	if err != nil {
		e.o.log.Warn("the source's clock was not set after the pause", "sandbox", e.in.Sandbox, "error", err)
	}
	return nil
}

func (e *exposure) verify(context.Context) error {
	info, err := vmm.CheckSnapshot(e.tmp.dir)
	if err != nil {
		return err
	}
	if !info.ExternalRAM {
		return errors.New("the VMM did not leave the RAM to its file")
	}
	return nil
}

func (e *exposure) digest(ctx context.Context) error {
	files := make([]fsm.File, 2, 4)
	methods := make([]string, 2)
	err := e.both(func(name string, c *store.Capture) error {
		r, err := c.Finish(ctx)
		if err != nil {
			return err
		}
		i := map[string]int{"ram": 0, "disk": 1}[name]
		files[i] = fsm.File{Name: name, Size: r.Size, Stored: r.Stored, Digest: r.Digest}
		methods[i] = string(r.Method)
		e.o.log.Info("captured", "snapshot", e.sn.ID, "file", name, "method", r.Method, "reason", r.Reason,
			"stored_bytes", r.Stored, "ahead", r.Begin.Duration, "in_pause", r.Freeze.Duration,
			"in_pause_bytes", r.Freeze.Bytes)
		return nil
	})
	if err != nil {
		return err
	}
	for _, small := range []string{vmm.ConfigFile, vmm.StateFile} {
		f, err := describeSmall(e.tmp.dir, small)
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	e.manifest.Files = files
	e.manifest.CloneMethod = methods[0]
	return nil
}

func (e *exposure) publish(context.Context) error {
	self, ok := e.o.cfg.Log.State().Node(e.o.cfg.Node)
	if !ok {
		return fsm.Errorf(fsm.KindUnavailable, "this node is not registered")
	}
	e.manifest.Version = 1
	e.manifest.VMM, e.manifest.VMMVersion = self.VMM, self.VMMVersion
	e.manifest.CPUFingerprint = self.CPUFingerprint
	e.manifest.TemplateDigest = e.image
	raw, err := json.MarshalIndent(e.manifest, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(e.tmp.manifest(), raw, 0o600); err != nil {
		return err
	}
	if fsm.Bug("early-commit") {
		time.AfterFunc(2*time.Second, func() { _ = e.o.files.Publish(e.tmp.dir, e.o.snapshotDir(e.sn.ID)) })
		return nil // deliberately wrong
	}
	return e.o.files.Publish(e.tmp.dir, e.o.snapshotDir(e.sn.ID))
}

// readManifest reads the manifest of a published snapshot. Publishing is by rename after everything is synced, so a
// folder with the final name is whole; a manifest that does not parse is reported, not mended.
func readManifest(dir string) (fsm.Manifest, error) {
	raw, err := os.ReadFile(snapshotFiles{dir}.manifest())
	if err != nil {
		return fsm.Manifest{}, err
	}
	var mf fsm.Manifest
	if err := json.Unmarshal(raw, &mf); err != nil {
		return fsm.Manifest{}, fmt.Errorf("manifest in %s: %w", dir, err)
	}
	for _, f := range mf.Files {
		if _, err := os.Stat(filepath.Join(dir, f.Name)); err != nil {
			return fsm.Manifest{}, err
		}
	}
	return mf, nil
}

// describeSmall digests a file of device state.
func describeSmall(dir, name string) (fsm.File, error) {
	raw, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return fsm.File{}, err
	}
	sum := sha256.Sum256(raw)
	return fsm.File{
		Name: name, Size: int64(len(raw)), Stored: int64(len(raw)), Digest: "sha256:" + hex.EncodeToString(sum[:]),
	}, nil
}

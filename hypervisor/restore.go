package hypervisor

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sync/errgroup"

	"stillframe/fsm"
	"stillframe/hypervisor/vmm"
)

func (o *Owner) planRestore(in fsm.Intent) (plan, error) {
	b, err := o.newBirth(in)
	if err != nil {
		return plan{undo: b.undo}, err
	}
	sn, ok := o.cfg.Log.State().Snapshot(b.sb.Snapshot)
	if !ok || sn.Manifest == nil {
		return plan{undo: b.undo}, fsm.Errorf(fsm.KindInternal, "snapshot %s is not there", b.sb.Snapshot)
	}
	if err := o.compatible(sn); err != nil {
		return plan{undo: b.undo}, err
	}
	image, err := o.cfg.Images.ByDigest(sn.Manifest.TemplateDigest)
	if err != nil {
		return plan{undo: b.undo}, fsm.Wrap(fsm.KindUnavailable, err,
			"this node no longer has the image of template %s that snapshot %s was taken on", sn.TemplateName, sn.Name)
	}
	from := &origin{o: o, sn: sn}
	return plan{undo: b.undo, steps: []step{
		{StepFetch, from.fetch},
		{StepReserve, b.reserve},
		{StepNetwork, b.network},
		{StepDisk, func(ctx context.Context) error { return b.copyFile(ctx, from.files.disk(), b.files.disk()) }},
		{StepMemory, func(ctx context.Context) error { return b.copyFile(ctx, from.files.ram(), b.files.ram()) }},
		{StepVMMStart, b.startVMM},
		{StepVMRestore, func(ctx context.Context) error { return b.restoreVM(ctx, from.files, image) }},
		{StepVMResume, b.resumeVM},
		{StepGuestReady, b.guestReady},
		{StepIdentity, b.identity},
		{StepCommit, nil},
	}}, nil
}

// origin is the snapshot that a sandbox is restored from: the data of this node, or a copy of another's.
type origin struct {
	o     *Owner
	sn    fsm.Snapshot
	files snapshotFiles
}

func (f *origin) fetch(ctx context.Context) (err error) {
	if f.sn.Owner == f.o.cfg.Node {
		f.files = snapshotFiles{f.o.snapshotDir(f.sn.ID)}
		return nil
	}
	f.files, err = f.o.localCopy(ctx, f.sn)
	return err
}

// compatible refuses a snapshot that this node's VMM cannot restore: device state is only understood by the version
// that wrote it, and a guest must find the CPU features that it found at boot.
func (o *Owner) compatible(sn fsm.Snapshot) error {
	self, ok := o.cfg.Log.State().Node(o.cfg.Node)
	if !ok {
		return fsm.Errorf(fsm.KindUnavailable, "this node is not registered")
	}
	mf := sn.Manifest
	if mf.VMM != self.VMM || mf.VMMVersion != self.VMMVersion {
		return fsm.Errorf(fsm.KindConflict, "snapshot %s was taken with %s %s and this node runs %s %s: only the same "+
			"version restores it", sn.Name, mf.VMM, mf.VMMVersion, self.VMM, self.VMMVersion)
	}
	if mf.CPUFingerprint != self.CPUFingerprint {
		return fsm.Errorf(fsm.KindConflict, "snapshot %s was taken on a CPU with other features than this node's", sn.Name)
	}
	return nil
}

func (b *birth) copyFile(ctx context.Context, src, dst string) error {
	stats, err := b.o.files.Clone(ctx, src, dst)
	if err != nil {
		return err
	}
	b.o.log.Debug("file cloned", "sandbox", b.sb.ID, "file", dst, "method", stats.Method, "bytes", stats.Bytes,
		"took", stats.Duration)
	return nil
}

// restoreVM loads the device state over the sandbox's own clones of RAM and disk. The snapshot's own files are only
// read: the configuration that the VMM loads is a copy that names the sandbox's paths.
func (b *birth) restoreVM(ctx context.Context, from snapshotFiles, image TemplateImage) error {
	saved := snapshotFiles{b.files.saved()}
	if err := os.Mkdir(saved.dir, 0o700); err != nil {
		return err
	}
	var g errgroup.Group
	g.Go(func() error { return copySmall(from.config(), saved.config()) })
	g.Go(func() error { return copySmall(from.state(), saved.state()) })
	if err := g.Wait(); err != nil {
		return err
	}
	if err := vmm.PatchSnapshotConfig(saved.dir, vmm.ConfigEdits{
		Zones:      map[string]vmm.ZoneEdit{ramZone: {File: b.files.ram(), Shared: true}},
		DiskPaths:  map[string]string{baseDisk: image.Path, overlayDisk: b.files.disk()},
		Taps:       map[string]string{netDevice: tapName},
		SerialFile: b.files.serial(),
		Kernel:     b.o.cfg.Images.Kernel,
		Initramfs:  b.o.cfg.Images.Initramfs,
	}); err != nil {
		return err
	}
	if _, err := vmm.KeepClockStill(saved.dir); err != nil {
		return err
	}
	err := b.o.metrics.vmmCall("vm.restore", func() error {
		return b.m.api.Restore(ctx, vmm.RestoreConfig{SourceDir: saved.dir})
	})
	if err != nil {
		return err
	}
	return os.RemoveAll(saved.dir)
}

func (b *birth) resumeVM(ctx context.Context) error {
	return b.o.metrics.vmmCall("vm.resume", func() error { return b.m.api.Resume(ctx) })
}

// copySmall copies a file of device state: a few hundred KiB.
func copySmall(src, dst string) error {
	raw, err := os.ReadFile(src) // in the data folder
	if err != nil {
		return fmt.Errorf("snapshot data: %w", err)
	}
	return os.WriteFile(dst, raw, 0o600)
}

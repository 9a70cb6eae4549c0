package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"stillframe/fsm"
	"stillframe/hypervisor"
	"stillframe/hypervisor/vmm"
)

// restoreSize is the guest memory, in MiB, at which restores and the service's share are measured.
const restoreSize = 1024

// copySizeLimit is the largest guest, in MiB, measured on a filesystem without reflinks: there the pause grows with
// memory, and what that means is clear before 4 GiB.
const copySizeLimit = 1024

// place is one filesystem with a node and raw VMs on it.
type place struct {
	*bench
	kind string // "xfs" (reflinks) or "ext4" (none)
	fs   *loopFS
	raw  *rawHost
	svc  *service
}

func (b *bench) onFilesystem(ctx context.Context, kind string) (err error) {
	fs, err := mountLoop(ctx, b.dir, kind)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, fs.unmount()) }()
	choice, err := vmm.Detect(ctx, os.Getenv)
	if err != nil {
		return err
	}
	dir, err := hypervisor.FindImages(b.images)
	if err != nil {
		return err
	}
	images, err := hypervisor.LoadImages(dir)
	if err != nil {
		return err
	}
	svc, err := startService(ctx, filepath.Join(fs.mount, "node"), b)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, svc.stop()) }()
	b.say("on %s, VMM %s, memory kept by %s", kind, choice.Version, svc.node.Owner().CloneMethod())
	p := &place{bench: b, kind: kind, fs: fs, raw: &rawHost{dir: fs.mount, choice: choice, images: images}, svc: svc}
	for _, mib := range b.sizes {
		if kind == "ext4" && mib > copySizeLimit {
			continue
		}
		if err := p.size(ctx, mib); err != nil {
			return fmt.Errorf("%d MiB: %w", mib, err)
		}
	}
	if kind == "xfs" {
		return p.overhead(ctx)
	}
	return nil
}

// size measures everything that is measured at one guest size.
func (p *place) size(ctx context.Context, mib int) error {
	dumpPause, fullRestore, err := p.rawBaseline(ctx, mib)
	if err != nil {
		return fmt.Errorf("raw VMM: %w", err)
	}
	id, err := p.svc.create(ctx, mib)
	if err != nil {
		return err
	}
	g, err := p.svc.guest(ctx, id)
	if err != nil {
		return err
	}
	for _, rate := range []int{0, 20} {
		if err := g.load(ctx, mib, rate); err != nil {
			return err
		}
		if err := p.pauses(ctx, id, g, mib, rate, dumpPause); err != nil {
			return err
		}
		if rate == 0 {
			if err := p.twoSnapshots(ctx, id, mib); err != nil {
				return err
			}
			if mib == restoreSize {
				if err := p.restores(ctx, id, fullRestore); err != nil {
					return err
				}
			}
		}
		if err := g.unload(ctx); err != nil {
			return err
		}
	}
	return p.svc.remove(ctx, id)
}

// rawBaseline gives the pause of the VMM's own full dump of anonymous memory, and the time of its full restore.
func (p *place) rawBaseline(ctx context.Context, mib int) (pause, restore time.Duration, err error) {
	v, err := p.raw.boot(ctx, mib, false)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, v.end()) }()
	if err := v.load(ctx, mib, 0); err != nil {
		return 0, 0, err
	}
	dir := filepath.Join(p.fs.mount, "dump")
	defer os.RemoveAll(dir) //nolint:errcheck // the filesystem goes too
	pause, err = median(p.repeat, func() (time.Duration, error) {
		if err := os.RemoveAll(dir); err != nil {
			return 0, err
		}
		return v.stillness(ctx, func() error { return v.dump(ctx, dir) })
	})
	if err != nil || mib != restoreSize {
		return pause, 0, err
	}
	// The dumped VM must not compete for the CPU with its copy, nor write to the disk both use.
	if err := v.api.Pause(ctx); err != nil {
		return pause, 0, err
	}
	restore, err = median(p.repeat, func() (time.Duration, error) {
		if err := v.giveDisk(ctx, dir); err != nil {
			return 0, err
		}
		return p.raw.restore(ctx, dir)
	})
	return pause, restore, err
}

// pauses measures in the guest how long a snapshot stops it.
func (p *place) pauses(ctx context.Context, id fsm.SandboxID, g probe, mib, rate int, baseline time.Duration) error {
	method := ""
	pause, err := median(p.repeat, func() (time.Duration, error) {
		var sn fsm.Snapshot
		gap, err := g.stillness(ctx, func() (err error) {
			sn, err = p.svc.snapshot(ctx, id, "pause")
			return err
		})
		if err != nil {
			return 0, err
		}
		method = sn.Manifest.CloneMethod
		return gap, p.svc.removeSnapshot(ctx, sn.ID)
	})
	if err != nil {
		return err
	}
	what, aim := "idle", 0.03
	if rate > 0 {
		what, aim = fmt.Sprintf("%d MiB/s", rate), 0.3
	}
	if p.kind == "ext4" {
		aim = 1
	}
	if p.kind == "xfs" && rate == 0 && mib < restoreSize {
		aim = 0 // the aim is for 1 GiB and above: a small dump is quick too
	}
	p.add(Result{
		Name: fmt.Sprintf("guest pause, %s, %d MiB, %s", p.kind, mib, what), Value: ms(pause), Baseline: ms(baseline),
		Aim: aim, Unit: "ms", Note: "÷ full dump by the VMM; " + method,
	})
	return nil
}

// twoSnapshots measures how much disk a second snapshot of the same, mostly idle sandbox takes.
func (p *place) twoSnapshots(ctx context.Context, id fsm.SandboxID, mib int) error {
	var taken [2]float64
	var ids [2]fsm.SnapshotID
	for i := range taken {
		before, err := p.fs.used()
		if err != nil {
			return err
		}
		sn, err := p.svc.snapshot(ctx, id, fmt.Sprintf("size-%d", i))
		if err != nil {
			return err
		}
		after, err := p.fs.used()
		if err != nil {
			return err
		}
		taken[i], ids[i] = float64(after-before)/(1<<20), sn.ID
	}
	first := taken[0]
	note := "new bytes ÷ those of the first"
	if p.kind == "xfs" {
		// With reflinks the first takes no new bytes either; what it would take alone is what it is compared with.
		first, note = float64(mib)*3/4, "new bytes ÷ the memory in use"
	}
	p.add(Result{
		Name: fmt.Sprintf("second snapshot, %s, %d MiB", p.kind, mib), Value: taken[1], Baseline: first, Unit: "MiB",
		Note: note,
	})
	return errors.Join(p.svc.removeSnapshot(ctx, ids[0]), p.svc.removeSnapshot(ctx, ids[1]))
}

// restores measures the time of one restore until its first command has answered, and of many at once.
func (p *place) restores(ctx context.Context, id fsm.SandboxID, full time.Duration) error {
	sn, err := p.svc.snapshot(ctx, id, "restore")
	if err != nil {
		return err
	}
	var clones []fsm.SandboxID
	one, err := median(p.repeat, func() (time.Duration, error) {
		began := time.Now()
		id, err := p.restoreAndAsk(ctx)
		took := time.Since(began)
		if err == nil {
			err = p.svc.remove(ctx, id)
		}
		return took, err
	})
	if err != nil {
		return err
	}
	p.add(Result{
		Name: fmt.Sprintf("restore until first command, %s, %d MiB", p.kind, restoreSize), Value: ms(one),
		Baseline: ms(full), Aim: 0.5, Unit: "ms", Note: "÷ the VMM's full restore",
	})
	began := time.Now()
	clones = make([]fsm.SandboxID, p.clones)
	var all errgroup.Group
	for i := range clones {
		all.Go(func() (err error) {
			clones[i], err = p.restoreAndAsk(ctx)
			return err
		})
	}
	err = all.Wait()
	many := time.Since(began)
	for _, id := range clones {
		if id != "" {
			err = errors.Join(err, p.svc.remove(ctx, id))
		}
	}
	if err != nil {
		return err
	}
	p.add(Result{
		Name: fmt.Sprintf("%d clones at once, %s, %d MiB", p.clones, p.kind, restoreSize), Value: ms(many), Baseline: ms(one),
		Aim: 3, Unit: "ms", Note: "÷ one restore",
	})
	return p.svc.removeSnapshot(ctx, sn.ID)
}

func (p *place) restoreAndAsk(ctx context.Context) (fsm.SandboxID, error) {
	id, err := p.svc.restore(ctx, "restore")
	if err != nil {
		return "", err
	}
	g, err := p.svc.guest(ctx, id)
	if err == nil {
		_, err = g.sh(ctx, "true")
	}
	return id, err
}

// median calls measure n times and gives the middle result.
func median(n int, measure func() (time.Duration, error)) (time.Duration, error) {
	all := make([]time.Duration, n)
	for i := range all {
		var err error
		if all[i], err = measure(); err != nil {
			return 0, err
		}
	}
	slices.Sort(all)
	return all[n/2], nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

package main

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"stillframe/hypervisor/store"
	"stillframe/hypervisor/vmm"
)

// overhead measures what the service adds: the time of an API call less the time the raw VMM takes for the same, as a
// share of the call. The raw VM has its RAM in a file too, so that both do the same work.
func (p *place) overhead(ctx context.Context) error {
	rawBoot, rawSnapshot, rawRestore, err := p.rawOperations(ctx)
	if err != nil {
		return err
	}
	var apiBoot, apiSnapshot, apiRestore []time.Duration
	for range p.repeat {
		boot, snapshot, restore, err := p.apiOperations(ctx)
		if err != nil {
			return err
		}
		apiBoot, apiSnapshot, apiRestore = append(apiBoot, boot), append(apiSnapshot, snapshot), append(apiRestore, restore)
	}
	for _, f := range []struct {
		name string
		api  []time.Duration
		raw  time.Duration
	}{{"create", apiBoot, rawBoot}, {"snapshot", apiSnapshot, rawSnapshot}, {"restore", apiRestore, rawRestore}} {
		api, err := median(len(f.api), func() (time.Duration, error) {
			d := f.api[0]
			f.api = f.api[1:]
			return d, nil
		})
		if err != nil {
			return err
		}
		p.add(Result{
			Name: "service's share, " + f.name, Value: max(ms(api-f.raw), 0), Baseline: ms(api), Aim: 0.1, Unit: "ms",
			Note: "of the API call, beyond the raw VMM's time for it",
		})
	}
	return nil
}

// rawOperations gives the median times of the raw VMM's boot until the agent answers, snapshot and restore likewise.
func (p *place) rawOperations(ctx context.Context) (boot, snapshot, restore time.Duration, err error) {
	var boots, snapshots, restores []time.Duration
	for range p.repeat {
		b, s, r, err := p.rawOnce(ctx)
		if err != nil {
			return 0, 0, 0, err
		}
		boots, snapshots, restores = append(boots, b), append(snapshots, s), append(restores, r)
	}
	pick := func(all []time.Duration) time.Duration {
		i := -1
		m, _ := median(len(all), func() (time.Duration, error) { i++; return all[i], nil })
		return m
	}
	return pick(boots), pick(snapshots), pick(restores), nil
}

func (p *place) rawOnce(ctx context.Context) (boot, snapshot, restore time.Duration, err error) {
	began := time.Now()
	v, err := p.raw.boot(ctx, restoreSize, true)
	boot = time.Since(began)
	if err != nil {
		return 0, 0, 0, err
	}
	defer func() { err = errors.Join(err, v.end()) }()
	dir := filepath.Join(p.fs.mount, "state")
	defer os.RemoveAll(dir) //nolint:errcheck // the filesystem goes too
	began = time.Now()
	err = v.dump(ctx, dir)
	snapshot = time.Since(began)
	if err != nil {
		return 0, 0, 0, err
	}
	// The restore gets files of its own, made outside of what is timed: cloning is the service's work, not the VMM's. And
	// it gets device state of the same instant as the files: the VM has run on since what was timed above.
	if err = v.api.Pause(ctx); err != nil {
		return 0, 0, 0, err
	}
	if err = errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
		return 0, 0, 0, err
	}
	if err = v.api.Snapshot(ctx, dir); err != nil {
		return 0, 0, 0, err
	}
	files := store.New()
	for _, name := range []string{"ram", "disk"} {
		if _, err := files.Clone(ctx, filepath.Join(v.dir, name), filepath.Join(dir, name)); err != nil {
			return 0, 0, 0, err
		}
	}
	err = vmm.PatchSnapshotConfig(dir, vmm.ConfigEdits{
		Zones:     map[string]vmm.ZoneEdit{"ram": {File: filepath.Join(dir, "ram"), Shared: true}},
		DiskPaths: map[string]string{"overlay": filepath.Join(dir, "disk")},
	})
	if err != nil {
		return 0, 0, 0, err
	}
	restore, err = p.raw.restore(ctx, dir)
	return boot, snapshot, restore, err
}

func (p *place) apiOperations(ctx context.Context) (create, snapshot, restore time.Duration, err error) {
	sb, create, err := p.svc.call(ctx, http.MethodPost, "/v1/sandbox",
		map[string]any{"template_name": benchTemplate, "memory": restoreSize, "timeout": 3600}, http.StatusCreated)
	if err != nil {
		return 0, 0, 0, err
	}
	id, _ := sb["id"].(string)
	sn, snapshot, err := p.svc.call(ctx, http.MethodPost, "/v1/sandbox/"+id+"/snapshot/create",
		map[string]any{"name": "share"}, http.StatusCreated)
	if err != nil {
		return 0, 0, 0, err
	}
	snapshotID, _ := sn["id"].(string)
	clone, restore, err := p.svc.call(ctx, http.MethodPost, "/v1/snapshot/restore",
		map[string]any{"snapshot_name": "share", "timeout": 3600}, http.StatusCreated)
	if err != nil {
		return 0, 0, 0, err
	}
	cloneID, _ := clone["id"].(string)
	for _, path := range []string{"/v1/sandbox/" + cloneID, "/v1/sandbox/" + id, "/v1/snapshot/" + snapshotID} {
		if _, _, err := p.svc.call(ctx, http.MethodDelete, path, nil, http.StatusNoContent); err != nil {
			return 0, 0, 0, err
		}
	}
	return create, snapshot, restore, nil
}

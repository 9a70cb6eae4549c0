package vmmtest

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/hypervisor/vmm"
)

// TestSnapshotOfFileBackedMemory walks a VM whose RAM is a shared file through what the driver does with it.
func TestSnapshotOfFileBackedMemory(t *testing.T) {
	forEachVMM(t, func(t *testing.T, binary string) {
		source := startVMM(t, binary)
		source.boot(source.config())
		var s saved
		t.Run("refused while running", func(t *testing.T) { refusedWhileRunning(t, source) })
		t.Run("destination must be good", func(t *testing.T) { destinationMustBeGood(t, source) })
		t.Run("taken", func(t *testing.T) { s = taken(t, source) })
		if s.dir == "" {
			t.FailNow()
		}
		t.Run("restore", func(t *testing.T) { restoreContinues(t, binary, s) })
		t.Run("restore and resume in one", func(t *testing.T) { restoreAndResume(t, binary, s) })
		t.Run("three clones at once", func(t *testing.T) { threeClones(t, binary, s) })
		t.Run("snapshot of a clone", func(t *testing.T) { snapshotOfClone(t, binary, s) })
		t.Run("privately mapped", func(t *testing.T) { privatelyMapped(t, binary, s) })
		t.Run("failed restore", func(t *testing.T) { failedRestore(t, binary, s) })
		t.Run("disk full", func(t *testing.T) { diskFull(t, source) })
		source.awaitMore()
		requireWhole(t, source.serialBytes())
	})
}

func refusedWhileRunning(t *testing.T, v *vm) {
	dir := t.TempDir()
	requireRefused(t, v.snapshot(dir), 500)
	v.requireState(vmm.StateRunning)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, entries)
	requireRefused(t, v.api.Resume(within(t, time.Minute)), 500)
	v.requireState(vmm.StateRunning)
	v.awaitMore()
}

func destinationMustBeGood(t *testing.T, v *vm) {
	v.pause()
	defer v.resume()
	requireRefused(t, v.snapshot(filepath.Join(t.TempDir(), "missing")), 500)
	v.requireState(vmm.StatePaused)

	file := filepath.Join(t.TempDir(), "file")
	makeFile(t, file, 0)
	requireRefused(t, v.snapshot(file), 500)

	for _, name := range []string{vmm.ConfigFile, vmm.StateFile} {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("mine"), 0o600))
		requireRefused(t, v.snapshot(dir), 500)
		raw, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		require.Equal(t, "mine", string(raw), "%s was overwritten", name)
	}
	v.requireState(vmm.StatePaused)
}

// taken is a good snapshot: two small files, the guest stands still meanwhile and goes on afterwards.
func taken(t *testing.T, v *vm) saved {
	v.pause()
	v.requireState(vmm.StatePaused)
	requireRefused(t, v.api.Pause(within(t, time.Minute)), 500)
	v.requireState(vmm.StatePaused)
	before := len(v.serialBytes())
	disk := diskTick(t, v.disk())
	time.Sleep(10 * tickPause)
	require.Len(t, v.serialBytes(), before, "a paused guest printed")
	require.Equal(t, disk, diskTick(t, v.disk()), "a paused guest wrote to its disk")
	all := v.ticks()
	last := all[len(all)-1].number
	require.Contains(t, []uint64{last, last + 1}, disk, "what the guest wrote is in the disk file when it is paused")
	v.resume()

	s := v.save()
	info, err := vmm.CheckSnapshot(s.dir)
	require.NoError(t, err)
	require.True(t, info.ExternalRAM)
	entries, err := os.ReadDir(s.dir)
	require.NoError(t, err)
	require.Len(t, entries, 2, "memory in a shared file is left out")
	v.awaitMore()
	requireWhole(t, v.serialBytes())
	return s
}

// requireContinues checks that a restored guest went on exactly where the snapshot was taken: even a line that was half
// printed then is completed.
func requireContinues(t *testing.T, v *vm, s saved) {
	t.Helper()
	v.awaitMore()
	requireWhole(t, append(append([]byte{}, s.serial...), v.serialBytes()...))
}

func restoreContinues(t *testing.T, binary string, s saved) {
	v := startVMM(t, binary)
	require.NoError(t, v.restore(v.clone(s), false))
	v.requireState(vmm.StatePaused)
	time.Sleep(10 * tickPause)
	require.Empty(t, v.ticks(), "it runs although it was not asked to")
	v.resume()
	v.requireState(vmm.StateRunning)
	requireContinues(t, v, s)
	require.Greater(t, diskTick(t, v.disk()), diskTick(t, s.disk), "it writes to its own disk")
}

func restoreAndResume(t *testing.T, binary string, s saved) {
	v := startVMM(t, binary)
	require.NoError(t, v.restore(v.clone(s), true))
	v.requireState(vmm.StateRunning)
	requireContinues(t, v, s)
	requireRefused(t, v.restore(v.path("restore"), false), 500)
	requireRefused(t, v.api.Boot(within(t, time.Minute)), 500)
	requireRefused(t, v.api.Create(within(t, time.Minute), vmm.Config{}), 500)
	v.requireState(vmm.StateRunning)
}

func threeClones(t *testing.T, binary string, s saved) {
	var clones [3]*vm
	var dirs [3]string
	for i := range clones {
		clones[i] = startVMM(t, binary)
		dirs[i] = clones[i].clone(s)
	}
	var errs [3]error
	var wait sync.WaitGroup
	for i, v := range clones {
		wait.Go(func() { errs[i] = v.restore(dirs[i], true) })
	}
	wait.Wait()
	for i, v := range clones {
		require.NoError(t, errs[i])
		requireContinues(t, v, s)
	}
	// One stands still: the others have neither its memory nor its disk.
	clones[0].pause()
	still := diskTick(t, clones[0].disk())
	for _, v := range clones[1:] {
		v.awaitTick(still + 2*heapShare)
		require.Greater(t, diskTick(t, v.disk()), still)
		requireContinues(t, v, s)
	}
	require.Equal(t, still, diskTick(t, clones[0].disk()))
	clones[0].resume()
	requireContinues(t, clones[0], s)
}

func snapshotOfClone(t *testing.T, binary string, s saved) {
	first := startVMM(t, binary)
	require.NoError(t, first.restore(first.clone(s), true))
	first.awaitMore()
	again := first.save()
	info, err := vmm.CheckSnapshot(again.dir)
	require.NoError(t, err)
	require.True(t, info.ExternalRAM)
	second := startVMM(t, binary)
	require.NoError(t, second.restore(second.clone(again), true))
	again.serial = append(append([]byte{}, s.serial...), again.serial...)
	requireContinues(t, second, again)
}

// privatelyMapped restores without copying the RAM file: it must not change, and a snapshot then contains all memory.
func privatelyMapped(t *testing.T, binary string, s saved) {
	before := digest(t, s.ram)
	v := startVMM(t, binary)
	dir := v.clone(s)
	require.NoError(t, vmm.PatchSnapshotConfig(dir, vmm.ConfigEdits{
		Zones: map[string]vmm.ZoneEdit{zoneID: {File: s.ram, Shared: false}},
	}))
	require.NoError(t, v.restore(dir, true))
	requireContinues(t, v, s)
	second := v.save()
	info, err := vmm.CheckSnapshot(second.dir)
	require.NoError(t, err)
	require.False(t, info.ExternalRAM)
	require.GreaterOrEqual(t, info.MemoryBytes, int64(ramSize))
	require.NoError(t, v.proc.Kill(within(t, time.Minute)))
	require.Equal(t, before, digest(t, s.ram), "the saved memory was written to")

	clone := startVMM(t, binary)
	copyFile(t, second.disk, clone.disk())
	require.NoError(t, vmm.PatchSnapshotConfig(second.dir, vmm.ConfigEdits{
		DiskPaths: map[string]string{diskID: clone.disk()}, SerialFile: clone.serial(),
	}))
	require.NoError(t, clone.restore(second.dir, true))
	second.serial = append(append([]byte{}, s.serial...), second.serial...)
	requireContinues(t, clone, second)
}

// failedRestore tries every kind of bad snapshot in one process, which must then still restore a good one.
func failedRestore(t *testing.T, binary string, s saved) {
	v := startVMM(t, binary)
	good := v.clone(s)
	bad := map[string]func(dir string){
		"no folder":       func(dir string) { require.NoError(t, os.RemoveAll(dir)) },
		"no config":       func(dir string) { require.NoError(t, os.Remove(filepath.Join(dir, vmm.ConfigFile))) },
		"no state":        func(dir string) { require.NoError(t, os.Remove(filepath.Join(dir, vmm.StateFile))) },
		"truncated state": func(dir string) { truncate(t, filepath.Join(dir, vmm.StateFile)) },
		"truncated config": func(dir string) {
			truncate(t, filepath.Join(dir, vmm.ConfigFile))
		},
		"no disk": func(dir string) {
			require.NoError(t, vmm.PatchSnapshotConfig(dir, vmm.ConfigEdits{
				DiskPaths: map[string]string{diskID: filepath.Join(dir, "missing")},
			}))
		},
		"no memory": func(dir string) {
			require.NoError(t, vmm.PatchSnapshotConfig(dir, vmm.ConfigEdits{
				Zones: map[string]vmm.ZoneEdit{zoneID: {File: filepath.Join(dir, "missing"), Shared: true}},
			}))
		},
	}
	for name, spoil := range bad {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, f := range []string{vmm.ConfigFile, vmm.StateFile} {
				copyFile(t, filepath.Join(good, f), filepath.Join(dir, f))
			}
			spoil(dir)
			requireRefused(t, v.restore(dir, true), 500)
			v.requireState(vmm.StateNone)
			require.Empty(t, childrenOf(t, v.proc.Record().PID))
		})
	}
	require.NoError(t, v.restore(good, true))
	requireContinues(t, v, s)
}

func truncate(t *testing.T, path string) {
	t.Helper()
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.NoError(t, os.Truncate(path, st.Size()/2))
}

// TestSnapshotOfAnonymousMemory is the other way: the VMM dumps all memory itself.
func TestSnapshotOfAnonymousMemory(t *testing.T) {
	forEachVMM(t, func(t *testing.T, binary string) {
		for name, shared := range map[string]bool{"private": false, "shared": true} {
			t.Run(name, func(t *testing.T) {
				v := startVMM(t, binary)
				cfg := v.config()
				cfg.Memory = vmm.Memory{Size: ramSize, Shared: shared}
				v.boot(cfg)
				s := v.save()
				info, err := vmm.CheckSnapshot(s.dir)
				require.NoError(t, err)
				require.False(t, info.ExternalRAM)
				require.GreaterOrEqual(t, info.MemoryBytes, int64(ramSize))
				v.awaitMore()
				requireWhole(t, v.serialBytes())

				clone := startVMM(t, binary)
				copyFile(t, s.disk, clone.disk())
				require.NoError(t, vmm.PatchSnapshotConfig(s.dir, vmm.ConfigEdits{
					DiskPaths: map[string]string{diskID: clone.disk()}, SerialFile: clone.serial(),
				}))
				require.NoError(t, clone.restore(s.dir, false))
				clone.requireState(vmm.StatePaused)
				clone.resume()
				requireContinues(t, clone, s)
			})
		}
	})
}

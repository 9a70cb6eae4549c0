package vmmtest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"stillframe/hypervisor/vmm"
)

const (
	ramSize  = 256 << 20
	diskSize = 16 << 20
	zoneID   = "ram"
	diskID   = "data"
	netID    = "net"
	guestMAC = "02:5f:00:00:07:02"
)

// vm is one VMM process with the files of its VM in a folder of its own.
type vm struct {
	t    *testing.T
	dir  string
	proc *vmm.Process
	api  *vmm.Client
}

func (v *vm) path(name string) string { return filepath.Join(v.dir, name) }
func (v *vm) ram() string             { return v.path("ram") }
func (v *vm) disk() string            { return v.path("disk") }
func (v *vm) serial() string          { return v.path("serial.log") }

// startVMM starts a process without a VM. It is killed when the test ends, and whatever it started must be gone then.
func startVMM(t *testing.T, binary string, change ...func(*vmm.StartOptions)) *vm {
	t.Helper()
	v := &vm{t: t, dir: t.TempDir()}
	o := vmm.StartOptions{
		Binary: binary, Dir: v.dir, SocketPath: v.path("vmm.sock"), LogPath: v.path("vmm.log"),
		EventPath: v.path("events.json"), Output: v.path("output"), Args: []string{"-v"},
	}
	for _, c := range change {
		c(&o)
	}
	proc, err := vmm.Start(within(t, 30*time.Second), o)
	require.NoError(t, err)
	v.proc, v.api = proc, proc.Client()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("--- log of %s\n%s\n--- serial\n%s", v.dir, readTail(v.path("vmm.log")), readTail(v.serial()))
		}
		children := childrenOf(t, proc.Record().PID)
		require.NoError(t, proc.Kill(within(t, 30*time.Second)))
		require.NoError(t, proc.Close())
		requireGone(t, children)
	})
	return v
}

func readTail(path string) string {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	const enough = 4096
	return string(raw[max(0, len(raw)-enough):])
}

// config describes the usual VM: RAM in a shared file, one disk, serial output to a file. The files are made.
func (v *vm) config(words ...string) vmm.Config {
	makeFile(v.t, v.ram(), ramSize)
	makeFile(v.t, v.disk(), diskSize)
	cfg := vmm.NewConfig(1, vmm.Payload{
		Kernel: theLab.kernel, Initramfs: theLab.initrd,
		Cmdline: strings.Join(append([]string{theLab.cmdline}, words...), " "),
	})
	cfg.Memory.Zones = []vmm.MemoryZone{{ID: zoneID, Size: ramSize, File: v.ram(), Shared: true}}
	cfg.Disks = []vmm.Disk{{ID: diskID, Path: v.disk(), Serial: diskSerial, ImageType: vmm.ImageRaw}}
	cfg.Serial = &vmm.ConsoleDevice{Mode: vmm.ConsoleToFile, File: v.serial()}
	return cfg
}

// boot creates and boots a VM and waits until its guest counts.
func (v *vm) boot(cfg vmm.Config) {
	v.t.Helper()
	require.NoError(v.t, v.api.Create(within(v.t, 30*time.Second), cfg))
	require.NoError(v.t, v.api.Boot(within(v.t, 2*time.Minute)))
	v.awaitTick(3)
}

func (v *vm) pause()  { v.t.Helper(); require.NoError(v.t, v.api.Pause(within(v.t, 30*time.Second))) }
func (v *vm) resume() { v.t.Helper(); require.NoError(v.t, v.api.Resume(within(v.t, 30*time.Second))) }

func (v *vm) snapshot(dir string) error {
	return v.api.Snapshot(within(v.t, 2*time.Minute), dir)
}

func (v *vm) restore(dir string, resume bool) error {
	return v.api.Restore(within(v.t, 2*time.Minute), vmm.RestoreConfig{SourceDir: dir, Resume: resume})
}

func (v *vm) requireState(want vmm.State) {
	v.t.Helper()
	got, err := v.api.State(within(v.t, 30*time.Second))
	require.NoError(v.t, err)
	require.Equal(v.t, want, got)
}

// tick is one line of the guest.
type tick struct {
	number       uint64
	nonce        string
	memory, disk string
}

var tickLine = regexp.MustCompile(`^tick (\d+) nonce ([0-9a-f]{16}) memory (\S+) disk (\S+)$`)

// ticks reads what the guest has counted, complete lines only.
func ticks(t *testing.T, serial []byte) []tick {
	t.Helper()
	var all []tick
	for line := range strings.Lines(string(serial)) {
		m := tickLine.FindStringSubmatch(strings.TrimRight(line, "\r\n"))
		if m == nil || !strings.HasSuffix(line, "\n") {
			continue
		}
		n, err := strconv.ParseUint(m[1], 10, 64)
		require.NoError(t, err)
		all = append(all, tick{n, m[2], m[3], m[4]})
	}
	return all
}

func (v *vm) serialBytes() []byte {
	raw, err := os.ReadFile(v.serial())
	if !errors.Is(err, os.ErrNotExist) {
		require.NoError(v.t, err)
	}
	return raw
}

func (v *vm) ticks() []tick { return ticks(v.t, v.serialBytes()) }

// awaitTick waits until the guest has printed that tick or a later one, and gives the last.
func (v *vm) awaitTick(n uint64) tick {
	v.t.Helper()
	deadline := time.Now().Add(patience(2 * time.Minute))
	for {
		if all := v.ticks(); len(all) > 0 && all[len(all)-1].number >= n {
			return all[len(all)-1]
		}
		if !v.proc.Alive() {
			require.FailNow(v.t, "the VMM has ended: "+v.proc.ExitStatus())
		}
		if time.Now().After(deadline) {
			require.FailNow(v.t, fmt.Sprintf("the guest has not reached tick %d", n))
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// awaitMore waits until the guest has ticked a few more times than it has now. A guest that was just restored has not
// printed here yet, and its count does not begin at 0.
func (v *vm) awaitMore() {
	v.t.Helper()
	last := v.awaitTick(0).number
	v.awaitTick(last + heapShare + 1) // every page of its heap is checked once
}

// requireWhole checks that the guest's counts follow one another, and that its memory and disk were right at each.
func requireWhole(t *testing.T, serial []byte) {
	t.Helper()
	all := ticks(t, serial)
	require.NotEmpty(t, all)
	for i, k := range all {
		require.Equal(t, all[0].nonce, k.nonce, "tick %d has another guest's nonce", k.number)
		require.Equal(t, all[0].number+uint64(i), k.number, "a tick is missing or doubled")
		require.Equal(t, "ok", k.memory, "memory at tick %d", k.number)
		require.Contains(t, []string{"ok", "none"}, k.disk, "disk at tick %d", k.number)
	}
}

// diskTick is the count on a disk file, as the host sees it.
func diskTick(t *testing.T, path string) uint64 {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Close()) }()
	var n [8]byte
	_, err = f.ReadAt(n[:], diskOffset)
	require.NoError(t, err)
	return binary.LittleEndian.Uint64(n[:])
}

// saved is a snapshot with what the caller must keep itself.
type saved struct {
	dir    string // the VMM's files, not to be changed
	ram    string
	disk   string
	serial []byte // what the guest had printed until the instant
}

// save pauses, takes everything, and resumes.
func (v *vm) save() saved {
	v.t.Helper()
	dir := v.t.TempDir()
	s := saved{dir: filepath.Join(dir, "vm"), ram: filepath.Join(dir, "ram"), disk: filepath.Join(dir, "disk")}
	require.NoError(v.t, os.Mkdir(s.dir, 0o700))
	v.pause()
	require.NoError(v.t, v.snapshot(s.dir))
	copyFile(v.t, v.ram(), s.ram)
	copyFile(v.t, v.disk(), s.disk)
	s.serial = v.serialBytes()
	v.resume()
	return s
}

// clone prepares a restore of a snapshot into this VM's own files and gives the folder to restore from.
func (v *vm) clone(s saved) string {
	v.t.Helper()
	dir := v.path("restore")
	require.NoError(v.t, os.Mkdir(dir, 0o700))
	for _, f := range []string{vmm.ConfigFile, vmm.StateFile} {
		copyFile(v.t, filepath.Join(s.dir, f), filepath.Join(dir, f))
	}
	copyFile(v.t, s.ram, v.ram())
	copyFile(v.t, s.disk, v.disk())
	require.NoError(v.t, vmm.PatchSnapshotConfig(dir, vmm.ConfigEdits{
		Zones:      map[string]vmm.ZoneEdit{zoneID: {File: v.ram(), Shared: true}},
		DiskPaths:  map[string]string{diskID: v.disk()},
		SerialFile: v.serial(),
	}))
	return dir
}

func makeFile(t *testing.T, path string, size int64) {
	t.Helper()
	f, err := os.Create(path)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(size))
	require.NoError(t, f.Close())
}

// copyFile copies a file and keeps its holes.
func copyFile(t *testing.T, from, to string) {
	t.Helper()
	src, err := os.Open(from)
	require.NoError(t, err)
	defer func() { require.NoError(t, src.Close()) }()
	st, err := src.Stat()
	require.NoError(t, err)
	makeFile(t, to, st.Size())
	dst, err := os.OpenFile(to, os.O_WRONLY, 0)
	require.NoError(t, err)
	defer func() { require.NoError(t, dst.Close()) }()
	buf := make([]byte, 1<<20)
	for at := int64(0); ; {
		start, err := unix.Seek(int(src.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return
		}
		require.NoError(t, err)
		n, _ := src.ReadAt(buf, start)
		_, err = dst.WriteAt(buf[:n], start)
		require.NoError(t, err)
		at = start + int64(n)
	}
}

// childrenOf lists the processes whose parent has this pid.
func childrenOf(t *testing.T, pid int) []int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	require.NoError(t, err)
	var children []int
	for _, path := range stats {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
		if fields[1] == strconv.Itoa(pid) {
			child, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			require.NoError(t, err)
			children = append(children, child)
		}
	}
	return children
}

// requireGone waits until none of the processes runs. Their pids were just in use, so they are not given out again yet.
func requireGone(t *testing.T, pids []int) {
	t.Helper()
	running := func(pid int) bool {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err == nil && !strings.Contains(string(raw), ") Z ")
	}
	require.Eventually(t, func() bool { return !slices.ContainsFunc(pids, running) }, patience(10*time.Second),
		5*time.Millisecond, "processes %v outlive their VMM", pids)
}

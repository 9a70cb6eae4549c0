package store

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The tests run in a mount namespace of their own: whatever way they end, their mounts and loop devices end with them.
const (
	envInside = "STORE_TEST_INSIDE" // set in the process that runs the tests
	envWriter = "STORE_TEST_WRITER" // set in the process that stands for a VM: see writerMain
	// envDir names a folder on a filesystem to test on instead of loop devices, and envExpect that its kernel must have
	// soft-dirty bits: both are set in the emulated machine of deploy/lab/kernelrun.
	envDir    = "STORE_TEST_DIR"
	envExpect = "STORE_TEST_EXPECT_SOFT_DIRTY"
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(envWriter) != "":
		if err := writerMain(os.Getenv(envWriter)); err != nil {
			fmt.Fprintln(os.Stderr, "writer:", err)
			os.Exit(1)
		}
	case os.Getenv(envInside) != "" || os.Getenv(envDir) != "":
		os.Exit(m.Run())
	default:
		os.Exit(inNamespace())
	}
}

func inNamespace() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), envInside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "these tests mount filesystems and need root:", err)
		return 1
	}
	return 0
}

// filesystems are those that every test of contents runs on.
var filesystems = []string{"xfs", "btrfs", "ext4", "tmpfs"}

// eachFilesystem runs test in a folder on each of the filesystems, or on the one that envDir names.
func eachFilesystem(t *testing.T, test func(t *testing.T, kind, dir string)) {
	t.Helper()
	if dir := os.Getenv(envDir); dir != "" {
		sub, err := os.MkdirTemp(dir, "test-*")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(sub) })
		test(t, kindOf(t, sub), sub)
		return
	}
	for _, kind := range filesystems {
		t.Run(kind, func(t *testing.T) { test(t, kind, mount(t, kind, 512<<20)) })
	}
}

func kindOf(t *testing.T, dir string) string {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	kind := map[int64]string{
		unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs",
		unix.EXT4_SUPER_MAGIC: "ext4", unix.TMPFS_MAGIC: "tmpfs",
	}[st.Type]
	if kind == "" {
		t.Fatalf("%s is on a filesystem that these tests do not know: %x", dir, st.Type)
	}
	return kind
}

// mount makes a filesystem of the kind and gives the folder it is mounted on.
func mount(tb testing.TB, kind string, size int64) string {
	tb.Helper()
	dir := filepath.Join(tb.TempDir(), "mnt")
	if err := os.Mkdir(dir, 0o700); err != nil {
		tb.Fatal(err)
	}
	if kind == "tmpfs" {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
			tb.Fatal(err)
		}
	} else {
		image := filepath.Join(filepath.Dir(dir), "image")
		if err := New().Allocate(image, size, false); err != nil {
			tb.Fatal(err)
		}
		command := map[string][]string{
			"xfs":   {"mkfs.xfs", "-q", "-m", "reflink=1", image},
			"ext4":  {"mkfs.ext4", "-q", image},
			"btrfs": {"mkfs.btrfs", "-q", image},
		}[kind]
		run := func(args ...string) {
			if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
				tb.Fatalf("%v: %v: %s", args, err, out)
			}
		}
		run(command...)
		run("mount", "-o", "loop", image, dir)
		if kib := os.Getenv("STORE_BENCH_READAHEAD"); kib != "" { // 0: the kernel keeps files in small units
			var st unix.Stat_t
			if err := unix.Stat(dir, &st); err != nil {
				tb.Fatal(err)
			}
			knob := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev))
			if err := os.WriteFile(knob, []byte(kib), 0); err != nil {
				tb.Fatal(err)
			}
		}
	}
	tb.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			tb.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// order is what the parent tells a writer to do.
type order struct {
	path  string
	seed  uint64
	hot   bool // write to a twentieth of the file only
	mib   int  // MiB a second; 0: as fast as it goes; less: nothing
	punch bool // now and then make holes
	calls bool // write by system calls, as a VMM does to a disk, and not through a mapping
}

func (o order) String() string {
	return fmt.Sprintf("%d %t %d %t %t %s", o.seed, o.hot, o.mib, o.punch, o.calls, o.path)
}

// writerMain stands for a VM: it dirties pages of a file until it is killed.
func writerMain(line string) error {
	var o order
	if _, err := fmt.Sscan(line, &o.seed, &o.hot, &o.mib, &o.punch, &o.calls, &o.path); err != nil {
		return err
	}
	file, err := os.OpenFile(o.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		return err
	}
	mem, err := unix.Mmap(int(file.Fd()), 0, int(info.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for o.mib < 0 { // an idle VM
		time.Sleep(time.Hour)
	}
	rng := rand.New(rand.NewPCG(o.seed, 1))
	pages := len(mem) / pageSize
	if o.hot {
		pages = max(pages/20, 1)
	}
	start, done := time.Now(), 0
	for {
		page := rng.IntN(pages) * pageSize
		word := []byte(strconv.FormatUint(rng.Uint64(), 16))
		switch {
		case o.punch && rng.IntN(200) == 0:
			length := int64(1+rng.IntN(16)) * pageSize
			if err := unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE,
				int64(page), length); err != nil {
				return err
			}
		case o.calls:
			if _, err := file.WriteAt(word, int64(page+rng.IntN(pageSize-len(word)))); err != nil {
				return err
			}
		case rng.IntN(50) == 0:
			clear(mem[page : page+pageSize])
		case rng.IntN(4) == 0: // a touch that does not write
			word[0] = mem[page]
		default:
			copy(mem[page+rng.IntN(pageSize-len(word)):], word)
		}
		done++
		if o.mib > 0 {
			time.Sleep(time.Until(start.Add(time.Duration(done) * pageSize * time.Second / time.Duration(o.mib<<20))))
		}
	}
}

// writer is a running process that stands for a VM.
type writer struct {
	tb  testing.TB
	cmd *exec.Cmd
}

func startWriter(tb testing.TB, o order) *writer {
	tb.Helper()
	w := &writer{tb, exec.Command("/proc/self/exe")}
	w.cmd.Env = append(os.Environ(), envWriter+"="+o.String())
	w.cmd.Stderr = os.Stderr
	w.cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := w.cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(w.kill)
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || strings.TrimSpace(line) != "ready" {
		tb.Fatalf("writer said %q: %v", line, err)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	return w
}

// stop returns when no thread of the writer runs any more.
func (w *writer) stop() {
	w.tb.Helper()
	if err := w.cmd.Process.Signal(unix.SIGSTOP); err != nil {
		w.tb.Fatal(err)
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(w.cmd.Process.Pid, &status, unix.WUNTRACED, nil); err != nil || !status.Stopped() {
		w.tb.Fatalf("writer did not stop: %v, %v", status, err)
	}
}

func (w *writer) cont() {
	w.tb.Helper()
	if err := w.cmd.Process.Signal(unix.SIGCONT); err != nil {
		w.tb.Fatal(err)
	}
}

func (w *writer) kill() {
	_ = w.cmd.Process.Kill()
	_ = w.cmd.Wait()
}

// scatter writes n random pages of a file of the given size, and gives the random source on.
func scatter(tb testing.TB, path string, seed uint64, size int64, n int) *rand.Rand {
	tb.Helper()
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	if err := file.Truncate(size); err != nil {
		tb.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(seed, 2))
	page := make([]byte, pageSize)
	for range n {
		for i := 0; i < len(page); i += 8 {
			page[i] = byte(rng.Uint32())
		}
		off := rng.Int64N((size+pageSize-1)/pageSize) * pageSize
		if _, err := file.WriteAt(page[:min(pageSize, size-off)], off); err != nil {
			tb.Fatal(err)
		}
	}
	return rng
}

func read(tb testing.TB, path string) []byte {
	tb.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// samePages fails with the first pages that differ.
func samePages(tb testing.TB, want, got []byte, what string) {
	tb.Helper()
	if len(want) != len(got) {
		tb.Fatalf("%s: %d bytes, want %d", what, len(got), len(want))
	}
	var bad []string
	for at := 0; at < len(want); at += pageSize {
		end := min(at+pageSize, len(want))
		if string(want[at:end]) != string(got[at:end]) {
			bad = append(bad, strconv.Itoa(at/pageSize))
		}
	}
	if len(bad) > 0 {
		tb.Fatalf("%s: %d pages differ: %s", what, len(bad), strings.Join(bad[:min(len(bad), 20)], " "))
	}
}

// leftovers fails when the folder holds anything but the named files.
func leftovers(tb testing.TB, dir string, want ...string) {
	tb.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		tb.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		if e.Name() != "lost+found" {
			got = append(got, e.Name())
		}
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		tb.Fatalf("folder holds %q, want %q", got, want)
	}
}

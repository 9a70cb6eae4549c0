package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"stillframe/netpolicy"
)

// envInside is set in the process that runs the tests, to the folder of this run.
const envInside = "STILLFRAME_E2E_INSIDE"

// Places of this run, set before any test. Paths are short: a Unix socket's address holds 107 bytes.
var (
	workDir string // of this run, on the machine's own filesystem
	dataDir string // a filesystem with reflinks, for data folders
	program string // the stillframe binary under test
	images  string
)

func TestMain(m *testing.M) {
	if os.Getenv(envInside) == "" {
		os.Exit(outside())
	}
	os.Exit(inside(m))
}

// outside builds the programs and runs the tests in a mount and a network namespace of their own.
func outside() int {
	dir, err := os.MkdirTemp("/tmp", "sfe2e-")
	if err != nil {
		return complain(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := build(dir); err != nil {
		return complain(err)
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), envInside+"="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	err = cmd.Run()
	endLeftovers(dir)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		return complain(fmt.Errorf("these tests need root: %w", err))
	}
	return 0
}

// endLeftovers ends what a test binary that died (by its own deadline, say) could not: processes that have the folder
// of this run, whose name nobody else has, in their arguments.
func endLeftovers(dir string) {
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return
	}
	for _, path := range procs {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil || pid == os.Getpid() {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0) // before its arguments are read, so that they are this process's
		if err != nil {
			continue
		}
		if raw, err := os.ReadFile(path); err == nil && bytes.Contains(raw, []byte(dir+"/")) {
			fmt.Fprintf(os.Stderr, "e2e: process %d was left behind and is ended\n", pid)
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		}
		_ = unix.Close(fd)
	}
}

func complain(err error) int {
	fmt.Fprintln(os.Stderr, "e2e:", err)
	return 1
}

func build(dir string) error {
	daemon := []string{"build", "-tags", "faults", "-o", filepath.Join(dir, "stillframe")}
	if raceDetector {
		daemon = append(daemon, "-race")
	}
	for _, args := range [][]string{
		append(daemon, "stillframe/cmd/stillframe"),
		{"build", "-o", filepath.Join(dir, "stillframe-devvmm"), "stillframe/cmd/stillframe-devvmm"},
	} {
		if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("go %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

func inside(m *testing.M) int {
	workDir = os.Getenv(envInside)
	program = filepath.Join(workDir, "stillframe")
	dataDir = filepath.Join(workDir, "d")
	images = os.Getenv("STILLFRAME_IMAGES")
	if images == "" {
		tree, err := filepath.Abs("../../..")
		if err != nil {
			return complain(err)
		}
		images = filepath.Join(tree, "build/images")
	}
	if err := os.MkdirAll(netpolicy.Dir, 0o755); err != nil {
		return complain(err)
	}
	if err := unix.Mount("tmpfs", netpolicy.Dir, "tmpfs", 0, ""); err != nil {
		return complain(err)
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return complain(fmt.Errorf("loopback: %w: %s", err, out))
	}
	if err := mountLoop("xfs", filepath.Join(workDir, "image"), dataDir, 16<<30); err != nil {
		return complain(err)
	}
	code := m.Run()
	if left, err := netpolicy.List(""); err != nil || len(left) > 0 {
		code = complain(fmt.Errorf("namespaces are left: %v %w", left, err))
	}
	if err := unix.Unmount(dataDir, 0); err != nil {
		code = complain(fmt.Errorf("the data folders' filesystem is still in use: %w", err))
	}
	return code
}

// mountLoop makes a filesystem in a sparse file and mounts it. The loop device frees itself when it is unmounted, at
// the latest with the mount namespace.
func mountLoop(kind, image, dir string, size int64) error {
	f, err := os.OpenFile(image, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close(), os.MkdirAll(dir, 0o700)); err != nil {
		return err
	}
	mkfs := map[string][]string{
		"xfs":  {"mkfs.xfs", "-q", "-m", "reflink=1", image},
		"ext4": {"mkfs.ext4", "-q", image},
	}[kind]
	for _, args := range [][]string{mkfs, {"mount", "-o", "loop,discard", image, dir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w: %s", args, err, out)
		}
	}
	return nil
}

package vmmtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/hypervisor/vmm"
)

// TestMain makes the test binary serve two more purposes: the guest's init, and the starter that dies.
func TestMain(m *testing.M) {
	if os.Getpid() == 1 && os.Getenv(starterEnv) == "" && isGuest() {
		RunGuest()
	}
	if os.Getenv(starterEnv) != "" {
		os.Exit(runStarter())
	}
	code := m.Run()
	if err := theLab.remove(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// isGuest tells the guest from a container in which the tests are process 1.
func isGuest() bool {
	_, err := os.Stat("/modules")
	return err == nil
}

// lab is what all tests share: the binaries under test and the guest's files, made once.
type lab struct {
	once     sync.Once
	err      error
	dir      string
	binaries []string
	kernel   string
	initrd   string
	cmdline  string
}

var theLab lab

// patience stretches a deadline for slow machines.
func patience(d time.Duration) time.Duration {
	factor, err := strconv.ParseFloat(os.Getenv("STILLFRAME_CONFORMANCE_PATIENCE"), 64)
	if err != nil || factor <= 0 {
		return d
	}
	return time.Duration(float64(d) * factor)
}

// forEachVMM runs a test with every VMM binary.
func forEachVMM(t *testing.T, test func(t *testing.T, binary string)) {
	t.Helper()
	theLab.once.Do(func() { theLab.err = theLab.prepare() })
	require.NoError(t, theLab.err)
	for _, b := range theLab.binaries {
		t.Run(filepath.Base(b), func(t *testing.T) { test(t, b) })
	}
}

func (l *lab) prepare() error {
	var err error
	if l.dir, err = os.MkdirTemp("", "vmmtest"); err != nil {
		return err
	}
	images, err := findImages()
	if err != nil {
		return err
	}
	l.kernel = filepath.Join(images, "vmlinuz")
	l.cmdline = "console=ttyS0 quiet panic=-1 " + os.Getenv("STILLFRAME_CONFORMANCE_CMDLINE")
	init, err := l.guestInit()
	if err != nil {
		return err
	}
	l.initrd = filepath.Join(l.dir, "initramfs.img")
	if err := writeInitramfs(l.initrd, init, filepath.Join(images, "modules")); err != nil {
		return err
	}
	l.binaries, err = l.findBinaries()
	return err
}

func (l *lab) remove() error {
	if l.dir == "" {
		return nil
	}
	return os.RemoveAll(l.dir)
}

func findImages() (string, error) {
	dir := os.Getenv("STILLFRAME_IMAGES")
	if dir == "" {
		root, err := treeRoot()
		if err != nil {
			return "", fmt.Errorf("STILLFRAME_IMAGES is not set and %w", err)
		}
		dir = filepath.Join(root, "build", "images")
	}
	for _, f := range []string{"vmlinuz", "modules"} {
		if _, err := os.Stat(filepath.Join(dir, f)); err != nil {
			return "", fmt.Errorf("the guest's kernel and modules are missing, run make setup: %w", err)
		}
	}
	return dir, nil
}

// treeRoot is the folder of go.mod above the working folder.
func treeRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == "/" {
			return "", errors.New("this is not the project's tree")
		}
	}
}

// guestInit is the test binary itself where it can be, else built.
func (l *lab) guestInit() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	if static, err := isStatic(self); err != nil || static {
		return self, err
	}
	return l.build("counter", "stillframe/hypervisor/vmmtest/counter")
}

func (l *lab) build(name, pkg string) (string, error) {
	root, err := treeRoot()
	if err != nil {
		return "", err
	}
	out := filepath.Join(l.dir, name)
	cmd := exec.Command("go", "build", "-o", out, pkg)
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if said, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", pkg, err, said)
	}
	return out, nil
}

func (l *lab) findBinaries() ([]string, error) {
	if named := os.Getenv("STILLFRAME_CONFORMANCE_VMMS"); named != "" {
		return strings.Split(named, ","), nil
	}
	dev, err := l.build("stillframe-devvmm", "stillframe/cmd/stillframe-devvmm")
	if err != nil {
		return nil, err
	}
	found := []string{dev}
	if named := os.Getenv(vmm.EnvBinary); named != "" {
		found = append(found, named)
	}
	if ch, err := exec.LookPath(string(vmm.KindCloudHypervisor)); err == nil && vmm.ProbeKVM() == nil {
		found = append(found, ch)
	}
	return slices.Compact(found), nil
}

// within is a context that outlives no test and no patience.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience(d))
	t.Cleanup(cancel)
	return ctx
}

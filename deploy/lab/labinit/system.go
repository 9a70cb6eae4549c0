//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"stillframe/deploy/lab/job"
)

// How long a device may take to appear after its driver was loaded.
const deviceWait = 20 * time.Second

type mount struct {
	source, target, fstype string
	flags                  uintptr
}

func (m mount) mount() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.source, m.target, m.fstype, m.flags, ""); err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.source, m.target, err)
	}
	return nil
}

// prepare makes of the mounted disks a system in which the job's command finds what it expects of a Debian machine.
func prepare(j job.Job) error {
	for _, m := range []mount{
		{"devpts", "/dev/pts", "devpts", 0}, {"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", 0},
	} {
		if err := m.mount(); err != nil {
			return err
		}
	}
	setEnvironment(j.Env)
	if err := unix.Sethostname([]byte("stillframe-lab")); err != nil {
		return err
	}
	for _, link := range [][2]string{
		{"/proc/self/fd", "/dev/fd"}, {"fd/0", "/dev/stdin"}, {"fd/1", "/dev/stdout"}, {"fd/2", "/dev/stderr"},
	} {
		if err := os.Symlink(link[0], link[1]); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	if err := tool("ip", "link", "set", "lo", "up"); err != nil {
		return err
	}
	if len(j.Modules) > 0 {
		if err := tool("modprobe", append([]string{"-a"}, j.Modules...)...); err != nil {
			return err
		}
	}
	if err := mountScratch(j); err != nil {
		return err
	}
	return bindAll(j.Binds)
}

func setEnvironment(extra []string) {
	os.Clearenv()
	base := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "TERM=dumb",
	}
	for _, kv := range append(base, extra...) {
		key, value, _ := strings.Cut(kv, "=")
		_ = os.Setenv(key, value)
	}
}

func mountScratch(j job.Job) error {
	if j.ScratchMount == "" {
		return nil
	}
	device, err := findDisk(job.ScratchDisk)
	if err != nil {
		return err
	}
	switch j.ScratchFS {
	case "xfs":
		err = tool("mkfs.xfs", "-q", "-K", "-m", "reflink=1", device)
	case "btrfs":
		err = tool("mkfs.btrfs", "-q", "-K", device)
	case "ext4":
		err = tool("mkfs.ext4", "-q", device)
	default:
		err = fmt.Errorf("scratch filesystem %q is none of xfs, btrfs, ext4", j.ScratchFS)
	}
	if err != nil {
		return err
	}
	// The mount command loads the filesystem's module with all it depends on.
	if err := os.MkdirAll(j.ScratchMount, 0o755); err != nil {
		return err
	}
	return tool("mount", "-t", j.ScratchFS, device, j.ScratchMount)
}

func bindAll(binds []job.Bind) error {
	for _, b := range binds {
		source := filepath.Join("/lab", job.Files, b.Source)
		if err := bind(source, b.Target); err != nil {
			return fmt.Errorf("bring in %s: %w", b.Target, err)
		}
	}
	return nil
}

func bind(source, target string) error {
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	if info.IsDir() {
		err = os.MkdirAll(target, 0o755)
	} else if err = os.MkdirAll(filepath.Dir(target), 0o755); err == nil {
		err = touch(target)
	}
	if err != nil {
		return err
	}
	return unix.Mount(source, target, "", unix.MS_BIND, "")
}

func touch(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

func mountDisk(serial, target, fstype string, flags uintptr) error {
	device, err := findDisk(serial)
	if err != nil {
		return err
	}
	return mount{device, target, fstype, flags}.mount()
}

// findDisk gives the device of the virtio disk with a serial number.
func findDisk(serial string) (string, error) {
	name, err := waitFor("/sys/block/*/serial", serial)
	if err != nil {
		return "", fmt.Errorf("disk %s: %w", serial, err)
	}
	return "/dev/" + name, nil
}

// openPort opens a virtio-serial port by its name. There is no udev here that would make links for them.
func openPort(port string) (*os.File, error) {
	name, err := waitFor("/sys/class/virtio-ports/*/name", port)
	if err != nil {
		return nil, fmt.Errorf("port %s: %w", port, err)
	}
	// A plain descriptor: os.File would make it non-blocking, and commands that inherit it do not expect that.
	fd, err := unix.Open("/dev/"+name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("port %s: %w", port, err)
	}
	return os.NewFile(uintptr(fd), port), nil
}

// waitFor waits until one of the files that match pattern holds value, and gives the name of that file's folder.
func waitFor(pattern, value string) (string, error) {
	for deadline := time.Now().Add(deviceWait); ; time.Sleep(10 * time.Millisecond) {
		files, err := filepath.Glob(pattern)
		if err != nil {
			return "", err
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err == nil && strings.TrimSpace(string(data)) == value {
				return filepath.Base(filepath.Dir(file)), nil
			}
		}
		if time.Now().After(deadline) {
			return "", fmt.Errorf("did not appear within %s", deviceWait)
		}
	}
}

func tool(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The virtio serial numbers by which the disks are known; the order of device names is not relied on.
const (
	baseSerial    = "base"
	overlaySerial = "overlay"
)

// Where the new root is put together, in the initramfs.
const (
	baseDir    = "/base"
	overlayDir = "/overlay"
	newRoot    = "/newroot"
)

const diskWait = 10 * time.Second

// RunDir holds what the agent shows inside the sandbox; it is on a tmpfs, so it is in a snapshot's memory.
const RunDir = "/run/stillframe"

// BinDir holds the program itself under its name, for commands inside the sandbox.
const BinDir = RunDir + "/bin"

type mountPoint struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

func (m mountPoint) mount() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil { // a directory of the guest's root
		return err
	}
	if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.fstype, m.target, err)
	}
	return nil
}

func mountAll(points []mountPoint) error {
	for _, p := range points {
		if err := p.mount(); err != nil {
			return err
		}
	}
	return nil
}

// mountEarly gives the initramfs what finding the disks takes.
func mountEarly() error {
	return mountAll([]mountPoint{
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"sys", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"dev", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=755"},
	})
}

// mountRoot puts the sandbox's root together: the template's image below, the sandbox's own disk above. The two layers
// are then detached from the tree, as the overlay keeps its own hold on them.
func mountRoot() error {
	base, err := findDisk(baseSerial)
	if err != nil {
		return err
	}
	overlay, err := findDisk(overlaySerial)
	if err != nil {
		return err
	}
	err = mountAll([]mountPoint{
		{base, baseDir, "ext4", unix.MS_RDONLY | unix.MS_NOATIME, ""},
		// Fewer blocks touched means smaller snapshots: no access times, nothing initialised or read ahead of use, and
		// deleted files given back to the host where the disk can.
		{overlay, overlayDir, "ext4", unix.MS_NOATIME, "noinit_itable,no_prefetch_block_bitmaps,discard"},
	})
	if err != nil {
		return err
	}
	for _, d := range []string{"upper", "work"} {
		if err := os.MkdirAll(filepath.Join(overlayDir, d), 0o755); err != nil { // the root directory
			return err
		}
	}
	layers := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", baseDir, overlayDir, overlayDir)
	if err := (mountPoint{"sandbox", newRoot, "overlay", unix.MS_NOATIME, layers}).mount(); err != nil {
		return err
	}
	return errors.Join(unix.Unmount(baseDir, unix.MNT_DETACH), unix.Unmount(overlayDir, unix.MNT_DETACH))
}

// findDisk waits for the block device with a virtio serial number and gives its device file.
func findDisk(serial string) (string, error) {
	for deadline := time.Now().Add(diskWait); ; time.Sleep(2 * time.Millisecond) {
		dev, err := diskBySerial("/sys/block", serial)
		if err == nil || time.Now().After(deadline) {
			return dev, err
		}
	}
}

func diskBySerial(sysBlock, serial string) (string, error) {
	files, err := filepath.Glob(filepath.Join(sysBlock, "*", "serial"))
	if err != nil {
		return "", err
	}
	for _, f := range files {
		b, err := os.ReadFile(f) // a path in sysfs
		if err == nil && strings.TrimRight(strings.TrimSpace(string(b)), "\x00") == serial {
			return filepath.Join("/dev", filepath.Base(filepath.Dir(f))), nil
		}
	}
	return "", fmt.Errorf("no disk with serial %q", serial)
}

// switchRoot finishes the new root, empties the initramfs and makes the new root the root of everything.
func switchRoot() error {
	if err := mountSystem(newRoot); err != nil {
		return err
	}
	if err := installSelf(newRoot + BinDir); err != nil {
		return err
	}
	for _, m := range []string{"/proc", "/sys", "/dev"} {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", m, err)
		}
	}
	if err := emptyInitramfs(); err != nil {
		return err
	}
	if err := unix.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// mountSystem mounts the kernel's file systems and the volatile ones below root.
func mountSystem(root string) error {
	const nodev = unix.MS_NOSUID | unix.MS_NODEV
	return mountAll([]mountPoint{
		{"proc", root + "/proc", "proc", nodev | unix.MS_NOEXEC, ""},
		{"sys", root + "/sys", "sysfs", nodev | unix.MS_NOEXEC, ""},
		{"cgroup2", root + "/sys/fs/cgroup", "cgroup2", nodev | unix.MS_NOEXEC, ""},
		{"dev", root + "/dev", "devtmpfs", unix.MS_NOSUID, "mode=755"},
		{"devpts", root + "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=620,ptmxmode=666"},
		{"shm", root + "/dev/shm", "tmpfs", nodev, "mode=1777"},
		{"run", root + "/run", "tmpfs", nodev, "mode=755"},
		{"tmp", root + "/tmp", "tmpfs", nodev, "mode=1777"},
	})
}

// installSelf shows this program in dir by a bind mount, which costs no second copy in memory. The file itself stays
// in the initramfs' file system, nameless after emptyInitramfs, kept by the mount and by running.
func installSelf(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil { // programs must be able to run it
		return err
	}
	target := filepath.Join(dir, "stillframe-guest")
	if err := os.WriteFile(target, nil, 0o755); err != nil { // a mount point
		return err
	}
	if err := unix.Mount("/init", target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", target, err)
	}
	return nil
}

// emptyInitramfs removes everything of the root file system but mount points, so that its memory is free again. It
// refuses to work on anything that is not held in memory.
func emptyInitramfs() error {
	var st unix.Statfs_t
	if err := unix.Statfs("/", &st); err != nil {
		return err
	}
	if st.Type != unix.TMPFS_MAGIC && st.Type != unix.RAMFS_MAGIC {
		return fmt.Errorf("root is not an initramfs (file system type %#x)", st.Type)
	}
	entries, err := os.ReadDir("/")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if p := "/" + e.Name(); p != newRoot {
			if err := os.RemoveAll(p); err != nil {
				return err
			}
		}
	}
	return nil
}

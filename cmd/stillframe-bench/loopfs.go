package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// loopSize is the apparent size of a filesystem's image, in bytes. It is sparse: what is written is what it takes.
const loopSize = 40 << 30

// loopFS is a filesystem in a file, mounted.
type loopFS struct {
	dir   string // holds the image and the mount point
	mount string
}

// mountLoop makes a filesystem of a kind (xfs with reflinks, ext4) and mounts it. unmount undoes all of it.
func mountLoop(ctx context.Context, parent, kind string) (_ *loopFS, err error) {
	dir, err := os.MkdirTemp(parent, "sfbench-")
	if err != nil {
		return nil, err
	}
	fs := &loopFS{dir: dir, mount: filepath.Join(dir, "m")}
	defer func() {
		if err != nil {
			err = errors.Join(err, fs.unmount())
		}
	}()
	image := filepath.Join(dir, "image")
	if err := os.Mkdir(fs.mount, 0o700); err != nil {
		return nil, err
	}
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, loopSize)); err != nil {
		return nil, err
	}
	mkfs := []string{"mkfs.ext4", "-q", "-F", image}
	if kind == "xfs" {
		mkfs = []string{"mkfs.xfs", "-q", "-m", "reflink=1", image}
	}
	if err := command(ctx, mkfs...); err != nil {
		return nil, err
	}
	// Direct I/O on the image: otherwise every page would be cached twice and flushed twice.
	device, err := output(ctx, "losetup", "--find", "--show", "--direct-io=on", image)
	if err != nil {
		return nil, err
	}
	if err := command(ctx, "mount", device, fs.mount); err != nil {
		return nil, errors.Join(err, command(context.WithoutCancel(ctx), "losetup", "-d", device))
	}
	// From here the device goes with the mount.
	return fs, command(ctx, "losetup", "-d", device)
}

func (fs *loopFS) unmount() error {
	var err error
	for range 50 {
		if err = unix.Unmount(fs.mount, 0); err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return os.RemoveAll(fs.dir)
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("unmount %s: %w", fs.mount, err)
}

// used gives the bytes that the filesystem's files occupy, blocks shared by reflinks counted once.
func (fs *loopFS) used() (int64, error) {
	f, err := os.Open(fs.mount)
	if err != nil {
		return 0, err
	}
	defer f.Close()                                  //nolint:errcheck // read only
	if err := unix.Syncfs(int(f.Fd())); err != nil { // a descriptor fits
		return 0, err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(fs.mount, &st); err != nil {
		return 0, err
	}
	return int64(st.Blocks-st.Bfree) * st.Bsize, nil // fits
}

func command(ctx context.Context, args ...string) error {
	_, err := output(ctx, args...)
	return err
}

func output(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput() // fixed programs
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

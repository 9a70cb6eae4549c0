package store

import (
	"os"

	"golang.org/x/sys/unix"

	"stillframe/fsm"
)

// Free gives the bytes that an unprivileged writer may still use on the filesystem of the folder dir.
func (f *Files) Free(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Statfs(dir, &st) }); err != nil {
		return 0, wrap(err, OpMap, dir)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// EnsureSpace refuses, with an error of the kind unavailable that names both figures, when less than bytes are free
// on the filesystem of the folder dir. It reserves nothing: the caller adds to bytes what the files of running VMs may
// still claim (Outstanding), and makes this check and the step that uses the space one at a time.
//
// btrfs tells space as free that has been given away until it commits, up to half a minute later; there, everything on
// the filesystem is written to disk first, which can take seconds.
func (f *Files) EnsureSpace(dir string, bytes int64) error {
	if err := f.settle(dir); err != nil {
		return err
	}
	free, err := f.Free(dir)
	if err != nil {
		return err
	}
	if free < bytes {
		return fsm.Errorf(fsm.KindUnavailable, "not enough disk space on the node: %d MiB needed, %d MiB free",
			(bytes+1<<20-1)>>20, free>>20)
	}
	return nil
}

// settle makes the filesystem's figure of free space true.
func (f *Files) settle(dir string) error {
	folder, err := os.Open(dir)
	if err != nil {
		return wrap(err, OpMap, dir)
	}
	defer func() { _ = folder.Close() }()
	var st unix.Statfs_t
	err = retry(func() error { return unix.Fstatfs(int(folder.Fd()), &st) })
	if err == nil && st.Type == unix.BTRFS_SUPER_MAGIC {
		err = unix.Syncfs(int(folder.Fd()))
	}
	return wrap(err, OpSync, dir)
}

// Stored gives the bytes of disk that path occupies. Blocks shared with other files count in each of them.
func (f *Files) Stored(path string) (int64, error) {
	var st unix.Stat_t
	if err := retry(func() error { return unix.Stat(path, &st) }); err != nil {
		return 0, wrap(err, OpMap, path)
	}
	return st.Blocks * 512, nil
}

// Outstanding gives the bytes that path may still claim from the filesystem when its owner writes to all of it: its
// length without the blocks that are its own. Holes claim blocks, and so do blocks shared with a snapshot, which must
// be written elsewhere. The sum over the files of all running VMs is what must stay free.
func (f *Files) Outstanding(path string) (int64, error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, wrap(err, OpMap, path)
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return 0, wrap(err, OpMap, path)
	}
	own := int64(0)
	extents, err := f.extents(file, false)
	for _, e := range extents {
		if !e.shared {
			own += e.length
		}
	}
	if err != nil { // no map of extents (tmpfs): nothing is shared there either
		if own, err = f.Stored(path); err != nil {
			return 0, err
		}
	}
	return max(info.Size()-own, 0), nil
}

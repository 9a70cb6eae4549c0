package store

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// partSuffix marks a file that is still being made. Whoever makes the file anew may remove it.
const partSuffix = ".part"

// Allocate makes path as a file of size bytes that reads as zeros. It appears under its name only at full size. With
// reserve its blocks are set aside at once, so that filling it cannot meet a full disk (see the package comment for
// when that promise ends); without, it is all hole. It refuses when path exists.
func (f *Files) Allocate(path string, size int64, reserve bool) error {
	part, err := f.create(path)
	if err != nil {
		return err
	}
	err = f.check(OpSize, path)
	if err == nil {
		err = part.Truncate(size)
	}
	if err == nil && reserve {
		err = retry(func() error { return unix.Fallocate(int(part.Fd()), 0, 0, size) })
	}
	err = errors.Join(wrap(err, OpSize, path), part.Close())
	if err == nil {
		err = f.rename(part.Name(), path)
	}
	if err != nil {
		_ = os.Remove(part.Name())
	}
	return err
}

// create opens the unfinished form of path, empty. What an earlier attempt left under that name is removed: only one
// caller at a time makes a given file.
func (f *Files) create(path string) (*os.File, error) {
	if err := f.check(OpCreate, path); err != nil {
		return nil, wrap(err, OpCreate, path)
	}
	if _, err := os.Lstat(path); err == nil {
		return nil, wrap(os.ErrExist, OpCreate, path)
	}
	if err := os.Remove(path + partSuffix); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, wrap(err, OpCreate, path)
	}
	part, err := os.OpenFile(path+partSuffix, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	return part, wrap(err, OpCreate, path)
}

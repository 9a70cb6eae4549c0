package store

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Probe finds out, by doing it with two small files in the folder dir, whether files there can share blocks. It answers
// MethodReflink or MethodCopy; an error means that the folder cannot be written at all.
func (f *Files) Probe(dir string) (Method, error) {
	src, err := os.CreateTemp(dir, ".probe-*")
	if err != nil {
		return "", wrap(err, OpCreate, dir)
	}
	defer func() { _ = src.Close(); _ = os.Remove(src.Name()) }()
	dst, err := os.CreateTemp(dir, ".probe-*")
	if err != nil {
		return "", wrap(err, OpCreate, dir)
	}
	defer func() { _ = dst.Close(); _ = os.Remove(dst.Name()) }()
	// 64 KiB of data: an empty file, or one kept inside its inode, could be cloned where larger ones cannot.
	block := make([]byte, 64<<10)
	for i := range block {
		block[i] = byte(i)
	}
	if _, err := src.WriteAt(block, 0); err != nil {
		return "", wrap(err, OpWrite, dir)
	}
	err = f.cloneAll(src, dst)
	if errors.Is(err, ErrUnsupported) {
		return MethodCopy, nil
	}
	if err != nil {
		return "", err
	}
	return MethodReflink, nil
}

// cloneAll makes dst share all of src's blocks and have its size.
func (f *Files) cloneAll(src, dst *os.File) error {
	if err := f.check(OpClone, dst.Name()); err != nil {
		return wrap(err, OpClone, dst.Name())
	}
	return cloneError(retry(func() error { return unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) }), dst.Name())
}

// cloneRange makes dst share src's blocks in [off, off+length). Both must be multiples of the filesystem's block,
// except that the range may end at the end of both files.
func (f *Files) cloneRange(src, dst *os.File, off, length int64) error {
	if err := f.check(OpClone, dst.Name()); err != nil {
		return wrap(err, OpClone, dst.Name())
	}
	arg := unix.FileCloneRange{
		Src_fd: int64(src.Fd()), Src_offset: uint64(off), Src_length: uint64(length), Dest_offset: uint64(off),
	}
	return cloneError(retry(func() error { return unix.IoctlFileCloneRange(int(dst.Fd()), &arg) }), dst.Name())
}

// cloneError tells "not on this filesystem" from a failure. EINVAL is among the former: some filesystems answer it for
// files that may not share (no checksums, other block size).
func cloneError(err error, path string) error {
	for _, no := range []error{unix.EOPNOTSUPP, unix.ENOTTY, unix.EXDEV, unix.EINVAL, unix.ENOSYS} {
		if errors.Is(err, no) {
			return fmt.Errorf("reflink %s: %w (%w)", path, ErrUnsupported, err)
		}
	}
	return wrap(err, OpClone, path)
}

func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

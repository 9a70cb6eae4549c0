package agent

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"stillframe/hypervisor/guest"
)

// transferPaths checks both ends of a move or a copy.
func transferPaths(req guest.TransferRequest) (src, dst string, err error) {
	if src, err = cleanPath(req.Src); err != nil {
		return "", "", err
	}
	if dst, err = cleanPath(req.Dst); err != nil {
		return "", "", err
	}
	if src == "/" || dst == "/" {
		return "", "", guest.Errorf(guest.CodeInvalid, "the root directory cannot be moved or copied")
	}
	if dst == src || strings.HasPrefix(dst, src+"/") {
		return "", "", guest.Errorf(guest.CodeInvalid, "%s lies in %s", dst, src)
	}
	if _, err := os.Lstat(src); err != nil {
		return "", "", err
	}
	return src, dst, nil
}

// copyTree copies a file, a link or a directory with owners, permissions and times. With overwrite, files replace
// files and directories are merged; a file never replaces a directory, nor the reverse.
func copyTree(src, dst string, overwrite bool) error {
	st, err := os.Lstat(src)
	if err != nil {
		return err
	}
	old, err := os.Lstat(dst)
	switch {
	case err == nil && !overwrite:
		return guest.Errorf(guest.CodeExists, "%s exists", dst)
	case err == nil && old.IsDir() && !st.IsDir():
		return guest.Errorf(guest.CodeIsDirectory, "%s is a directory", dst)
	case err == nil && !old.IsDir() && st.IsDir():
		return guest.Errorf(guest.CodeNotDirectory, "%s is not a directory", dst)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	switch {
	case st.IsDir():
		err = copyDir(src, dst, overwrite)
	case st.Mode().IsRegular():
		err = copyRegular(src, dst, st.Mode())
	case st.Mode()&fs.ModeSymlink != 0:
		err = copyLink(src, dst)
	default:
		return guest.Errorf(guest.CodeInvalid, "%s is neither a file, a directory nor a link", src)
	}
	if err != nil {
		return err
	}
	return keepMeta(dst, st)
}

func copyDir(src, dst string, overwrite bool) error {
	entries, err := os.ReadDir(src)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dst, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, e := range entries {
		if err := copyTree(filepath.Join(src, e.Name()), filepath.Join(dst, e.Name()), overwrite); err != nil {
			return err
		}
	}
	return nil
}

func copyRegular(src, dst string, mode fs.FileMode) error {
	in, err := os.Open(src) // the caller may read anywhere
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // only read
	return replaceWith(dst, mode.Perm(), nil, in)
}

func copyLink(src, dst string) error {
	target, err := os.Readlink(src)
	if err != nil {
		return err
	}
	if err := os.Remove(dst); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(target, dst)
}

// keepMeta gives dst the owner, permissions and time of what it is a copy of.
func keepMeta(dst string, st fs.FileInfo) error {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		if err := os.Lchown(dst, int(sys.Uid), int(sys.Gid)); err != nil {
			return err
		}
	}
	if st.Mode()&fs.ModeSymlink != 0 {
		return nil
	}
	if err := os.Chmod(dst, st.Mode()); err != nil {
		return err
	}
	return os.Chtimes(dst, st.ModTime(), st.ModTime())
}

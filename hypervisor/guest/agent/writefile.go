package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"stillframe/hypervisor/guest"
)

const maxLinks = 40 // as many links in a row as the kernel follows

func writeFile(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if err := writeContents(q.Get("path"), q.Get("permissions"), r.Body); err != nil {
		fail(w, err)
		return
	}
	reply(w, http.StatusOK, none{})
}

// writeContents puts contents at a path in one step. A link there is followed, so that what it points at is replaced
// and not the link; owner and permissions of a file that was there are kept, unless permissions are given.
func writeContents(name, permissions string, contents io.Reader) error {
	p, err := cleanPath(name)
	if err != nil {
		return err
	}
	if p, err = followLinks(p); err != nil {
		return err
	}
	mode, old := fs.FileMode(0o644), fs.FileInfo(nil)
	switch st, err := os.Lstat(p); {
	case err == nil && st.IsDir():
		return guest.Errorf(guest.CodeIsDirectory, "%s is a directory", p)
	case err == nil && !st.Mode().IsRegular():
		return guest.Errorf(guest.CodeInvalid, "%s is not a regular file", p)
	case err == nil:
		mode, old = st.Mode()&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky), st
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if permissions != "" {
		if mode, err = parseMode(permissions); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil { // an ordinary directory of the sandbox
		return err
	}
	return replaceWith(p, mode, old, contents)
}

// followLinks gives the path that writing to p would write to. A dangling link's target need not exist.
func followLinks(p string) (string, error) {
	for range maxLinks {
		target, err := os.Readlink(p)
		if err != nil {
			return p, nil //nolint:nilerr // not a link, or not there: the caller's stat says which
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(p), target)
		}
		p = filepath.Clean(target)
	}
	return "", guest.Errorf(guest.CodeInvalid, "too many links at %s", p)
}

// replaceWith writes beside p and renames over it. The copy is removed when anything fails.
func replaceWith(p string, mode fs.FileMode, old fs.FileInfo, contents io.Reader) (err error) {
	f, err := createBeside(p)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = io.Copy(f, contents)
	if old != nil && err == nil {
		if sys, ok := old.Sys().(*syscall.Stat_t); ok {
			err = f.Chown(int(sys.Uid), int(sys.Gid))
		}
	}
	if err == nil {
		err = f.Chmod(mode) // after the change of owner, which drops set-id bits
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", p, err)
	}
	return os.Rename(f.Name(), p)
}

func createBeside(p string) (*os.File, error) {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails: the runtime aborts instead
	tmp := filepath.Join(filepath.Dir(p), ".stillframe-"+hex.EncodeToString(b[:])+".tmp")
	return os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) // the caller may write anywhere
}

func mkdir(_ context.Context, req guest.MkdirRequest) (none, error) {
	p, err := cleanPath(req.Path)
	if err != nil {
		return none{}, err
	}
	mode := fs.FileMode(0o755)
	if req.Permissions != "" {
		if mode, err = parseMode(req.Permissions); err != nil {
			return none{}, err
		}
	}
	if req.Recursive {
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil { // an ordinary directory
			return none{}, err
		}
	}
	err = os.Mkdir(p, mode.Perm())
	if errors.Is(err, fs.ErrExist) && req.Recursive {
		if st, serr := os.Stat(p); serr == nil && st.IsDir() {
			return none{}, nil
		}
	}
	if err != nil {
		return none{}, err
	}
	return none{}, os.Chmod(p, mode) // the mask of the agent is not the caller's wish
}

func remove(_ context.Context, req guest.DeleteRequest) (none, error) {
	p, err := cleanPath(req.Path)
	if err != nil {
		return none{}, err
	}
	if p == "/" {
		return none{}, guest.Errorf(guest.CodeInvalid, "the root directory cannot be deleted")
	}
	if _, err := os.Lstat(p); err != nil {
		return none{}, err
	}
	if req.Recursive {
		return none{}, os.RemoveAll(p)
	}
	return none{}, os.Remove(p)
}

func move(_ context.Context, req guest.TransferRequest) (none, error) {
	src, dst, err := transferPaths(req)
	if err != nil {
		return none{}, err
	}
	flags := uint(unix.RENAME_NOREPLACE)
	if req.Overwrite {
		flags = 0
	}
	err = unix.Renameat2(unix.AT_FDCWD, src, unix.AT_FDCWD, dst, flags)
	if !errors.Is(err, unix.EXDEV) {
		if err != nil {
			err = &os.LinkError{Op: "move", Old: src, New: dst, Err: err}
		}
		return none{}, err
	}
	if err := copyTree(src, dst, req.Overwrite); err != nil {
		return none{}, err
	}
	return none{}, os.RemoveAll(src)
}

func copyPath(_ context.Context, req guest.TransferRequest) (none, error) {
	src, dst, err := transferPaths(req)
	if err != nil {
		return none{}, err
	}
	st, err := os.Lstat(src)
	if err != nil {
		return none{}, err
	}
	if st.IsDir() && !req.Recursive {
		return none{}, guest.Errorf(guest.CodeIsDirectory, "%s is a directory", src)
	}
	return none{}, copyTree(src, dst, req.Overwrite)
}

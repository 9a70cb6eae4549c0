package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"stillframe/fsm"
)

// SyncFile puts a file's data and length on stable storage.
func (f *Files) SyncFile(path string) error { return f.syncPath(path) }

// SyncDir puts a folder's entries on stable storage.
func (f *Files) SyncDir(path string) error { return f.syncPath(path) }

func (f *Files) syncPath(path string) error {
	if err := f.check(OpSync, path); err != nil {
		return wrap(err, OpSync, path)
	}
	file, err := os.Open(path)
	if err != nil {
		return wrap(err, OpSync, path)
	}
	return wrap(errors.Join(file.Sync(), file.Close()), OpSync, path)
}

// Publish gives a finished folder its final name: every file and folder in tmpDir is put on stable storage, tmpDir is
// renamed to finalDir, and then the folder that holds them. After a crash finalDir either does not exist or is
// complete. It refuses with KindConflict when finalDir exists, and never replaces it.
func (f *Files) Publish(tmpDir, finalDir string) error {
	err := filepath.WalkDir(tmpDir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() || entry.Type().IsRegular() {
			return f.syncPath(path)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("publish %s: %w", finalDir, err)
	}
	if err := f.rename(tmpDir, finalDir); err != nil {
		return err
	}
	if err := f.SyncDir(filepath.Dir(finalDir)); err != nil {
		return err
	}
	if filepath.Dir(tmpDir) != filepath.Dir(finalDir) {
		return f.SyncDir(filepath.Dir(tmpDir))
	}
	return nil
}

// rename moves without ever replacing what has the name already.
func (f *Files) rename(from, to string) error {
	if err := f.check(OpRename, to); err != nil {
		return wrap(err, OpRename, to)
	}
	err := retry(func() error {
		return unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	})
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOTEMPTY) {
		return fsm.Wrap(fsm.KindConflict, err, "%s exists already", filepath.Base(to))
	}
	return wrap(err, OpRename, to)
}

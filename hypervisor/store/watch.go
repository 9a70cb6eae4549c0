package store

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// callWatch tells of calls that change a file: write, fallocate, truncate and their kin, by any process. Writes through
// mappings are not told. It is a bare descriptor and not an os.File, which could make it blocking.
type callWatch struct{ fd int }

// watchCalls begins to watch the file that has the path.
func watchCalls(path string) (*callWatch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w", err)
	}
	w := &callWatch{fd}
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_MODIFY); err != nil {
		return nil, errors.Join(fmt.Errorf("inotify: %w", err), w.Close())
	}
	return w, nil
}

// seen says whether there was any such call since it was last asked.
func (w *callWatch) seen() (bool, error) {
	buf := make([]byte, 4096)
	for found := false; ; found = true {
		var n int
		err := retry(func() (err error) { n, err = unix.Read(w.fd, buf); return err })
		if errors.Is(err, unix.EAGAIN) {
			return found, nil
		}
		if err != nil || n == 0 {
			return found, errors.Join(errors.New("inotify"), err)
		}
	}
}

// Close ends the watch.
func (w *callWatch) Close() error { return unix.Close(w.fd) }

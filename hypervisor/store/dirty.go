package store

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// cachestatResult is struct cachestat of include/uapi/linux/mman.h; counts of pages.
type cachestatResult struct{ cached, dirty, writeback, evicted, recentlyEvicted uint64 }

// dirtyIn asks the kernel how much of a part of the file is in memory and not, or not yet quite, on disk. Kernels
// before 6.5 cannot tell (ErrUnsupported). A length of 0 reaches to the end of the file.
func dirtyIn(file *os.File, r run) (int64, error) {
	const sysCachestat = 451
	span := struct{ off, length uint64 }{uint64(r.off), uint64(r.length)}
	var result cachestatResult
	_, _, errno := unix.Syscall6(sysCachestat, file.Fd(), uintptr(unsafe.Pointer(&span)),
		uintptr(unsafe.Pointer(&result)), 0, 0, 0)
	if errno != 0 {
		return 0, errors.Join(ErrUnsupported, errno)
	}
	return int64(result.dirty+result.writeback) * int64(os.Getpagesize()), nil
}

// dirtyRuns lists the parts of the file that are in memory and not on disk, page by page, by asking for halves. It is
// exact for a file that nobody writes to, and never leaves out what was dirty throughout: the kernel marks a file's
// page as dirty when it is first written, also through a mapping (the filesystem's page_mkwrite), marks it as under
// writeback before it stops marking it as dirty, and counts both.
func dirtyRuns(file *os.File, size int64) ([]run, error) {
	var runs []run
	var search func(r run, dirty int64) error
	search = func(r run, dirty int64) error {
		if dirty == 0 {
			return nil
		}
		if dirty >= r.length || r.length <= pageSize {
			runs = append(runs, r)
			return nil
		}
		half := (r.length/pageSize + 1) / 2 * pageSize
		left, right := run{r.off, half}, run{r.off + half, r.length - half}
		n, err := dirtyIn(file, left)
		if err != nil {
			return err
		}
		if err := search(left, n); err != nil {
			return err
		}
		// Not "dirty minus n": a page that is just going under writeback may be counted twice on the left, and the
		// remainder would then leave a page out on the right.
		if n, err = dirtyIn(file, right); err != nil {
			return err
		}
		return search(right, n)
	}
	for off := int64(0); off < size; off += dirtyBlock {
		r := run{off, min(dirtyBlock, size-off)}
		n, err := dirtyIn(file, r)
		if err == nil {
			err = search(r, n)
		}
		if err != nil {
			return nil, err
		}
	}
	return normalized(runs, size), nil
}

// dirtyBlock is the part of a file that one question is about at first: the kernel looks at each of its pages.
const dirtyBlock = 2 << 20

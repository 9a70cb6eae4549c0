package store

import (
	"context"
	"errors"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// flushEnough is the amount of dirty memory that is quicker to write back in the pause than to chase further.
	flushEnough = 1 << 20
	// defaultRounds bounds the passes while the guest runs: a guest that writes faster than the disk never gets done.
	defaultRounds = 6
)

// flush writes the file's dirty pages back and waits until they are. It does not ask the disk to empty its cache, and it
// does not wait for metadata: both cost time, and a clone needs neither.
func (f *Files) flush(file *os.File) error {
	if err := f.check(OpFlush, file.Name()); err != nil {
		return wrap(err, OpFlush, file.Name())
	}
	const flags = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	return wrap(retry(func() error { return unix.SyncFileRange(int(file.Fd()), 0, 0, flags) }), OpFlush, file.Name())
}

// cachestatResult is struct cachestat of include/uapi/linux/mman.h; counts of pages.
type cachestatResult struct{ cached, dirty, writeback, evicted, recentlyEvicted uint64 }

// dirtyBytes asks the kernel how much of the file waits to be written back. Kernels before 6.5 cannot tell
// (ErrUnsupported).
func dirtyBytes(file *os.File) (int64, error) {
	const sysCachestat = 451
	var span struct{ off, length uint64 } // a length of 0 reaches to the end of the file
	var result cachestatResult
	_, _, errno := unix.Syscall6(sysCachestat, file.Fd(), uintptr(unsafe.Pointer(&span)),
		uintptr(unsafe.Pointer(&result)), 0, 0, 0)
	if errno != 0 {
		return 0, errors.Join(ErrUnsupported, errno)
	}
	return int64(result.dirty+result.writeback) * int64(os.Getpagesize()), nil
}

// flushAhead writes dirty pages back in rounds while the guest dirties others, until little is left, or a round leaves
// no less than the one before, or the rounds are used up. It gives the bytes flushed and the rounds made.
func (c *Capture) flushAhead(ctx context.Context) (Stats, error) {
	var stats Stats
	before, err := dirtyBytes(c.src)
	counted := err == nil
	for previous := time.Duration(1 << 62); stats.Rounds < c.rounds(); {
		if err := ctx.Err(); err != nil {
			return stats, err
		}
		start := time.Now()
		if err := c.files.flush(c.src); err != nil {
			return stats, err
		}
		stats.Rounds++
		took := time.Since(start)
		if !counted { // the time that a round takes stands for what it found
			if took > previous*3/4 {
				break
			}
			previous = took
			continue
		}
		after, err := dirtyBytes(c.src)
		if err != nil {
			return stats, err
		}
		stats.Bytes += before
		if after <= flushEnough || after > before*3/4 {
			break
		}
		before = after
	}
	return stats, nil
}

func (c *Capture) rounds() int {
	if c.req.Rounds > 0 {
		return c.req.Rounds
	}
	return defaultRounds
}

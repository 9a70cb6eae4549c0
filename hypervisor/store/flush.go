package store

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// defaultRounds bounds the passes while the guest runs: a guest that writes faster than the disk never gets done.
const defaultRounds = 6

// flush writes the file's dirty pages back and waits until they are. It does not ask the disk to empty its cache, and
// it does not wait for metadata: both cost time, and a clone needs neither.
func (f *Files) flush(file *os.File) error {
	if err := f.check(OpFlush, file.Name()); err != nil {
		return wrap(err, OpFlush, file.Name())
	}
	const flags = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	return wrap(retry(func() error { return unix.SyncFileRange(int(file.Fd()), 0, 0, flags) }), OpFlush, file.Name())
}

// flushAhead writes dirty pages back in rounds while the guest dirties others, until little is left, or a round leaves
// no less than the one before, or the rounds are used up. It gives the bytes flushed and the rounds made.
func (c *Capture) flushAhead(ctx context.Context) (Stats, error) {
	var stats Stats
	before, err := dirtyIn(c.src, run{})
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
		after, err := dirtyIn(c.src, run{})
		if err != nil {
			return stats, err
		}
		stats.Bytes += before
		if after <= leftToPause || after > before*3/4 {
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

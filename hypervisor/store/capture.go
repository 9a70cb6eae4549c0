package store

import (
	"context"
	"errors"
	"os"
	"time"
)

// Capture is a snapshot of one file under way. Calls must come in the order Freeze, Finish; Abort may come at any time
// and after any error, more than once. Not for concurrent use.
type Capture struct {
	files    *Files
	req      Request
	src, dst *os.File
	watch    *callWatch // tells of calls that change the source; nil where no way needs it
	size     int64
	way      way
	report   Report
	done     bool
}

// way is one method of capture. Both phases say what they did; the caller measures how long.
type way interface {
	begin(ctx context.Context) (Stats, error)
	freeze(ctx context.Context) (Stats, error)
}

// Begin does what can be done while the guest runs. Nothing that it leaves out is lost: Freeze makes up for it. After
// an error there is nothing to abort.
func (f *Files) Begin(ctx context.Context, req Request) (*Capture, error) {
	start := time.Now()
	c := &Capture{files: f, req: req}
	err := c.open()
	if err == nil {
		err = c.choose()
	}
	if err == nil {
		c.report.Begin, err = c.way.begin(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, c.Abort())
	}
	c.report.Begin.Duration = time.Since(start)
	return c, nil
}

func (c *Capture) open() error {
	src, err := c.files.openSource(c.req.Source)
	if err != nil {
		return err
	}
	c.src = src
	info, err := src.Stat()
	if err != nil {
		return wrap(err, OpRead, c.req.Source)
	}
	c.size, c.report.Size = info.Size(), info.Size()
	c.dst, err = c.files.create(c.req.Dest)
	return err
}

// Freeze captures the file as it is now. The guest must stand still from before the call until it returns.
func (c *Capture) Freeze(ctx context.Context) (Stats, error) {
	start := time.Now()
	stats, err := c.way.freeze(ctx)
	stats.Method, stats.Duration = c.report.Method, time.Since(start)
	c.report.Freeze = stats
	return stats, err
}

// Finish puts the copy on stable storage, gives it its name and its digest. The guest runs again.
func (c *Capture) Finish(ctx context.Context) (Report, error) {
	start := time.Now()
	digest, err := c.files.digest(ctx, c.dst)
	if err == nil {
		err = c.files.SyncFile(c.dst.Name())
	}
	if err == nil {
		err = c.files.rename(c.dst.Name(), c.req.Dest)
	}
	if err == nil {
		c.done = true
		c.report.Stored, err = c.files.Stored(c.req.Dest)
	}
	if err != nil {
		return c.report, errors.Join(err, c.Abort())
	}
	c.report.Digest = digest
	c.report.Finish = Stats{Method: c.report.Method, Duration: time.Since(start)}
	return c.report, c.close()
}

// Abort removes what was made, unless Finish has already given it its name.
func (c *Capture) Abort() error {
	var err error
	if c.dst != nil && !c.done {
		if err = os.Remove(c.dst.Name()); errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		c.done = true
	}
	return errors.Join(err, c.close())
}

func (c *Capture) close() error {
	var err error
	for _, file := range []*os.File{c.src, c.dst} {
		if file != nil {
			err = errors.Join(err, file.Close())
		}
	}
	if c.watch != nil {
		err = errors.Join(err, c.watch.Close())
	}
	c.src, c.dst, c.watch = nil, nil, nil
	return err
}

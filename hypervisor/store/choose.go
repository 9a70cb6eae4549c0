package store

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// choose takes the best way that works here, or the one that was asked for.
func (c *Capture) choose() error {
	reflink, err := c.reflinks()
	if err != nil {
		return err
	}
	switch want := c.req.Method; {
	case want == "" && reflink, reflink && want == MethodReflinkAhead:
		if c.exactMaps() {
			c.take(&cloneAhead{Capture: c}, MethodReflinkAhead, "")
			return nil
		}
		if want != "" {
			return fmt.Errorf("%s: %w: only on XFS", want, ErrUnsupported)
		}
		c.take(&reflinked{c, true}, MethodReflinkFlush, "the filesystem's map of extents is not exact or not quick")
		return nil
	case reflink && (want == MethodReflinkFlush || want == MethodReflink):
		c.take(&reflinked{c, want == MethodReflinkFlush}, want, "asked for")
		return nil
	case want == MethodReflink || want == MethodReflinkFlush || want == MethodReflinkAhead:
		return fmt.Errorf("%s: %w", want, ErrUnsupported)
	case want == MethodCopy:
		c.take(&copied{c}, MethodCopy, "asked for")
		return nil
	case want == MethodCopyCompare:
		c.take(&compareAhead{c}, MethodCopyCompare, "asked for")
		return nil
	case want == MethodCopySoftDirty || want == "":
		return c.chooseSoftDirty()
	default:
		return fmt.Errorf("%s: %w", want, ErrUnsupported)
	}
}

func (c *Capture) take(way way, method Method, reason string) {
	c.way, c.report.Method, c.report.Reason = way, method, reason
}

// chooseSoftDirty takes soft-dirty bits where they can be trusted, and says what stands against it where they cannot.
func (c *Capture) chooseSoftDirty() error {
	pids, against, err := c.followable()
	if err != nil {
		return err
	}
	if against == "" {
		c.take(&softDirty{Capture: c, pids: pids}, MethodCopySoftDirty, "the filesystem cannot share blocks")
		return nil
	}
	if c.req.Method != "" {
		return fmt.Errorf("%s: %w: %s", c.req.Method, ErrUnsupported, against)
	}
	c.take(&compareAhead{c}, MethodCopyCompare, "the filesystem cannot share blocks, and "+against)
	return nil
}

// followable gives the processes that write to the source through their page tables, or what stands against following
// them.
func (c *Capture) followable() (pids []int, against string, err error) {
	if !c.req.Mapped {
		return nil, "the file is not mapped memory", nil
	}
	if c.req.DirectIO {
		return nil, "devices write to the memory directly", nil
	}
	if ok, reason := SoftDirtyAvailable(); !ok {
		return nil, reason, nil
	}
	maps, err := mappers(c.src)
	if err != nil {
		return nil, "", wrap(err, OpPagemap, c.src.Name())
	}
	for _, m := range maps {
		if !slices.Contains(pids, m.pid) {
			pids = append(pids, m.pid)
		}
	}
	if len(pids) == 0 {
		return nil, "no process maps the file", nil
	}
	return pids, "", nil
}

// reflinks says whether source and copy can share blocks.
func (c *Capture) reflinks() (bool, error) {
	var src, dst unix.Stat_t
	if err := unix.Fstat(int(c.src.Fd()), &src); err != nil {
		return false, wrap(err, OpMap, c.src.Name())
	}
	if err := unix.Fstat(int(c.dst.Fd()), &dst); err != nil {
		return false, wrap(err, OpMap, c.dst.Name())
	}
	if src.Dev != dst.Dev {
		return false, nil
	}
	method, err := c.files.Probe(filepath.Dir(c.req.Dest))
	return method == MethodReflink, err
}

// exactMaps says whether the filesystem's map of extents can stand for the contents. XFS tells the place of every
// written block, and quickly. btrfs looks up each extent's other owners for the map, which costs more than sharing
// everything again.
func (c *Capture) exactMaps() bool {
	var st unix.Statfs_t
	err := retry(func() error { return unix.Fstatfs(int(c.dst.Fd()), &st) })
	return err == nil && st.Type == unix.XFS_SUPER_MAGIC
}

// reflinked shares the whole file in the pause. With ahead, the dirty pages, which FICLONE would have to write back
// first, are written back while the guest runs.
//
// Why nothing is missed: FICLONE itself writes back what is still dirty and shares the file as a whole.
type reflinked struct {
	*Capture
	ahead bool
}

func (r *reflinked) begin(ctx context.Context) (Stats, error) {
	if !r.ahead {
		return Stats{}, nil
	}
	return r.flushAhead(ctx)
}

func (r *reflinked) freeze(ctx context.Context) (Stats, error) {
	if err := ctx.Err(); err != nil {
		return Stats{}, err
	}
	return Stats{Shared: r.size, Rounds: 1}, r.files.cloneAll(r.src, r.dst)
}

// copied leaves the whole copy to the pause.
type copied struct{ *Capture }

func (*copied) begin(context.Context) (Stats, error) { return Stats{}, nil }

func (p *copied) freeze(ctx context.Context) (Stats, error) {
	return p.files.copyAll(ctx, p.src, p.dst)
}

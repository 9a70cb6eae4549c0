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
	pids, against, err := c.followable()
	if err != nil {
		return err
	}
	if c.req.Method != "" {
		return c.chooseAsked(reflink, pids, against)
	}
	exact := reflink && c.exactMaps()
	few := false
	if exact {
		if few, err = c.fewExtents(); err != nil {
			return err
		}
	}
	switch {
	case few:
		c.take(MethodReflinkFlush, "the filesystem shares blocks, and the file has few extents", nil)
	case exact && against == "":
		c.take(MethodReflinkSoftDirty, "the filesystem shares blocks, the kernel tells what was written", pids)
	case exact && c.countsDirty():
		c.take(MethodReflinkAhead, "the filesystem shares blocks and tells where they lie", nil)
	case reflink:
		c.take(MethodReflinkFlush, "the filesystem shares blocks, but does not tell quickly where they lie", nil)
	case against == "":
		c.take(MethodCopySoftDirty, "the filesystem cannot share blocks, the kernel tells what was written", pids)
	default:
		c.take(MethodCopyCompare, "the filesystem cannot share blocks, and "+against, nil)
	}
	return nil
}

// chooseAsked takes the method that the request names, or says why it cannot be.
func (c *Capture) chooseAsked(reflink bool, pids []int, against string) error {
	no := func(reason string) error { return fmt.Errorf("%s: %w: %s", c.req.Method, ErrUnsupported, reason) }
	switch c.req.Method {
	case MethodReflink, MethodReflinkFlush:
		if !reflink {
			return no("the filesystem cannot share blocks")
		}
	case MethodReflinkAhead, MethodReflinkSoftDirty:
		if !reflink || !c.exactMaps() {
			return no("only XFS with reflink tells exactly and quickly where blocks lie")
		}
	case MethodCopy, MethodCopyCompare, MethodCopySoftDirty:
	default:
		return no("there is no such method")
	}
	if against != "" && (c.req.Method == MethodReflinkSoftDirty || c.req.Method == MethodCopySoftDirty) {
		return no(against)
	}
	c.take(c.req.Method, "asked for", pids)
	return nil
}

func (c *Capture) take(method Method, reason string, pids []int) {
	c.report.Method, c.report.Reason = method, reason
	switch method {
	case MethodReflink, MethodReflinkFlush:
		c.way = &reflinked{c, method == MethodReflinkFlush}
	case MethodReflinkAhead:
		c.way = &cloneAhead{Capture: c}
	case MethodReflinkSoftDirty:
		a := &cloneAhead{Capture: c}
		c.way = &tracked{Capture: c, pids: pids, base: a.base, catch: a.round, without: MethodReflinkAhead}
	case MethodCopySoftDirty:
		a := &compareAhead{c}
		c.way = &tracked{Capture: c, pids: pids, base: c.copyBase, catch: a.freeze, without: MethodCopyCompare}
	case MethodCopyCompare:
		c.way = &compareAhead{c}
	default:
		c.way = &copied{c}
	}
}

// fewExtents says whether sharing the whole source in the pause is quick.
func (c *Capture) fewExtents() (bool, error) {
	now, err := c.files.extents(c.src, false)
	return len(now) <= wholeExtents, err
}

// countsDirty says whether the kernel can tell the source's dirty pages.
func (c *Capture) countsDirty() bool {
	_, err := dirtyIn(c.src, run{})
	return err == nil
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

package store

import (
	"context"
	"errors"
	"slices"
)

// cloneAhead shares the file's blocks with the copy while the guest runs, in pieces. In the pause it shares again only
// the extents that moved since, and copies the pages that are still dirty.
//
// Why not one FICLONE in the pause: it writes back dirty pages, at the speed of the disk, and walks every extent of the
// file at 20 to 40 µs each; a guest that writes at random leaves an extent for nearly every page written since the last
// snapshot. Reading the map of extents takes about 1 µs each, copying a page in memory 2 to 3 µs.
//
// Why nothing is missed. A block that two files share is never written in place: the filesystem gives the writer
// another block. So where a range of bytes lies at the same physical place in both files, what the disk holds is the
// same in both: neither file was written there since they came to share it. In the pause, first the source's dirty
// pages are listed, those under writeback included, then its map is read. A page that is in the list is copied from
// memory. A page that is not has the contents that the disk holds, and had them before the map was read, since XFS
// changes the map before it ends a page's writeback (xfs_end_ioend): its place tells whether it must be shared again.
// Holes of the source become holes of the copy. Which pages were dirty when, and were shared before or after which
// write, does not matter. The copy's map may be read before the freeze, because nobody else writes to the copy. Ranges
// whose place the filesystem does not tell are always shared anew.
type cloneAhead struct {
	*Capture
	shared []extent // the copy's map after the last round
}

const (
	// A piece is bounded in bytes and in extents because the guest's first write to a clean page waits while a piece is
	// shared: 128 extents take about 5 ms.
	pieceBytes   = 64 << 20
	pieceExtents = 128
	// wholeExtents is the number of extents up to which the whole file is shared in the pause, at 5 µs each on an idle
	// machine. Sharing ahead has a price too: every page that the guest writes again needs a new place again, and a
	// guest that does so faster than the disk takes it is never caught up with.
	wholeExtents = 10_000
	// copyAtMost is the amount of dirty memory above which writing it back is quicker than copying it: the kernel slows
	// down who makes many pages dirty, and memory that the kernel keeps in large units is dirty in large units, of which
	// it writes back only what was written.
	copyAtMost = 64 << 20
)

func (a *cloneAhead) begin(ctx context.Context) (Stats, error) {
	total, err := a.base(ctx)
	for previous, round := a.size, 0; err == nil && round < a.rounds(); round++ {
		var stats Stats
		if stats, err = a.round(ctx); err != nil {
			break
		}
		total = added(total, stats)
		dirty, counted := dirtyIn(a.src, run{})
		if counted != nil || dirty <= leftToPause || dirty > previous*3/4 {
			break
		}
		previous = dirty
	}
	if dirty, counted := dirtyIn(a.src, run{}); err == nil && counted == nil && dirty > copyAtMost/2 {
		// The pause will have to write back: leave it as little of that as can be.
		var stats Stats
		stats, err = a.flushAhead(ctx)
		total = added(total, stats)
	}
	return total, err
}

// base gives the copy its size and gets most of the source's dirty pages written back.
func (a *cloneAhead) base(ctx context.Context) (Stats, error) {
	if err := a.files.resize(a.dst, a.size); err != nil {
		return Stats{}, err
	}
	return a.flushAhead(ctx)
}

// round writes back, shares what moved, and remembers the copy's map.
func (a *cloneAhead) round(ctx context.Context) (Stats, error) {
	stats, err := a.share(ctx, true, nil)
	if err == nil {
		a.shared, err = a.files.extents(a.dst, true)
	}
	return stats, err
}

func (a *cloneAhead) freeze(ctx context.Context) (Stats, error) {
	dirty, err := dirtyRuns(a.src, a.size)
	if errors.Is(err, ErrUnsupported) {
		a.report.Reason = "the kernel does not tell which pages are dirty: they are written back in the pause"
		return a.share(ctx, true, nil)
	}
	if err != nil {
		return Stats{}, err
	}
	if sum(dirty) > copyAtMost {
		a.report.Reason = "too much was dirty to copy it: it was written back in the pause"
		return a.share(ctx, true, nil)
	}
	stats, err := a.share(ctx, false, dirty)
	if err != nil {
		return stats, err
	}
	copied, err := a.files.copyRuns(ctx, a.src, a.dst, dirty, false)
	stats = added(stats, copied)
	stats.Rounds = 1
	return stats, err
}

// share shares with the copy what lies elsewhere in the source, except for the dirty ranges, which the caller copies.
// With flush it writes the source's dirty pages back first.
func (a *cloneAhead) share(ctx context.Context, flush bool, dirty []run) (Stats, error) {
	stats := Stats{Rounds: 1}
	now, err := a.files.extents(a.src, flush)
	if err != nil {
		return stats, err
	}
	differ, gone := moved(now, a.shared, a.size)
	differ = intersect(differ, holes(dirty, a.size))
	stats.Extents = len(differ)
	for _, piece := range pieces(differ) {
		if err := ctx.Err(); err != nil {
			return stats, err
		}
		if err := a.files.cloneRange(a.src, a.dst, piece.off, piece.length); err != nil {
			return stats, err
		}
		stats.Shared += piece.length
	}
	for _, r := range gone {
		if err := a.files.punch(a.dst, r); err != nil {
			return stats, err
		}
	}
	return stats, nil
}

// moved gives the ranges of the source's map that lie elsewhere in the copy's, and those that the copy has and the
// source has no more. Unwritten extents count as holes: they read as zeros.
func moved(src, dst []extent, size int64) (differ, gone []run) {
	src, dst = written(src, size), written(dst, size)
	data, copied := make([]run, 0, len(src)), make([]run, 0, len(dst))
	for _, d := range dst {
		copied = append(copied, d.run)
	}
	for _, s := range src {
		data = append(data, s.run)
		for len(dst) > 0 && dst[0].end() <= s.off {
			dst = dst[1:]
		}
		at := s.off
		for _, d := range dst {
			if d.off >= s.end() {
				break
			}
			if !s.fixed || !d.fixed || s.physical-s.off != d.physical-d.off {
				continue
			}
			if start := max(d.off, s.off); start > at {
				differ = append(differ, run{at, start - at})
			}
			at = min(d.end(), s.end())
		}
		if at < s.end() {
			differ = append(differ, run{at, s.end() - at})
		}
	}
	return differ, intersect(copied, holes(data, size))
}

// written leaves out what reads as zeros and cuts the last extent at the end of the file.
func written(extents []extent, size int64) []extent {
	out := make([]extent, 0, len(extents))
	for _, e := range extents {
		e.length = min(e.length, size-e.off)
		if e.length > 0 && !e.unwritten {
			out = append(out, e)
		}
	}
	return out
}

// pieces joins neighbours and cuts what is long, so that each piece is one short call.
func pieces(runs []run) []run {
	var out []run
	count := 0
	for _, r := range runs {
		last := len(out) - 1
		if last >= 0 && out[last].end() == r.off && count < pieceExtents && out[last].length+r.length <= pieceBytes {
			out[last].length += r.length
			count++
			continue
		}
		for ; r.length > pieceBytes; r = (run{r.off + pieceBytes, r.length - pieceBytes}) {
			out = append(out, run{r.off, pieceBytes})
		}
		out = append(out, r)
		count = 1
	}
	return slices.Clip(out)
}

package store

import (
	"context"
	"slices"
)

// cloneAhead shares the file's blocks with the copy while the guest runs, in pieces, and in the pause shares again only
// what moved since.
//
// Why not one FICLONE in the pause: it walks every extent of the file at 20 to 30 µs each, and a guest that writes at
// random leaves an extent for nearly every page written since the last snapshot.
//
// Why nothing is missed. A block that two files share is never written in place: the filesystem gives the writer
// another block. So at the freeze, when the guest stands still and every dirty page has been written back, a range whose
// bytes lie at the same physical place in both files has the same contents in both: neither file was written there
// since they came to share it. Every other range is shared anew, and every hole of the source is made a hole. Which pages
// were dirty when, and which were cloned before or after which write, does not matter: only the two maps at the freeze
// do. The copy's map may be read before the freeze, because nobody else writes to the copy. Ranges whose place the
// filesystem does not tell (compressed, inside the inode, not yet placed) are always shared anew.
type cloneAhead struct {
	*Capture
	shared []extent // the copy's map after the last round
}

const (
	// A piece is bounded in bytes and in extents because the guest's first write to a clean page waits while a piece is
	// shared: 128 extents take about 3 ms.
	pieceBytes   = 64 << 20
	pieceExtents = 128
	// aheadEnough is the number of extents that is left to the pause.
	aheadEnough = 32
)

func (a *cloneAhead) begin(ctx context.Context) (Stats, error) {
	if err := a.files.resize(a.dst, a.size); err != nil {
		return Stats{}, err
	}
	total, err := a.flushAhead(ctx)
	if err != nil {
		return total, err
	}
	previous := int(^uint(0) >> 1)
	for round := 0; round < a.rounds(); round++ {
		stats, err := a.round(ctx)
		if err != nil {
			return total, err
		}
		total.Shared += stats.Shared
		total.Extents += stats.Extents
		total.Rounds++
		if a.shared, err = a.files.extents(a.dst); err != nil {
			return total, err
		}
		if stats.Extents <= aheadEnough || stats.Extents > previous*3/4 {
			break
		}
		previous = stats.Extents
	}
	return total, nil
}

func (a *cloneAhead) freeze(ctx context.Context) (Stats, error) { return a.round(ctx) }

// round flushes, compares the maps, and shares what differs.
func (a *cloneAhead) round(ctx context.Context) (Stats, error) {
	stats := Stats{Rounds: 1}
	if err := a.files.flush(a.src); err != nil {
		return stats, err
	}
	now, err := a.files.extents(a.src)
	if err != nil {
		return stats, err
	}
	differ, gone := moved(now, a.shared, a.size)
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

package store

import (
	"bytes"
	"context"
	"os"
	"sync/atomic"
)

var zeroPage [pageSize]byte

func isZero(page []byte) bool { return bytes.Equal(page, zeroPage[:len(page)]) }

// copyAll makes the empty file dst a copy of src that keeps holes and leaves out pages of zeros.
func (f *Files) copyAll(ctx context.Context, src, dst *os.File) (Stats, error) {
	info, err := src.Stat()
	if err != nil {
		return Stats{}, wrap(err, OpRead, src.Name())
	}
	if err := f.resize(dst, info.Size()); err != nil {
		return Stats{}, err
	}
	data, err := f.dataRuns(src, info.Size())
	if err != nil {
		return Stats{}, err
	}
	stats, err := f.copyRuns(ctx, src, dst, data, true)
	stats.Method = MethodCopy
	return stats, err
}

// copyRuns copies the runs of src to the same places of dst. Where dst is known to be all hole, pages of zeros are
// left out.
func (f *Files) copyRuns(ctx context.Context, src, dst *os.File, runs []run, dstEmpty bool) (Stats, error) {
	var written, extents atomic.Int64
	err := eachRun(ctx, cutRuns(runs), func(_ int, r run, buf *buffers) error {
		from := buf.first(r.length)
		if err := f.readFull(src, from, r.off); err != nil {
			return err
		}
		differs := func(page []byte, _ int) bool { return !dstEmpty || !isZero(page) }
		return f.writePages(dst, from, r.off, differs, &written, &extents)
	})
	return Stats{Bytes: written.Load(), Extents: int(extents.Load()), Rounds: 1}, err
}

// sweep makes dst equal to src by reading both and writing what differs, and gives dst holes where src has them. Pages
// of src that are written while sweep runs may or may not be in dst.
func (f *Files) sweep(ctx context.Context, src, dst *os.File, size int64) (Stats, error) {
	data, err := f.dataRuns(src, size)
	if err != nil {
		return Stats{}, err
	}
	var written, extents atomic.Int64
	err = eachRun(ctx, cutRuns(data), func(_ int, r run, buf *buffers) error {
		from, to := buf.first(r.length), buf.second(r.length)
		if err := f.readFull(src, from, r.off); err != nil {
			return err
		}
		if err := f.readFull(dst, to, r.off); err != nil {
			return err
		}
		if bytes.Equal(from, to) {
			return nil
		}
		differs := func(page []byte, at int) bool { return !bytes.Equal(page, to[at:at+len(page)]) }
		return f.writePages(dst, from, r.off, differs, &written, &extents)
	})
	if err == nil {
		err = f.punchHoles(dst, holes(data, size), size)
	}
	return Stats{Bytes: written.Load(), Extents: int(extents.Load()), Rounds: 1}, err
}

// punchHoles removes from dst whatever data lies where src has holes.
func (f *Files) punchHoles(dst *os.File, srcHoles []run, size int64) error {
	if len(srcHoles) == 0 {
		return nil
	}
	data, err := f.dataRuns(dst, size)
	if err != nil {
		return err
	}
	for _, r := range intersect(data, srcHoles) {
		if err := f.punch(dst, r); err != nil {
			return err
		}
	}
	return nil
}

// intersect gives what is in both of two ordered lists.
func intersect(a, b []run) []run {
	var out []run
	for len(a) > 0 && len(b) > 0 {
		start, end := max(a[0].off, b[0].off), min(a[0].end(), b[0].end())
		if start < end {
			out = append(out, run{start, end - start})
		}
		if a[0].end() < b[0].end() {
			a = a[1:]
		} else {
			b = b[1:]
		}
	}
	return out
}

// writePages writes those pages of block, which begins at off in the file, that differs names: neighbours together.
func (f *Files) writePages(dst *os.File, block []byte, off int64, differs func(page []byte, at int) bool,
	written, extents *atomic.Int64,
) error {
	for at := 0; at < len(block); {
		end := at
		for end < len(block) {
			next := min(end+pageSize, len(block))
			if !differs(block[end:next], end) {
				break
			}
			end = next
		}
		if end == at {
			at += pageSize
			continue
		}
		if err := f.write(dst, block[at:end], off+int64(at)); err != nil {
			return err
		}
		written.Add(int64(end - at))
		extents.Add(1)
		at = end
	}
	return nil
}

func (f *Files) resize(file *os.File, size int64) error {
	if err := f.check(OpSize, file.Name()); err != nil {
		return wrap(err, OpSize, file.Name())
	}
	return wrap(file.Truncate(size), OpSize, file.Name())
}

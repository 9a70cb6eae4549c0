package store

import (
	"cmp"
	"context"
	"errors"
	"io"
	"os"
	"runtime"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	pageSize  = 4 << 10 // the unit of comparison; the page of every machine this runs on
	blockSize = 4 << 20 // the unit of work of one goroutine
)

// run is the bytes [off, off+length) of a file.
type run struct{ off, length int64 }

func (r run) end() int64 { return r.off + r.length }

// dataRuns lists the parts of the first size bytes that are not holes, in order. Memory written through a mapping
// counts as data from the moment of the write, before any block has been allocated for it: the filesystems look into
// the page cache where the map of blocks says "unwritten".
func (f *Files) dataRuns(file *os.File, size int64) ([]run, error) {
	if err := f.check(OpMap, file.Name()); err != nil {
		return nil, wrap(err, OpMap, file.Name())
	}
	var runs []run
	for at := int64(0); at < size; {
		data, err := unix.Seek(int(file.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && data >= size {
			break
		}
		if err != nil {
			return nil, wrap(err, OpMap, file.Name())
		}
		hole, err := unix.Seek(int(file.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return nil, wrap(err, OpMap, file.Name())
		}
		hole = min(hole, size)
		runs = append(runs, run{data, hole - data})
		at = hole
	}
	return runs, nil
}

// holes gives what lies between runs in the first size bytes.
func holes(runs []run, size int64) []run {
	var out []run
	at := int64(0)
	for _, r := range runs {
		if r.off > at {
			out = append(out, run{at, r.off - at})
		}
		at = r.end()
	}
	if at < size {
		out = append(out, run{at, size - at})
	}
	return out
}

// coverBlocks gives the aligned blocks, cut at size, that hold any of the runs.
func coverBlocks(runs []run, size int64) []run {
	var out []run
	next := int64(0)
	for _, r := range runs {
		for at := max(next, r.off/blockSize*blockSize); at < r.end(); at += blockSize {
			out = append(out, run{at, min(blockSize, size-at)})
			next = at + blockSize
		}
	}
	return out
}

// cutRuns cuts runs at the borders of blocks, so that they can be shared out.
func cutRuns(runs []run) []run {
	var out []run
	for _, r := range runs {
		for at := r.off; at < r.end(); {
			end := min(r.end(), (at/blockSize+1)*blockSize)
			out = append(out, run{at, end - at})
			at = end
		}
	}
	return out
}

// normalized orders runs, joins those that touch or overlap, and cuts them at size.
func normalized(runs []run, size int64) []run {
	slices.SortFunc(runs, func(a, b run) int { return cmp.Compare(a.off, b.off) })
	var out []run
	for _, r := range runs {
		r.length = min(r.length, size-r.off)
		if r.length <= 0 {
			continue
		}
		if last := len(out) - 1; last >= 0 && r.off <= out[last].end() {
			out[last].length = max(out[last].end(), r.end()) - out[last].off
			continue
		}
		out = append(out, r)
	}
	return out
}

func sum(runs []run) int64 {
	total := int64(0)
	for _, r := range runs {
		total += r.length
	}
	return total
}

// buffers are one goroutine's two blocks of memory: what the source holds, and what the destination holds.
type buffers struct{ a, b []byte }

func (b *buffers) first(n int64) []byte  { return sized(&b.a, n) }
func (b *buffers) second(n int64) []byte { return sized(&b.b, n) }

func sized(b *[]byte, n int64) []byte {
	if *b == nil {
		*b = make([]byte, blockSize)
	}
	return (*b)[:n]
}

// eachRun calls do for every run, on all processors, until one call fails or ctx ends.
func eachRun(ctx context.Context, runs []run, do func(i int, r run, buf *buffers) error) error {
	workers := min(runtime.GOMAXPROCS(0), len(runs))
	group, within := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range workers {
		group.Go(func() error {
			var buf buffers
			for {
				if err := within.Err(); err != nil {
					return err
				}
				i := int(next.Add(1)) - 1
				if i >= len(runs) {
					return nil
				}
				if err := do(i, runs[i], &buf); err != nil {
					return err
				}
			}
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

// readFull reads len(b) bytes; what lies behind the end of the file reads as zeros.
func (f *Files) readFull(file *os.File, b []byte, off int64) error {
	if err := f.check(OpRead, file.Name()); err != nil {
		return wrap(err, OpRead, file.Name())
	}
	n, err := file.ReadAt(b, off)
	if errors.Is(err, io.EOF) {
		clear(b[n:])
		return nil
	}
	return wrap(err, OpRead, file.Name())
}

func (f *Files) write(file *os.File, b []byte, off int64) error {
	if err := f.check(OpWrite, file.Name()); err != nil {
		return wrap(err, OpWrite, file.Name())
	}
	_, err := file.WriteAt(b, off)
	return wrap(err, OpWrite, file.Name())
}

// punch makes r of file a hole.
func (f *Files) punch(file *os.File, r run) error {
	if err := f.check(OpPunch, file.Name()); err != nil {
		return wrap(err, OpPunch, file.Name())
	}
	err := retry(func() error {
		return unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, r.off, r.length)
	})
	return wrap(err, OpPunch, file.Name())
}

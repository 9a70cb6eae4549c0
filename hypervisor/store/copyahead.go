package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"unsafe"
)

// compareAhead copies the file while the guest runs; in the pause it reads both files again and copies what differs. The
// pause still grows with the file, by the time it takes to read it twice from memory, but not by the time to write it.
//
// Why nothing is missed: in the pause every byte that is not in a hole of the source is compared with the copy, and
// every hole of the source becomes one. What was copied before only saves writing.
type compareAhead struct{ *Capture }

func (w *compareAhead) begin(ctx context.Context) (Stats, error) {
	total, err := w.copyBase(ctx)
	if err != nil {
		return total, err
	}
	stats, err := w.files.sweep(ctx, w.src, w.dst, w.size)
	return added(total, stats), err
}

func (w *compareAhead) freeze(ctx context.Context) (Stats, error) {
	return w.files.sweep(ctx, w.src, w.dst, w.size)
}

// copyBase makes the first copy and gets it out of the way of later writes: a copy full of dirty pages would make them
// wait for the disk.
func (c *Capture) copyBase(ctx context.Context) (Stats, error) {
	stats, err := c.files.copyAll(ctx, c.src, c.dst)
	if err != nil {
		return stats, err
	}
	return stats, c.files.flush(c.dst)
}

// softDirty copies the file while the guest runs; in the pause it copies only the pages that were written since the last
// pass began.
//
// Each pass is: mark all pages clean, then make the copy equal to the source by reading both in full. The order is what
// makes it right. A write before the marking is seen by the reading that follows; a write after it sets the page's bit,
// and the bit is read in the pause. It would be quicker to read, in each pass, only the pages whose bit was set before
// the marking; but the bits are read and cleared by two calls, and a write between them would be lost.
//
// Whose writes set the bit. Clearing makes the page's entry in the process's page table read-only (clear_soft_dirty in
// fs/proc/task_mmu.c); the next write faults, and pte_mkdirty sets the bit. That covers the process's own threads, its
// device emulation, reads of disks into guest memory by read calls or io_uring through the page cache, and vhost threads,
// which borrow the process's page tables. It covers guests under KVM: clearing tells the MMU notifiers, KVM drops its
// own entries for the range, and a later write by the guest gets the page back through get_user_pages for writing, which
// faults like the process itself; KVM maps a page writable for the guest only where the process's own entry is writable
// (hva_to_pfn in virt/kvm/kvm_main.c). It does not cover writes to a page that was pinned before the clearing (disks
// opened with O_DIRECT, passed-through devices): Request.DirectIO excludes those. Another process's mapping has page
// tables of its own: all processes that map the file shared are found and followed.
//
// What makes a bit disappear. Memory reclaim takes a file's page out of the page tables and forgets the bit, and so does
// joining small pages to a huge one; both are counted by the kernel (reclaimMarks). When the counters moved since before
// the last pass, the pause compares instead, which needs no bits. Moving a page (compaction, NUMA) keeps the bit. Punching
// a hole into the source removes the page with its bit: the source's holes are made holes of the copy in the pause.
type softDirty struct {
	*Capture
	pids  []int
	marks string // reclaimMarks from before the pass before the last
}

// ahead is the amount of written memory that is left to the pause.
const ahead = 1 << 20

func (w *softDirty) begin(ctx context.Context) (Stats, error) {
	marks, err := reclaimMarks()
	if err != nil {
		return Stats{}, err
	}
	total, err := w.copyBase(ctx)
	for previous := w.size; err == nil && total.Rounds <= w.rounds(); {
		// A page may have been taken up by reclaim and counted just before the marks were read, and be dropped just after
		// the marking: marks from a whole pass earlier leave it no time for that.
		w.marks = marks
		if marks, err = reclaimMarks(); err != nil {
			break
		}
		var stats Stats
		if stats, err = w.pass(ctx); err != nil {
			break
		}
		total = added(total, stats)
		var left []run
		if left, err = w.written(); err != nil {
			break
		}
		if n := sum(left); n <= ahead || n > previous*3/4 {
			break
		} else {
			previous = n
		}
	}
	return total, err
}

// pass marks all pages clean and makes the copy equal to the source.
func (w *softDirty) pass(ctx context.Context) (Stats, error) {
	if err := w.files.check(OpPagemap, w.src.Name()); err != nil {
		return Stats{}, wrap(err, OpPagemap, w.src.Name())
	}
	for _, pid := range w.pids {
		if err := markClean(pid); err != nil {
			return Stats{}, wrap(err, OpPagemap, w.src.Name())
		}
	}
	return w.files.sweep(ctx, w.src, w.dst, w.size)
}

func (w *softDirty) freeze(ctx context.Context) (Stats, error) {
	runs, err := w.written()
	if err == nil {
		err = w.unmoved()
	}
	if err != nil {
		// Without trustworthy bits there is still the comparison; the capture must not fail for this.
		w.report.Method, w.report.Reason = MethodCopyCompare, "soft-dirty bits could not be used: "+err.Error()
		return w.files.sweep(ctx, w.src, w.dst, w.size)
	}
	stats, err := w.files.copyRuns(ctx, w.src, w.dst, runs, false)
	if err != nil {
		return stats, err
	}
	data, err := w.files.dataRuns(w.src, w.size)
	if err != nil {
		return stats, err
	}
	return stats, w.files.punchHoles(w.dst, holes(data, w.size), w.size)
}

func (w *softDirty) unmoved() error {
	marks, err := reclaimMarks()
	if err == nil && marks != w.marks {
		err = errors.New("the kernel reclaimed memory meanwhile")
	}
	return err
}

// written gives what the followed processes wrote to the file since the last pass began, in order.
func (w *softDirty) written() ([]run, error) {
	if err := w.files.check(OpPagemap, w.src.Name()); err != nil {
		return nil, wrap(err, OpPagemap, w.src.Name())
	}
	var runs []run
	for _, pid := range w.pids {
		maps, err := mappingsOf(pid, w.src)
		if err != nil {
			return nil, err
		}
		if len(maps) == 0 {
			return nil, fmt.Errorf("process %d no longer maps the file", pid)
		}
		for _, m := range maps {
			found, err := writtenPages(m)
			if err != nil {
				return nil, err
			}
			runs = append(runs, found...)
		}
	}
	return normalized(runs, w.size), nil
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

func added(a, b Stats) Stats {
	a.Bytes += b.Bytes
	a.Shared += b.Shared
	a.Extents += b.Extents
	a.Rounds += b.Rounds
	return a
}

func addressOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }

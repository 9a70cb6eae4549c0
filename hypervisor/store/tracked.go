package store

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// tracked makes the copy equal to the source while the guest runs, in passes; in the pause it copies only the pages
// that were written since the last pass began, as the kernel's soft-dirty bits tell.
//
// Each pass is: mark all pages clean, then catch up, which looks at the whole source: either it reads source and copy
// and writes what differs, or it shares every block that is not shared yet. The order is what makes it right. A write
// before the marking is seen by the catching up that follows; a write after it sets the page's bit, and the bit is read
// in the pause. It would be quicker to catch up, in each pass, only with the pages whose bit was set before the
// marking; but the bits are read and cleared by two calls, and a write between them would be lost.
//
// Whose writes set the bit. Clearing makes the page's entry in the process's page table read-only (clear_soft_dirty in
// fs/proc/task_mmu.c); the next write faults, and pte_mkdirty sets the bit. That covers the process's own threads, its
// device emulation, reads of disks into guest memory by read calls or io_uring through the page cache, and vhost
// threads, which borrow the process's page tables. It covers guests under KVM: clearing tells the MMU notifiers, KVM
// drops its own entries for the range, and a later write by the guest gets the page back through get_user_pages for
// writing, which faults like the process itself; for a guest's read, KVM maps the page writable only if the process's
// own entry is writable already (hva_to_pfn in virt/kvm/kvm_main.c). It does not cover writes to a page that was pinned
// before the clearing (disks opened with O_DIRECT, passed-through devices): Request.DirectIO excludes those. Another
// process's mapping has page tables of its own: all processes that map the file shared are found and followed.
//
// What makes a bit disappear. Memory reclaim takes a file's page out of the page tables and forgets the bit
// (try_to_unmap_one in mm/rmap.c), and so does joining small pages to a huge one; both are counted by the kernel
// (reclaimMarks). When the counters moved since before the last pass, the pause catches up once more instead, which
// needs no bits. Moving a page (compaction, NUMA) keeps the bit, and so does writing it back. Punching a hole into the
// source removes the page with its bit: the source's holes are made holes of the copy in the pause.
type tracked struct {
	*Capture
	pids  []int
	marks string // reclaimMarks from before the pass before the last
	base  func(context.Context) (Stats, error)
	catch func(context.Context) (Stats, error)
	// without is the method that is left when the bits cannot be trusted.
	without Method
}

// leftToPause is the amount of written memory that is quicker to deal with in the pause than to chase further.
const leftToPause = 1 << 20

func (w *tracked) begin(ctx context.Context) (Stats, error) {
	marks, err := reclaimMarks()
	if err != nil {
		return Stats{}, err
	}
	if w.watch, err = watchCalls(w.req.Source); err != nil {
		return Stats{}, wrap(err, OpPagemap, w.req.Source)
	}
	total, err := w.base(ctx)
	for previous, round := w.size, 0; err == nil && round < w.rounds(); round++ {
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
		n := sum(left)
		if n <= leftToPause || n > previous*3/4 {
			break
		}
		previous = n
	}
	return total, err
}

// pass marks all pages clean and catches up.
func (w *tracked) pass(ctx context.Context) (Stats, error) {
	if err := w.files.check(OpPagemap, w.src.Name()); err != nil {
		return Stats{}, wrap(err, OpPagemap, w.src.Name())
	}
	if _, err := w.watch.seen(); err != nil { // those until now are caught up with
		return Stats{}, wrap(err, OpPagemap, w.src.Name())
	}
	for _, pid := range w.pids {
		if err := markClean(pid); err != nil {
			return Stats{}, wrap(err, OpPagemap, w.src.Name())
		}
	}
	return w.catch(ctx)
}

func (w *tracked) freeze(ctx context.Context) (Stats, error) {
	runs, err := w.written()
	if err == nil {
		err = w.unmoved()
	}
	if err != nil {
		// Without trustworthy bits there is still the slower way; the capture must not fail for this.
		w.report.Method, w.report.Reason = w.without, "soft-dirty bits could not be used: "+err.Error()
		return w.catch(ctx)
	}
	return w.files.copyRuns(ctx, w.src, w.dst, runs, false)
}

// unmoved says whether the bits can be trusted.
func (w *tracked) unmoved() error {
	marks, err := reclaimMarks()
	if err == nil && marks != w.marks {
		err = errors.New("the kernel reclaimed memory meanwhile")
	}
	if err != nil {
		return err
	}
	called, err := w.watch.seen()
	if err == nil && called {
		err = errors.New("the file was also changed by calls")
	}
	return err
}

// written gives what the followed processes wrote to the file since the last pass began, in order.
func (w *tracked) written() ([]run, error) {
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
			return nil, fmt.Errorf("process %d no longer maps the file: %w", pid, os.ErrProcessDone)
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

package store

import "time"

// Method names a way to make a copy of a file. It is logged and shown to users as it stands.
type Method string

// The ways, from the whole file in the pause to almost nothing in it.
const (
	// MethodReflink: FICLONE; the filesystem shares the blocks.
	MethodReflink Method = "reflink"
	// MethodReflinkFlush: dirty pages are written back while the guest runs, then FICLONE in the pause.
	MethodReflinkFlush Method = "reflink+flush-ahead"
	// MethodReflinkAhead: blocks are shared in pieces while the guest runs; in the pause extents that moved since are
	// shared again, and pages that are still dirty are copied.
	MethodReflinkAhead Method = "reflink+clone-ahead"
	// MethodReflinkSoftDirty: blocks are shared in pieces while the guest runs; in the pause only pages are copied that
	// the kernel's soft-dirty bits show as written since.
	MethodReflinkSoftDirty Method = "reflink+soft-dirty-ahead"
	// MethodCopy: a copy that keeps holes, all of it in the pause.
	MethodCopy Method = "copy"
	// MethodCopyCompare: copied while the guest runs; in the pause everything is read again and what differs is copied.
	MethodCopyCompare Method = "copy+compare-ahead"
	// MethodCopySoftDirty: copied while the guest runs; in the pause only pages are copied that the kernel's soft-dirty
	// bits show as written since.
	MethodCopySoftDirty Method = "copy+soft-dirty-ahead"
)

// Op names an operation on the system, so that a test can make exactly that one fail.
type Op string

// The operations, in the order in which a snapshot meets them.
const (
	OpCreate  Op = "create"  // make a new file
	OpSize    Op = "size"    // give it its size, or reserve its blocks
	OpClone   Op = "clone"   // FICLONE, FICLONERANGE
	OpMap     Op = "map"     // FIEMAP, SEEK_DATA, SEEK_HOLE
	OpRead    Op = "read"    // read the source
	OpWrite   Op = "write"   // write the destination
	OpPunch   Op = "punch"   // make a hole in the destination
	OpFlush   Op = "flush"   // write back the source's dirty pages
	OpSync    Op = "sync"    // fsync of a file or folder
	OpRename  Op = "rename"  // give the final name
	OpPagemap Op = "pagemap" // clear or read soft-dirty bits
)

// Files does the operations of this package. It keeps no state; one value serves any number of goroutines.
type Files struct {
	fail func(op Op, path string) error
}

// New makes a Files that works on the real system.
func New() *Files { return &Files{} }

// NewFailing makes a Files that asks fail before every operation and returns what it returns, unless nil, as that
// operation's error. It is for tests of what happens when the disk is full or breaks.
func NewFailing(fail func(op Op, path string) error) *Files { return &Files{fail: fail} }

func (f *Files) check(op Op, path string) error {
	if f.fail == nil {
		return nil
	}
	return f.fail(op, path)
}

// Stats says what a copy did.
type Stats struct {
	Method   Method        // how the bytes came to the destination
	Bytes    int64         // bytes written to the destination (not those shared by reflink)
	Shared   int64         // bytes shared by reflink
	Extents  int           // separate runs of bytes that were copied or shared
	Rounds   int           // passes over the source
	Duration time.Duration // wall-clock time
}

// added gives what both did together.
func added(a, b Stats) Stats {
	a.Bytes += b.Bytes
	a.Shared += b.Shared
	a.Extents += b.Extents
	a.Rounds += b.Rounds
	return a
}

// Report says what a whole capture did. Reason tells in words why Method was taken and not a better one.
type Report struct {
	Method Method
	Reason string
	Begin  Stats  // while the guest ran
	Freeze Stats  // in the pause: its Duration is this file's share of the guest's standstill
	Finish Stats  // after the guest ran again
	Digest string // of the destination, as Files.Digest gives it
	Size   int64  // length of the destination in bytes
	Stored int64  // bytes of disk that the destination occupies, those shared with other files included
}

// Request says what to capture.
type Request struct {
	Source string // the file of the running VM
	Dest   string // the file to make; must not exist; its folder must
	// Mapped says that the guest writes to Source through shared mappings of it (RAM) and not by write calls (a disk).
	// Only then can soft-dirty bits be used; the processes that map it are found by the package.
	Mapped bool
	// DirectIO says that a device or the kernel may write to the mapped memory without going through the page tables of
	// the mapping process (disks opened with O_DIRECT, passed-through devices). Soft-dirty bits do not show such writes
	// reliably, and are then not used.
	DirectIO bool
	// Method forces a way. Empty: the best that the filesystem and the kernel offer.
	Method Method
	// Rounds limits the passes while the guest runs. 0: the default.
	Rounds int
}

package store

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// extent is a run of a file's bytes and where on the filesystem they lie.
type extent struct {
	run
	physical  int64 // in bytes from the filesystem's own origin
	shared    bool  // other files refer to the same blocks
	unwritten bool  // reserved, reads as zeros
	// fixed says that physical names these very bytes: the extent is written, not compressed, not kept inside the inode,
	// not waiting for its place.
	fixed bool
}

// From include/uapi/linux/fiemap.h.
const (
	fiemapIoctl     = 0xC020660B // FS_IOC_FIEMAP
	fiemapSync      = 0x0001     // FIEMAP_FLAG_SYNC: write dirty pages back first
	fiemapBatch     = 4096
	fiemapLast      = 0x0001
	fiemapUnwritten = 0x0800
	fiemapShared    = 0x2000
	// FIEMAP_EXTENT_UNKNOWN, _DELALLOC, _ENCODED, _DATA_ENCRYPTED, _NOT_ALIGNED, _DATA_INLINE, _DATA_TAIL, _UNWRITTEN
	fiemapUnfixed = 0x0002 | 0x0004 | 0x0008 | 0x0080 | 0x0100 | 0x0200 | 0x0400 | fiemapUnwritten
)

type fiemapHeader struct {
	start, length         uint64
	flags, mapped         uint32
	extentCount, reserved uint32
}

type fiemapExtent struct {
	logical, physical, length uint64
	reserved64                [2]uint64
	flags                     uint32
	reserved                  [3]uint32
}

type fiemap struct {
	fiemapHeader
	extents [fiemapBatch]fiemapExtent
}

// extents gives the filesystem's map of a file, in order; with flush it writes the dirty pages back first. What is
// written while it works may or may not be in the map. Where a filesystem has no such map, the error is ErrUnsupported.
func (f *Files) extents(file *os.File, flush bool) ([]extent, error) {
	if err := f.check(OpMap, file.Name()); err != nil {
		return nil, wrap(err, OpMap, file.Name())
	}
	var out []extent
	arg, flags := new(fiemap), uint32(0)
	if flush {
		flags = fiemapSync
		if err := f.check(OpFlush, file.Name()); err != nil {
			return nil, wrap(err, OpFlush, file.Name())
		}
	}
	for start := uint64(0); ; {
		arg.fiemapHeader = fiemapHeader{start: start, length: ^uint64(0) - start, flags: flags, extentCount: fiemapBatch}
		err := retry(func() error {
			_, _, errno := unix.Syscall(unix.SYS_IOCTL, file.Fd(), fiemapIoctl, uintptr(unsafe.Pointer(arg)))
			if errno != 0 {
				return errno
			}
			return nil
		})
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) {
			return nil, errors.Join(ErrUnsupported, err)
		}
		if err != nil {
			return nil, wrap(err, OpMap, file.Name())
		}
		for _, e := range arg.extents[:arg.mapped] {
			out = append(out, extent{
				run:       run{int64(e.logical), int64(e.length)},
				physical:  int64(e.physical),
				shared:    e.flags&fiemapShared != 0,
				fixed:     e.flags&fiemapUnfixed == 0,
				unwritten: e.flags&fiemapUnwritten != 0,
			})
			start = e.logical + e.length
			if e.flags&fiemapLast != 0 {
				return out, nil
			}
		}
		if arg.mapped < fiemapBatch {
			return out, nil
		}
	}
}

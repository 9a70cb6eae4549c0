package devvmm

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// ram is where the guest's memory lives. QEMU always maps a file: the zone's own, or a memfd of ours. So what QEMU
// saves never contains memory, and memory can be read without its help.
type ram struct {
	file *os.File
	size int64
	// path names the zone's file; empty for a memfd, which only descriptors name.
	path string
	// mapShared: the guest's writes go into the file. False maps it privately; then the guest's memory exists only
	// inside QEMU and a snapshot reads it from there.
	mapShared bool
	prefault  bool
	// dense: a dump writes zeroes out, as Cloud Hypervisor does for memory that is not shared.
	dense bool
}

// newRAM opens or makes the file. A zone's file is neither made nor extended: it must be there in full size.
func newRAM(cfg *vmConfig) (*ram, error) {
	r := &ram{size: cfg.memorySize(), mapShared: true, prefault: cfg.Memory.Prefault, dense: !cfg.Memory.Shared}
	if len(cfg.Memory.Zones) == 1 {
		z := cfg.Memory.Zones[0]
		r.path, r.prefault, r.dense = z.File, z.Prefault, !z.Shared
		if z.File != "" {
			r.mapShared = z.Shared
			return r, r.openZone()
		}
	}
	fd, err := unix.MemfdCreate("guest-ram", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make guest memory: %w", err)
	}
	r.file = os.NewFile(uintptr(fd), "guest-ram")
	if err := r.file.Truncate(r.size); err != nil {
		return nil, errors.Join(fmt.Errorf("make guest memory: %w", err), r.close())
	}
	return r, nil
}

func (r *ram) openZone() error {
	f, err := os.OpenFile(r.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil && st.Size() < r.size {
		err = fmt.Errorf("memory zone file %s has %d bytes, the zone %d", r.path, st.Size(), r.size)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	r.file = f
	return nil
}

// external says that the caller keeps the memory: it is in a file that the caller named.
func (r *ram) external() bool { return r.path != "" && r.mapShared }

// private says that the guest's memory exists only inside QEMU.
func (r *ram) private() bool { return !r.mapShared }

func (r *ram) close() error { return r.file.Close() }

// fill loads a dump, before QEMU maps the memory.
func (r *ram) fill(dump string) error {
	src, err := os.Open(dump) // a snapshot folder named by the caller
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	st, err := src.Stat()
	if err != nil {
		return err
	}
	if st.Size() != r.size {
		return fmt.Errorf("%s has %d bytes, the VM's memory %d", dump, st.Size(), r.size)
	}
	if r.private() {
		// The zone's file must not change, and QEMU's private pages cannot be written from here.
		if err := r.replaceByMemfd(); err != nil {
			return err
		}
	}
	return eachExtent(src, r.size, func(from, to int64) error { return copyRange(r.file, src, from, to) }, nil)
}

func (r *ram) replaceByMemfd() error {
	fd, err := unix.MemfdCreate("guest-ram", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("make guest memory: %w", err)
	}
	if err := r.close(); err != nil {
		return err
	}
	r.file, r.path, r.mapShared = os.NewFile(uintptr(fd), "guest-ram"), "", true
	return r.file.Truncate(r.size)
}

// dump writes the memory of a stopped VM to dst, from the start.
func (r *ram) dump(dst *os.File, pid int) error {
	if r.private() {
		return dumpPrivate(dst, pid, r)
	}
	zeroes := make([]byte, copyChunk)
	hole := func(from, to int64) error {
		for at := from; at < to; at += copyChunk {
			if _, err := dst.WriteAt(zeroes[:min(copyChunk, to-at)], at); err != nil {
				return err
			}
		}
		return nil
	}
	if !r.dense {
		hole = nil
	}
	if err := eachExtent(r.file, r.size, func(from, to int64) error { return copyRange(dst, r.file, from, to) },
		hole); err != nil {
		return err
	}
	return dst.Truncate(r.size)
}

// copyChunk is the unit of copying, in bytes.
const copyChunk = 4 << 20

// copyRange copies bytes at the same offsets. The source is read straight into a mapping of nothing: a plain buffer
// is the quickest way between a memfd and a file on disk.
func copyRange(dst io.WriterAt, src io.ReaderAt, from, to int64) error {
	buf := make([]byte, min(copyChunk, to-from))
	for at := from; at < to; {
		n, err := src.ReadAt(buf[:min(int64(len(buf)), to-at)], at)
		if n == 0 {
			return fmt.Errorf("read guest memory at %d: %w", at, err)
		}
		if _, err := dst.WriteAt(buf[:n], at); err != nil {
			return err
		}
		at += int64(n)
	}
	return nil
}

// eachExtent calls data for every extent of a file that has data, and hole for the others; hole may be nil.
func eachExtent(f *os.File, size int64, data, hole func(from, to int64) error) error {
	for at := int64(0); at < size; {
		start, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			start, err = size, nil
		}
		if err != nil {
			return fmt.Errorf("look for data: %w", err)
		}
		start = min(start, size)
		if hole != nil && start > at {
			if err := hole(at, start); err != nil {
				return err
			}
		}
		if start == size {
			return nil
		}
		end, err := unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("look for a hole: %w", err)
		}
		at = min(end, size)
		if err := data(start, at); err != nil {
			return err
		}
	}
	return nil
}

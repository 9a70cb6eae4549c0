package store

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapping is a part of a file that a process has mapped shared.
type mapping struct {
	pid        int
	start, end uint64 // addresses
	off        int64  // of start in the file
}

// From Documentation/admin-guide/mm/pagemap.rst and soft-dirty.rst.
const (
	pagemapSoftDirty = 1 << 55
	pagemapEntry     = 8
	clearSoftDirty   = "4"
)

// SoftDirtyAvailable says whether the kernel tells which pages of a process were written since they were last marked
// clean, and if not, why. It tries it on a page of its own.
func SoftDirtyAvailable() (bool, string) {
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return false, "no memory to try it: " + err.Error()
	}
	defer func() { _ = unix.Munmap(page) }()
	page[0] = 1
	self := os.Getpid()
	own := mapping{pid: self, start: addressOf(page), end: addressOf(page) + uint64(len(page))}
	if err := markClean(self); err != nil {
		return false, err.Error()
	}
	before, err := writtenPages(own)
	if err != nil {
		return false, err.Error()
	}
	page[0] = 2
	after, err := writtenPages(own)
	if err != nil {
		return false, err.Error()
	}
	if len(before) != 0 || len(after) != 1 {
		return false, "the kernel has no soft-dirty bits (CONFIG_MEM_SOFT_DIRTY)"
	}
	if _, err := reclaimMarks(); err != nil {
		return false, err.Error()
	}
	return true, ""
}

// markClean clears the soft-dirty bits of all of a process's pages. The process's next write to each goes through a
// page fault, which sets the bit again.
func markClean(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte(clearSoftDirty), 0)
}

// writtenPages gives the runs of the file behind m that the process wrote through m since markClean.
func writtenPages(m mapping) ([]run, error) {
	pagemap, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", m.pid))
	if err != nil {
		return nil, err
	}
	defer func() { _ = pagemap.Close() }()
	page := uint64(os.Getpagesize())
	buf := make([]byte, 64<<10*pagemapEntry)
	var runs []run
	for addr := m.start; addr < m.end; {
		n := min((m.end-addr)/page, uint64(len(buf)/pagemapEntry))
		entries := buf[:n*pagemapEntry]
		if _, err := pagemap.ReadAt(entries, int64(addr/page)*pagemapEntry); err != nil {
			return nil, fmt.Errorf("pagemap of %d: %w", m.pid, err)
		}
		for i := range n {
			if binary.NativeEndian.Uint64(entries[i*pagemapEntry:])&pagemapSoftDirty == 0 {
				continue
			}
			off := m.off + int64(addr+i*page-m.start)
			if last := len(runs) - 1; last >= 0 && runs[last].end() == off {
				runs[last].length += int64(page)
			} else {
				runs = append(runs, run{off, int64(page)})
			}
		}
		addr += n * page
	}
	return runs, nil
}

// mappers finds every process that has the file mapped shared. Private mappings do not write to the file.
func mappers(file *os.File) ([]mapping, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var all []mapping
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		found, err := mappingsOf(pid, file)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

// mappingsOf gives the process's shared mappings of the file; none when the process has ended.
func mappingsOf(pid int, file *os.File) ([]mapping, error) {
	var want unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &want); err != nil {
		return nil, err
	}
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = maps.Close() }()
	var found []mapping
	lines := bufio.NewScanner(maps)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		m, inode, ok := parseMap(lines.Text())
		if !ok || inode != want.Ino {
			continue
		}
		// The device in maps is not always the one that stat tells (overlayfs, btrfs); the link is the file itself.
		var got unix.Stat_t
		link := filepath.Join("/proc", strconv.Itoa(pid), "map_files", fmt.Sprintf("%x-%x", m.start, m.end))
		if err := unix.Stat(link, &got); err != nil {
			return nil, fmt.Errorf("%s: %w", link, err)
		}
		if got.Dev == want.Dev && got.Ino == want.Ino {
			m.pid = pid
			found = append(found, m)
		}
	}
	if err := lines.Err(); err != nil && !errors.Is(err, unix.ESRCH) {
		return nil, err
	}
	return found, nil
}

// parseMap reads a line of /proc/PID/maps: "start-end perms offset dev inode path". It answers only for shared
// mappings.
func parseMap(line string) (m mapping, inode uint64, ok bool) {
	fields := strings.Fields(line)
	if len(fields) < 5 || len(fields[1]) < 4 || fields[1][3] != 's' {
		return m, 0, false
	}
	low, high, _ := strings.Cut(fields[0], "-")
	var errs [4]error
	m.start, errs[0] = strconv.ParseUint(low, 16, 64)
	m.end, errs[1] = strconv.ParseUint(high, 16, 64)
	m.off, errs[2] = strconv.ParseInt(fields[2], 16, 64)
	inode, errs[3] = strconv.ParseUint(fields[4], 10, 64)
	return m, inode, errors.Join(errs[:]...) == nil
}

// reclaimMarks reads the kernel's counters of those events that may take a file's page out of a page table and forget
// its soft-dirty bit with it. While they stand still, no bit was lost.
func reclaimMarks() (string, error) {
	vmstat, err := os.ReadFile("/proc/vmstat")
	if err != nil {
		return "", err
	}
	var marks []string
	for line := range strings.Lines(string(vmstat)) {
		name, _, _ := strings.Cut(line, " ")
		switch name {
		case "pgscan_anon", "pgscan_file", "thp_collapse_alloc":
			marks = append(marks, strings.TrimSpace(line))
		}
	}
	joined := strings.Join(marks, " ")
	if !strings.Contains(joined, "pgscan_file") || !strings.Contains(joined, "pgscan_anon") {
		return "", fmt.Errorf("%w: the kernel does not count reclaim (pgscan_file)", ErrUnsupported)
	}
	return joined, nil
}

func addressOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }

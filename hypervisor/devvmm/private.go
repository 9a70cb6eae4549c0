package devvmm

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"
)

// dumpPrivate reads privately mapped memory out of QEMU: the file's pages and those the guest has written since, as the
// mapping shows them.
func dumpPrivate(dst *os.File, pid int, r *ram) error {
	start, err := findMapping(pid, r)
	if err != nil {
		return err
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return fmt.Errorf("read QEMU's memory: %w", err)
	}
	buf := make([]byte, copyChunk)
	for at := int64(0); err == nil && at < r.size; at += copyChunk {
		part := buf[:min(copyChunk, r.size-at)]
		if _, err = mem.ReadAt(part, start+at); err == nil {
			_, err = dst.WriteAt(part, at)
		}
	}
	return errors.Join(err, mem.Close())
}

// findMapping gives the address at which QEMU mapped the memory file from its beginning.
func findMapping(pid int, r *ram) (int64, error) {
	want, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", r.file.Fd()))
	if err != nil {
		return 0, err
	}
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, fmt.Errorf("read QEMU's mappings: %w", err)
	}
	defer func() { _ = maps.Close() }()
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to, offset int64
		var perms, device string
		var inode uint64
		if n, _ := fmt.Sscanf(lines.Text(), "%x-%x %s %x %s %d", &from, &to, &perms, &offset, &device,
			&inode); n != 6 {
			continue
		}
		if strings.HasSuffix(lines.Text(), " "+want) && perms == "rw-p" && offset == 0 && to-from >= r.size {
			return from, nil
		}
	}
	return 0, fmt.Errorf("QEMU has no private mapping of %s", want)
}

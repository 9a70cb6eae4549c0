package vmm

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
)

// ErrGone says that a recorded process has ended. Its pid may belong to another process now.
var ErrGone = errors.New("the process has ended")

// procStat is what /proc/PID/stat tells of a process.
type procStat struct {
	state     byte   // 'Z' and 'X' are dead
	startTime uint64 // clock ticks after boot, field 22
}

// readStat reads /proc/PID/stat. The command name in it may hold spaces and parentheses, so fields are counted from the
// last closing one.
func readStat(pid int) (procStat, error) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if errors.Is(err, fs.ErrNotExist) {
		return procStat{}, ErrGone
	}
	if err != nil {
		// The process ended between open and read: ESRCH.
		return procStat{}, fmt.Errorf("%w: %w", ErrGone, err)
	}
	end := bytes.LastIndexByte(raw, ')')
	if end < 0 {
		return procStat{}, fmt.Errorf("/proc/%d/stat is not understood", pid)
	}
	const stateField, startField = 0, 19 // counted after the command name: fields 3 and 22
	fields := strings.Fields(string(raw[end+1:]))
	if len(fields) <= startField {
		return procStat{}, fmt.Errorf("/proc/%d/stat has %d fields after the name", pid, len(fields))
	}
	start, err := strconv.ParseUint(fields[startField], 10, 64)
	if err != nil {
		return procStat{}, fmt.Errorf("/proc/%d/stat: start time: %w", pid, err)
	}
	return procStat{state: fields[stateField][0], startTime: start}, nil
}

func (s procStat) dead() bool { return s.state == 'Z' || s.state == 'X' || s.state == 'x' }

// bootID tells one run of the kernel from the next: start times count from boot.
var bootID = sync.OnceValues(func() (string, error) {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot id: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
})

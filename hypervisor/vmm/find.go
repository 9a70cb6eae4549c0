package vmm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Find looks for the VMM process that serves a socket path, for a starter that was killed between starting the process
// and storing its record. It looks at the arguments of all processes instead of asking the socket, because the process
// may not listen yet, or no longer answer. ErrGone says that there is none. The record's versions are empty: ping it.
func Find(socketPath string) (Record, error) {
	boot, err := bootID()
	if err != nil {
		return Record{}, err
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return Record{}, fmt.Errorf("find the VMM of %s: %w", socketPath, err)
	}
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		// Before the arguments: should the pid be recycled in between, the record fits neither process and Adopt
		// refuses it.
		stat, err := readStat(pid)
		if errors.Is(err, ErrGone) || stat.dead() || !servesSocket(pid, socketPath) {
			continue
		}
		if err != nil {
			return Record{}, fmt.Errorf("find the VMM of %s: %w", socketPath, err)
		}
		binary, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err != nil {
			continue // it has just ended
		}
		return Record{PID: pid, StartTime: stat.startTime, BootID: boot, Binary: binary, SocketPath: socketPath}, nil
	}
	return Record{}, fmt.Errorf("find the VMM of %s: %w", socketPath, ErrGone)
}

// servesSocket tells whether a process was started with this API socket.
func servesSocket(pid int, socketPath string) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	args := strings.Split(string(bytes.TrimRight(raw, "\x00")), "\x00")
	at := slices.Index(args, "--api-socket")
	if at < 0 || at+1 >= len(args) {
		return false
	}
	path, ok := strings.CutPrefix(args[at+1], "path=")
	if ok && !filepath.IsAbs(path) {
		// Start shortens a path that does not fit a socket address.
		cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		ok, path = err == nil, filepath.Join(cwd, path)
	}
	return ok && path == filepath.Clean(socketPath)
}

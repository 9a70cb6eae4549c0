package vmm

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

// Find looks through the machine's processes for the VMM that was told to serve an API socket. It is for the instant
// between a start and the storing of its [Record], after which a daemon that was killed would know nothing of its VMM.
// ErrGone says that there is none. The Record it gives lacks the versions.
func Find(socketPath string) (Record, error) {
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return Record{}, err
	}
	boot, err := bootID()
	if err != nil {
		return Record{}, err
	}
	for _, dir := range procs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || !serves(dir, socketPath) {
			continue
		}
		stat, err := readStat(pid)
		if errors.Is(err, fs.ErrNotExist) || (err == nil && stat.dead()) {
			continue // ended while we looked
		}
		if err != nil {
			return Record{}, err
		}
		binary, err := os.Readlink(filepath.Join(dir, "exe"))
		if err != nil {
			binary = ""
		}
		return Record{PID: pid, StartTime: stat.startTime, BootID: boot, Binary: binary, SocketPath: socketPath}, nil
	}
	return Record{}, fmt.Errorf("no process serves %s: %w", socketPath, ErrGone)
}

// serves tells whether a process was started with --api-socket for the path, be it absolute or relative to its folder.
func serves(procDir, socketPath string) bool {
	raw, err := os.ReadFile(filepath.Join(procDir, "cmdline")) //nolint:gosec // under /proc
	if err != nil {
		return false
	}
	args := bytes.Split(raw, []byte{0})
	for i, arg := range args {
		if string(arg) != "--api-socket" || i+1 == len(args) {
			continue
		}
		path, ok := bytes.CutPrefix(args[i+1], []byte("path="))
		if !ok {
			return false
		}
		if filepath.IsAbs(string(path)) {
			return string(path) == socketPath
		}
		cwd, err := os.Readlink(filepath.Join(procDir, "cwd"))
		return err == nil && filepath.Join(cwd, string(path)) == socketPath
	}
	return false
}

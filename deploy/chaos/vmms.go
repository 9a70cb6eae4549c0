package main

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"stillframe/hypervisor/vmm"
)

// machineOf is a VMM that a data folder tells of.
type machineOf struct {
	n       *node
	sandbox string
	record  vmm.Record
}

// machines gives the VMMs of all nodes that live.
func (r *run) machines() []machineOf {
	var found []machineOf
	for _, n := range r.nodes {
		files, _ := filepath.Glob(filepath.Join(n.dir, "sandboxes", "sbx-*", "runtime.json"))
		for _, file := range files {
			var rec vmm.Record
			raw, err := os.ReadFile(file)
			if err == nil && json.Unmarshal(raw, &rec) == nil {
				found = append(found, machineOf{n, filepath.Base(filepath.Dir(file)), rec})
			}
		}
	}
	return found
}

// signal sends a signal to the VMM, and to no other process that may have its pid by now.
func (m machineOf) signal(sig unix.Signal) bool {
	fd, err := unix.PidfdOpen(m.record.PID, 0)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(fd) }()
	p, err := vmm.Adopt(m.record) // compares start time and boot
	if err != nil {
		return false
	}
	defer func() { _ = p.Close() }()
	return unix.PidfdSendSignal(fd, sig, nil, 0) == nil
}

func (r *run) eachVMM(f func(*node, int)) {
	for _, m := range r.machines() {
		if m.signal(0) {
			f(m.n, m.record.PID)
		}
	}
}

func (r *run) anyVMM(rnd *rand.Rand) (machineOf, bool) {
	found := r.machines()
	if len(found) == 0 {
		return machineOf{}, false
	}
	return found[rnd.IntN(len(found))], true
}

func (r *run) killVMM(_ context.Context, rnd *rand.Rand) func() {
	if m, ok := r.anyVMM(rnd); !ok || !m.signal(unix.SIGKILL) {
		return nil
	}
	return func() {}
}

// killSnapshottedVMM ends the VMM of a source in the middle of its snapshot, where one is met within some seconds.
func (r *run) killSnapshottedVMM(ctx context.Context, _ *rand.Rand) func() {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		for _, m := range r.machines() {
			quick, done := context.WithTimeout(ctx, 100*time.Millisecond)
			state, err := vmm.NewClient(filepath.Join(m.n.dir, "sandboxes", m.sandbox, "vmm.sock")).State(quick)
			done()
			if err == nil && state == vmm.StatePaused && m.signal(unix.SIGKILL) {
				return func() {}
			}
		}
		pauseFor(ctx, 5*time.Millisecond)
	}
	return nil
}

// hangVMM stops a VMM, so that its socket is silent.
func (r *run) hangVMM(_ context.Context, rnd *rand.Rand) func() {
	m, ok := r.anyVMM(rnd)
	if !ok || !m.signal(unix.SIGSTOP) {
		return nil
	}
	over := m.n.impair()
	return func() {
		m.signal(unix.SIGCONT)
		over()
	}
}

// sandboxOf gives the sandbox that a VMM's folder is of.
func sandboxOf(dir string) string {
	base := filepath.Base(dir)
	if strings.HasPrefix(base, "sbx-") {
		return base
	}
	return ""
}

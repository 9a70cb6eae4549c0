package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"stillframe/hypervisor/vmm"
)

// pauses are how long sources stood still, as their light VMMs have noted it.
type pauses struct {
	dir     string
	count   int
	longest time.Duration // at all
	quiet   time.Duration // the longest part without a fault of the source's own host
}

// pauseBound is how long a source may stand still, not counting faults of its own host. A daemon that was killed
// resumes it when it is started again, so that this is what a snapshot takes on a machine that is busy with everything
// else.
const pauseBound = 10 * time.Second

// checkPauses reads what the VMMs have noted (invariant 4).
func (r *run) checkPauses() {
	files, _ := filepath.Glob(filepath.Join(r.pauses.dir, "*"))
	for _, file := range files {
		if err := r.readPauses(file); err != nil {
			r.violated("4 pauses", "%s: %v", file, err)
		}
	}
	for _, m := range r.machines() {
		client := vmm.NewClient(filepath.Join(m.n.dir, "sandboxes", m.sandbox, "vmm.sock"))
		ctx, cancel := contextFor(5 * time.Second)
		state, err := client.State(ctx)
		cancel()
		if err == nil && state != vmm.StateRunning {
			r.violated("4 pauses", "sandbox %s is %s when all is over", m.sandbox, state)
		}
	}
}

func (r *run) readPauses(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	var began int64
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var what, dir string
		var at int64
		if _, err := fmt.Sscan(lines.Text(), &what, &at, &dir); err != nil {
			return fmt.Errorf("%q: %w", lines.Text(), err)
		}
		if what == "pause" {
			began = at
			continue
		}
		r.notePause(dir, interval{began, at})
		began = 0
	}
	return nil // a pause without an end is that of a VMM that has ended; one that lives is asked
}

// notePause judges one pause: what was not a fault of the host must be short.
func (r *run) notePause(dir string, p interval) {
	r.pauses.count++
	whole := time.Duration(p.to - p.from)
	r.pauses.longest = max(r.pauses.longest, whole)
	quiet := whole
	for _, n := range r.nodes {
		if strings.HasPrefix(dir, n.dir+"/") {
			quiet -= n.impairedIn(p)
		}
	}
	r.pauses.quiet = max(r.pauses.quiet, quiet)
	if quiet > pauseBound {
		r.violated("4 pauses", "sandbox %s stood still for %s, %s of it without a fault of its host", sandboxOf(dir),
			whole, quiet)
	}
}

// impairedIn is how long a node was impaired within an interval, each instant counted once.
func (n *node) impairedIn(p interval) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	var total int64
	at := p.from // up to here it is counted
	for _, i := range sorted(n.impaired) {
		from, to := max(i.from, at), p.to
		if i.to != 0 {
			to = min(i.to, p.to)
		}
		if to > from {
			total += to - from
			at = to
		}
	}
	return time.Duration(total)
}

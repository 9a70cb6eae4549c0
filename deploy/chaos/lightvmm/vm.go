package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// tick is the time between two rounds of writing.
const tick = 20 * time.Millisecond

// vm is what runs where a VM would.
type vm struct {
	log    *slog.Logger
	report *report
	ram    []byte
	disk   *os.File
	net    *network

	// run is held by whoever writes or reads memory for a round or a request; the pause takes it for as long as it lasts.
	run    sync.Mutex
	paused bool
	born   bool // it has run before: it is a source, and its pauses are reported

	ended chan struct{}
	work  sync.WaitGroup

	base uint64 // the counter that it began with
	id   identity
}

func openVM(c config, log *slog.Logger, r *report) (*vm, error) {
	if len(c.Memory.Zones) != 1 || !c.Memory.Zones[0].Shared || c.Memory.Zones[0].Size < ramUsed || len(c.Net) != 1 {
		return nil, errors.New("one shared memory zone of enough bytes and one network device are needed")
	}
	zone := c.Memory.Zones[0]
	f, err := os.OpenFile(zone.File, os.O_RDWR, 0) // named by the caller
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // the mapping stays
	ram, err := unix.Mmap(int(f.Fd()), 0, int(zone.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", zone.File, err)
	}
	v := &vm{log: log, report: r, ram: ram, ended: make(chan struct{})}
	for _, d := range c.Disks {
		if d.ID != "overlay" {
			continue
		}
		if v.disk, err = os.OpenFile(d.Path, os.O_RDWR, 0); err != nil { // named by the caller
			return nil, errors.Join(err, unix.Munmap(ram))
		}
	}
	if v.disk == nil {
		return nil, errors.Join(errors.New("a disk called overlay is needed"), unix.Munmap(ram))
	}
	if v.net, err = openNetwork(c.Net[0].Tap); err != nil {
		return nil, errors.Join(err, v.disk.Close(), unix.Munmap(ram))
	}
	return v, nil
}

// start begins to write and to answer. A VM that was booted runs, one that was restored is paused.
func (v *vm) start() {
	if !v.paused {
		v.born = true
	}
	v.work.Go(v.write)
	v.net.serve(v.agent(), v.gate)
}

// gate waits until the VM runs.
func (v *vm) gate() {
	v.run.Lock()
	v.run.Unlock() //nolint:staticcheck // to have come past is all that is wanted
}

// write does rounds until the end.
func (v *vm) write() {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case <-v.ended:
			return
		case <-ticker.C:
		}
		v.run.Lock()
		err := v.round()
		v.run.Unlock()
		if err != nil {
			v.log.Error("the disk cannot be written", "error", err)
		}
	}
}

func (v *vm) state() string {
	if v.paused {
		return "Paused"
	}
	return "Running"
}

// errTransition is in the real VMM's words.
func errTransition(from, to string) error {
	return fmt.Errorf("Invalid transition: InvalidStateTransition(%s, %s)", from, to) //nolint:staticcheck // not ours
}

func (v *vm) pause() error {
	if v.paused {
		return errTransition("Paused", "Paused")
	}
	v.run.Lock()
	v.paused = true
	if v.born {
		v.report.note("pause")
	}
	return nil
}

func (v *vm) resume() error {
	if !v.paused {
		return errTransition("Running", "Running")
	}
	if v.born {
		v.report.note("resume")
	}
	v.paused, v.born = false, true
	v.run.Unlock()
	return nil
}

// save describes the paused VM.
func (v *vm) save() (saved, error) {
	if !v.paused {
		return saved{}, errors.New("the VM is running")
	}
	digest, err := v.digest()
	return saved{Format: savedFormat, Counter: v.counter(), Digest: digest}, err
}

// load takes over files that must be of the instant that was saved. The VM is paused.
func (v *vm) load(s saved) error {
	if s.Format != savedFormat {
		return fmt.Errorf("format %q is not one of this program", s.Format)
	}
	if err := v.whole(); err != nil {
		return err
	}
	digest, err := v.digest()
	if err != nil {
		return err
	}
	if n := v.counter(); n != s.Counter || digest != s.Digest {
		return fmt.Errorf("memory and disk are not those of the saved state: round %d, saved %d", n, s.Counter)
	}
	v.base = s.Counter
	v.run.Lock()
	v.paused = true
	return nil
}

func (v *vm) close() error {
	if v.paused {
		v.paused = false
		v.run.Unlock()
	}
	close(v.ended)
	v.work.Wait()
	return errors.Join(v.net.close(), v.disk.Close(), unix.Munmap(v.ram))
}

// report is a file in which pauses are noted, for whoever started the daemon to read.
type report struct{ file *os.File }

func openReport(dir string) (*report, error) {
	if dir == "" {
		return &report{}, nil
	}
	f, err := os.OpenFile(fmt.Sprintf("%s/%d", dir, os.Getpid()), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	return &report{f}, err
}

// note writes what happened, with the machine's monotonic clock in nanoseconds and the VMM's working folder.
func (r *report) note(what string) {
	if r.file == nil {
		return
	}
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) != nil {
		return
	}
	dir, _ := os.Getwd() // a report without it is a report all the same
	_, _ = fmt.Fprintf(r.file, "%s %d %s\n", what, now.Nano(), dir)
}

package vmm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Record is what must be stored to find a VMM process again after a restart of the daemon.
type Record struct {
	PID        int    `json:"pid"`
	StartTime  uint64 `json:"start_time"` // clock ticks after boot: field 22 of /proc/PID/stat
	BootID     string `json:"boot_id"`    // the run of the kernel that PID and StartTime belong to
	Binary     string `json:"binary"`
	SocketPath string `json:"socket_path"`
	// Version is what the VMM answered to its first ping: the version that must restore its snapshots.
	Version      string `json:"version"`
	BuildVersion string `json:"build_version"`
}

// Process is a VMM process, started here or taken up again. Close it when it is no longer watched: that leaves the
// process itself alone.
type Process struct {
	rec    Record
	pidfd  *os.File
	exited chan struct{}
	done   chan struct{} // closed when the watching goroutine has ended

	mu     sync.Mutex
	status string
}

// Adopt takes up a process that an earlier daemon started. ErrGone says that it has ended, whoever has its pid now.
func Adopt(rec Record) (*Process, error) {
	if rec.PID <= 0 {
		return nil, fmt.Errorf("adopt a VMM: pid %d in its record", rec.PID)
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	if rec.BootID != boot {
		return nil, fmt.Errorf("adopt VMM %d: the machine was restarted: %w", rec.PID, ErrGone)
	}
	// The descriptor first: it pins one process, and what is read of the pid afterwards can only be that process or a
	// younger one, whose start time then differs.
	fd, err := unix.PidfdOpen(rec.PID, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("adopt VMM %d: %w", rec.PID, ErrGone)
	}
	if err != nil {
		return nil, fmt.Errorf("adopt VMM %d: pidfd_open: %w", rec.PID, err)
	}
	stat, err := readStat(rec.PID)
	switch {
	case err != nil:
	case stat.startTime != rec.StartTime:
		err = fmt.Errorf("its pid was given to another process: %w", ErrGone)
	case stat.dead():
		err = ErrGone
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("adopt VMM %d: %w", rec.PID, err)
	}
	return watch(rec, fd), nil
}

// watch takes over a non-blocking pidfd and follows the process until it ends or the Process is closed.
func watch(rec Record, pidfd int) *Process {
	p := &Process{
		rec:    rec,
		pidfd:  os.NewFile(uintptr(pidfd), fmt.Sprintf("pidfd:%d", rec.PID)),
		exited: make(chan struct{}),
		done:   make(chan struct{}),
	}
	go p.follow()
	return p
}

// follow waits in the runtime's poller, so a thousand VMs cost no threads. It ends with the process or with Close.
func (p *Process) follow() {
	defer close(p.done)
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return
	}
	err = raw.Read(func(fd uintptr) bool {
		ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} // a descriptor fits
		n, err := unix.Poll(ready, 0)
		return err == nil && n == 1
	})
	if err != nil {
		return // closed
	}
	p.reap()
	close(p.exited)
}

// reap collects the exit status if the process is our child; an adopted one is somebody else's to reap.
func (p *Process) reap() {
	var info unix.Siginfo
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return
	}
	status := "unknown: not a child of this process"
	_ = raw.Control(func(fd uintptr) {
		if unix.Waitid(unix.P_PIDFD, int(fd), &info, unix.WEXITED, nil) == nil {
			status = describeExit(&info)
		}
	})
	p.mu.Lock()
	p.status = status
	p.mu.Unlock()
}

// Record is what to store for Adopt.
func (p *Process) Record() Record { return p.rec }

// Client is a client for the process's API socket.
func (p *Process) Client() *Client { return NewClient(p.rec.SocketPath) }

// Exited is closed once the process has ended. It is never closed if Close came first.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// ExitStatus says for people how the process ended; empty while it runs.
func (p *Process) ExitStatus() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

// Alive tells whether the process still runs.
func (p *Process) Alive() bool {
	select {
	case <-p.exited:
		return false
	default:
	}
	return p.signal(0) == nil && !p.zombie()
}

// zombie covers the instant after the end in which the watcher has not been scheduled yet.
func (p *Process) zombie() bool {
	stat, err := readStat(p.rec.PID)
	return err != nil || stat.startTime != p.rec.StartTime || stat.dead()
}

// Kill ends the process with SIGKILL and returns when it has ended, or with the context's error. Killing a process that
// has ended succeeds.
func (p *Process) Kill(ctx context.Context) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, QuickTimeout)
		defer cancel()
	}
	select {
	case <-p.exited:
		return nil
	default:
	}
	if err := p.signal(unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill VMM %d: %w", p.rec.PID, err)
	}
	select {
	case <-p.exited:
		return nil
	case <-p.done:
		// Ended, or closed under us: look which.
		if p.Alive() {
			return fmt.Errorf("kill VMM %d: closed while waiting for its end", p.rec.PID)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("kill VMM %d: it has not ended: %w", p.rec.PID, ctx.Err())
	}
}

func (p *Process) signal(sig syscall.Signal) error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return err
	}
	return sent
}

// Close stops watching. The process goes on; a child that ends afterwards stays a zombie until this process ends.
func (p *Process) Close() error {
	err := p.pidfd.Close()
	select {
	case <-p.done:
	case <-time.After(QuickTimeout):
		return fmt.Errorf("VMM %d: its watcher does not end", p.rec.PID)
	}
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stillframe/netpolicy"
)

// node is one member: its folders, its address, and the daemon processes that use them one after the other.
type node struct {
	r        *run
	name     string
	addr     string
	netns    string
	identity string
	mount    string // its own filesystem
	dir      string // its data folder, in there
	order    string // the file that orders faults of the daemon
	log      string
	vmm      string
	real     bool // it runs real virtual machines
	api      *caller

	life sync.Mutex // held by whoever starts or ends the daemon
	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	// impaired are the times in which the host or the daemon was kept from working.
	impaired []interval
}

// filesystemSize is that of a node, in bytes; the file behind it is sparse.
const filesystemSize = 6 << 30

func newNode(r *run, i int) *node {
	name := string(rune('a' + i))
	n := &node{
		r: r, name: name, addr: network + strconv.Itoa(11+i), netns: "sfch-" + name,
		identity: filepath.Join(r.work, "pki", name), mount: filepath.Join(r.work, name),
		dir: filepath.Join(r.work, name, "d"), order: filepath.Join(r.work, name+".order"),
		log: filepath.Join(r.work, name+".log"), vmm: filepath.Join(r.work, "lightvmm"),
	}
	if i >= r.o.nodes-r.o.real {
		n.real, n.vmm = true, filepath.Join(r.work, "stillframe-devvmm")
	}
	n.api = newCaller("http://"+n.addr+":7070", "")
	return n
}

// admin speaks to the administration socket.
func (n *node) admin() *caller { return newCaller("", filepath.Join(n.dir, "admin.sock")) }

// prepare makes the node's filesystem and network.
func (n *node) prepare(ctx context.Context) error {
	image := n.mount + ".image"
	f, err := os.OpenFile(image, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(filesystemSize), f.Close(), os.Mkdir(n.mount, 0o700)); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"mkfs.xfs", "-q", "-m", "reflink=1", image},
		{"mount", "-o", "loop,discard", image, n.mount},
		{"ip", "netns", "add", n.netns},
		{"ip", "link", "add", n.netns, "type", "veth", "peer", "name", "eth0", "netns", n.netns},
		{"ip", "link", "set", n.netns, "master", bridge, "up"},
		{"ip", "-n", n.netns, "link", "set", "lo", "up"},
		{"ip", "-n", n.netns, "addr", "add", n.addr + "/24", "dev", "eth0"},
		{"ip", "-n", n.netns, "link", "set", "eth0", "up"},
	} {
		if err := command(ctx, args...); err != nil {
			return err
		}
	}
	return os.Mkdir(n.dir, 0o700)
}

func (n *node) unmount() {
	_ = unix.Unmount(n.mount, unix.MNT_DETACH) // it ends with the namespace at the latest
}

// launch starts the daemon.
func (n *node) launch() error {
	out, err := os.OpenFile(n.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	cmd := exec.Command("nsenter", append([]string{ //nolint:noctx // it lives until it is ended
		"--net=" + filepath.Join(netpolicy.Dir, n.netns), n.r.program(),
	}, n.arguments()...)...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append(os.Environ(), "STILLFRAME_FAULT=@"+n.order, "STILLFRAME_VMM="+n.vmm,
		"STILLFRAME_LIGHTVMM_REPORT="+n.r.pauses.dir, "STILLFRAME_BUG="+n.r.o.bug, "GORACE=halt_on_error=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended does not matter here
		close(done)
	}()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cmd, n.done = cmd, done
	return nil
}

// arguments are the daemon's, the same at every start.
func (n *node) arguments() []string {
	return []string{
		"server", "--cluster", n.identity, "--data", n.dir, "--listen", n.addr + ":7070", "--images", n.r.o.images,
		"--name", n.name, "--log-level", "debug", "--overcommit-disk", "10000", "--overcommit-vcpu", "64",
		"--node-lease", n.r.o.lease.String(),
	}
}

// process gives the daemon's process and what tells its end.
func (n *node) process() (*os.Process, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd == nil {
		return nil, nil
	}
	return n.cmd.Process, n.done
}

// running tells whether the daemon lives.
func (n *node) running() bool {
	p, done := n.process()
	if p == nil {
		return false
	}
	select {
	case <-done:
		return false
	default:
		return true
	}
}

// signal sends a signal and, where that ends the daemon, waits for the end.
func (n *node) signal(sig unix.Signal) {
	p, done := n.process()
	if p == nil || !n.running() {
		return
	}
	_ = p.Signal(sig) // it may have ended just now
	if sig != unix.SIGKILL && sig != unix.SIGTERM {
		return
	}
	select {
	case <-done:
	case <-time.After(40 * time.Second):
		n.r.violated("10 recovery", "the daemon of node %s does not end after %v", n.name, sig)
	}
}

// awaitReady waits until the daemon serves.
func (n *node) awaitReady(ctx context.Context, patience time.Duration) error {
	deadline := time.Now().Add(patience)
	for {
		a := n.api.do(ctx, "GET", "/readyz", nil, "")
		if a.status == 200 {
			return nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil || !n.running() {
			return fmt.Errorf("node %s is not ready: %s; %s", n.name, a, n.lastWords())
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// lastWords is the end of the daemon's log.
func (n *node) lastWords() string {
	raw, err := os.ReadFile(n.log)
	if err != nil {
		return err.Error()
	}
	return string(raw[max(0, len(raw)-1000):])
}

// interval is a stretch of the machine's monotonic clock, in nanoseconds; to 0 is still going on.
type interval struct{ from, to int64 }

func monotonic() int64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0
	}
	return now.Nano()
}

// impair notes that the node is kept from working until the result is called.
func (n *node) impair() (over func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	at := len(n.impaired)
	n.impaired = append(n.impaired, interval{from: monotonic()})
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.impaired[at].to = monotonic()
	}
}

// endLeftovers ends processes that have the folder of this run, whose name nobody else has, in their arguments.
func endLeftovers(work string) {
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return
	}
	for _, path := range procs {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil || pid == os.Getpid() {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0) // before its arguments are read, so that they are this process's
		if err != nil {
			continue
		}
		if raw, err := os.ReadFile(path); err == nil && bytes.Contains(raw, []byte(work+"/")) {
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		}
		_ = unix.Close(fd)
	}
}

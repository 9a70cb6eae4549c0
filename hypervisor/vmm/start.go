package vmm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// StartOptions says how to start a VMM process.
type StartOptions struct {
	Binary     string
	Dir        string // working folder; required
	SocketPath string // where the API listens; required, absolute. A stale socket there is replaced by the VMM.
	LogPath    string // the VMM's own log, truncated; empty: it goes to Output
	EventPath  string // JSON events; empty: none
	// NetNS is the file of the network namespace to run in, e.g. /run/netns/NAME; empty: the caller's.
	NetNS string
	// Output receives stdout and stderr, appended; empty: /dev/null.
	Output string
	Args   []string // further arguments, e.g. "-v"
	Env    []string // nil: the caller's environment
}

// startPoll is the interval at which a VMM that was just started is asked whether it serves yet. It comes up in a few
// milliseconds, and nothing tells of it.
const startPoll = 2 * time.Millisecond

// Start runs a VMM detached from this process and returns once its API answers. It has a session of its own, is not
// killed when this process ends, and holds no descriptor of it. If it does not answer before the deadline (15 seconds
// where the context has none), it is killed and the error says why.
func Start(ctx context.Context, o StartOptions) (*Process, error) {
	if o.Dir == "" || !filepath.IsAbs(o.SocketPath) {
		return nil, errors.New("start a VMM: a folder and an absolute socket path are required")
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, QuickTimeout)
		defer cancel()
	}
	p, err := spawn(o)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", o.Binary, err)
	}
	ping, err := p.awaitAPI(ctx)
	if err != nil {
		err = fmt.Errorf("start %s: %w%s", o.Binary, err, lastWords(o))
		return nil, errors.Join(err, p.abandon(ctx))
	}
	p.rec.Version, p.rec.BuildVersion = ping.Version, ping.BuildVersion
	return p, nil
}

// abandon kills a process that is of no use. The caller's context may be what ended, so it gets a deadline of its own.
func (p *Process) abandon(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), QuickTimeout)
	defer cancel()
	return errors.Join(p.Kill(ctx), p.Close())
}

func (p *Process) awaitAPI(ctx context.Context) (Ping, error) {
	client := p.Client()
	tick := time.NewTicker(startPoll)
	defer tick.Stop()
	for {
		ping, err := client.Ping(ctx)
		if err == nil {
			return ping, nil
		}
		select {
		case <-p.exited:
			return Ping{}, fmt.Errorf("it ended at once (%s)", p.ExitStatus())
		case <-ctx.Done():
			return Ping{}, fmt.Errorf("its API does not answer: %w (%w)", ctx.Err(), err)
		case <-tick.C:
		}
	}
}

// spawn starts the process in its namespace: a goroutine wired to an operating system thread enters it, forks from
// there and comes back.
func spawn(o StartOptions) (*Process, error) {
	cmd, closeFiles, err := command(o)
	if err != nil {
		return nil, err
	}
	defer closeFiles()
	if o.NetNS == "" {
		return launch(cmd, o)
	}
	type result struct {
		p   *Process
		err error
	}
	results := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		leave, err := enterNetNS(o.NetNS)
		if err != nil {
			runtime.UnlockOSThread() // it has not moved
			results <- result{err: err}
			return
		}
		p, err := launch(cmd, o)
		// A thread that cannot come back is not unwired: the runtime then ends it instead of using it for others. That
		// must stay the exception, because the process's first thread cannot end and would hold the namespace for good.
		if leave() == nil {
			runtime.UnlockOSThread()
		}
		results <- result{p, err}
	}()
	r := <-results
	return r.p, r.err
}

// enterNetNS moves the calling thread into a network namespace; the result moves it back.
func enterNetNS(path string) (leave func() error, err error) {
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the thread's network namespace: %w", err)
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open network namespace %s: %w", path, err), unix.Close(home))
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return nil, errors.Join(fmt.Errorf("enter network namespace %s: %w", path, err), unix.Close(home))
	}
	return func() error {
		return errors.Join(unix.Setns(home, unix.CLONE_NEWNET), unix.Close(home))
	}, nil
}

func launch(cmd *exec.Cmd, o StartOptions) (*Process, error) {
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	pid := cmd.Process.Pid
	p, err := recordChild(pid, o)
	if err != nil {
		return nil, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	// From here the pidfd stands for the child, and following it reaps it.
	return p, cmd.Process.Release()
}

// recordChild describes our own child: it cannot have been reaped, so its pid is certainly its own.
func recordChild(pid int, o StartOptions) (*Process, error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	stat, err := readStat(pid)
	if err != nil {
		return nil, err
	}
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("pidfd_open: %w", err)
	}
	return watch(Record{
		PID: pid, StartTime: stat.startTime, BootID: boot, Binary: o.Binary, SocketPath: o.SocketPath,
	}, fd), nil
}

// command builds the command line and opens the standard files; the second result closes our copies of them.
func command(o StartOptions) (*exec.Cmd, func(), error) {
	socket := o.SocketPath
	if len(socket) > maxSocketPath {
		rel, err := filepath.Rel(o.Dir, socket)
		if err != nil || len(rel) > maxSocketPath {
			return nil, nil, fmt.Errorf("socket path %s is too long and not in the VMM's folder", socket)
		}
		socket = rel
	}
	args := []string{"--api-socket", "path=" + socket}
	if o.LogPath != "" {
		args = append(args, "--log-file", o.LogPath)
	}
	if o.EventPath != "" {
		args = append(args, "--event-monitor", "path="+o.EventPath)
	}
	cmd := exec.Command(o.Binary, append(args, o.Args...)...)
	cmd.Dir, cmd.Env = o.Dir, o.Env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	output := o.Output
	if output == "" {
		output = os.DevNull
	}
	out, err := os.OpenFile(output, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600) // named by the caller
	if err != nil {
		return nil, nil, err
	}
	cmd.Stdout, cmd.Stderr = out, out // stdin is /dev/null
	return cmd, func() { _ = out.Close() }, nil
}

// lastWords is the end of what the VMM wrote before it failed.
func lastWords(o StartOptions) string {
	const enough = 2048
	var words []string
	for _, path := range []string{o.Output, o.LogPath} {
		raw, err := os.ReadFile(path) // named by the caller
		if text := strings.TrimSpace(string(raw[max(0, len(raw)-enough):])); err == nil && text != "" {
			words = append(words, text)
		}
	}
	if len(words) == 0 {
		return ""
	}
	return ": " + strings.Join(words, "\n")
}

// describeExit reads the status of a child out of what waitid reported.
func describeExit(info *unix.Siginfo) string {
	status := childStatus(info)
	switch info.Code {
	case cldExited:
		return fmt.Sprintf("exit status %d", status)
	case cldKilled, cldDumped:
		return fmt.Sprintf("signal: %s", syscall.Signal(status))
	default:
		return fmt.Sprintf("waitid code %d, status %d", info.Code, status)
	}
}

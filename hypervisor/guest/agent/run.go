package agent

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stillframe/hypervisor/guest"
)

// agentOOMScore makes the agent the last choice of the kernel when memory runs out; commands get the ordinary 0.
const agentOOMScore = -900

// setOOMScore writes oom_score_adj of a process, see proc(5).
func setOOMScore(pid string, score int) error {
	return os.WriteFile("/proc/"+pid+"/oom_score_adj", []byte(strconv.Itoa(score)), 0o600)
}

// run is one command under way. Its goroutine (supervise) ends with the command.
type run struct {
	cmd            *exec.Cmd
	stdout, stderr *stream
	done           chan struct{} // closed when the result is there

	mu     sync.Mutex
	ended  bool // the main process has ended, so its group is not ours to kill any more
	killed bool
	result guest.ExecResult // without output; valid once done is closed
}

// startRun starts a prepared command whose output goes to the two sinks.
func startRun(cmd *exec.Cmd, timeout time.Duration, stdout, stderr sink) (*run, error) {
	r := &run{cmd: cmd, done: make(chan struct{})}
	out, outW, err := newStream(stdout)
	if err != nil {
		return nil, err
	}
	defer outW.Close() //nolint:errcheck // the command has its own copy
	errS, errW, err := newStream(stderr)
	if err != nil {
		return nil, err
	}
	defer errW.Close() //nolint:errcheck // the command has its own copy
	r.stdout, r.stderr = out, errS
	cmd.Stdout, cmd.Stderr = outW, errW
	started := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	_ = setOOMScore(strconv.Itoa(cmd.Process.Pid), 0) // may have ended already
	if timeout == 0 {
		timeout = guest.DefaultExecTimeout
	}
	go r.supervise(started, timeout)
	return r, nil
}

func (r *run) supervise(started time.Time, timeout time.Duration) {
	defer close(r.done)
	var timedOut bool
	timer := time.AfterFunc(timeout, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		timedOut = r.killGroup()
	})
	r.awaitEnd()
	r.mu.Lock()
	r.ended = true
	r.mu.Unlock()
	timer.Stop()
	_ = r.cmd.Wait() // its error repeats the state
	duration := time.Since(started)

	r.stdout.finish()
	r.stderr.finish()
	<-r.stdout.complete
	<-r.stderr.complete

	r.mu.Lock()
	defer r.mu.Unlock()
	r.result = guest.ExecResult{Duration: duration, TimedOut: timedOut, Killed: r.killed}
	if ws, ok := r.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		r.result.Signal = int(ws.Signal())
		r.result.ExitCode = 128 + r.result.Signal
	} else {
		r.result.ExitCode = r.cmd.ProcessState.ExitCode()
	}
}

// awaitEnd returns when the main process has ended and is not yet waited for, so that its number still is its own and
// a kill cannot hit a stranger.
func (r *run) awaitEnd() {
	for {
		err := unix.Waitid(unix.P_PID, r.cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// killGroup kills the command's process group while the main process is there; it tells whether it was. The caller
// holds mu.
func (r *run) killGroup() bool {
	if r.ended {
		return false
	}
	_ = unix.Kill(-r.cmd.Process.Pid, unix.SIGKILL) // nobody left is as good
	return true
}

// kill ends the run early.
func (r *run) kill() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.killed = r.killGroup() || r.killed
}

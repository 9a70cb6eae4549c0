package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// process is a program that this run started. It ends with this run, however that ends.
type process struct {
	cmd    *exec.Cmd
	log    string // file that has its output
	exited chan struct{}
}

// start runs a program with its output in a file.
func start(log string, args ...string) (*process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()                         //nolint:errcheck // the process has its own
	cmd := exec.Command(args[0], args[1:]...) //nolint:noctx // it ends with kill, or with this process
	p := &process{cmd: cmd, log: log, exited: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.exited)
		_ = p.cmd.Wait() // how it ended is of interest only where it should not have: see await
	}()
	return p, nil
}

// kill ends the process at once and waits until it is gone. Repeating it does nothing.
func (p *process) kill() {
	if p == nil {
		return
	}
	_ = p.cmd.Process.Kill() // it may have ended by itself
	<-p.exited
}

// stopPatience is what a server has to end by itself.
const stopPatience = 20 * time.Second

// end has the process end by itself, so that it takes away what it keeps ready on the host, or else at once.
func (p *process) end() {
	if p == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
	select {
	case <-p.exited:
	case <-time.After(stopPatience):
		p.kill()
	}
}

// await tries until it works, the process has ended, or ctx has.
func (p *process) await(ctx context.Context, try func() error) error {
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-p.exited:
			tail, _ := os.ReadFile(p.log)
			return fmt.Errorf("%s has ended: %w\n%s", p.cmd.Path, err, tail[max(0, len(tail)-2000):])
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// freePorts gives addresses on the loopback that nobody listens at now.
func freePorts(n int) ([]string, error) {
	var out []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() //nolint:errcheck,revive // all stay open until the last is found, so that none comes twice
		out = append(out, l.Addr().String())
	}
	return out, nil
}

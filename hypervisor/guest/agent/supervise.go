package agent

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// ServeCommand is the argument with which the program starts itself again as the agent proper.
const ServeCommand = "serve"

// bootEnv carries the boot's timings to the agent proper.
const bootEnv = "STILLFRAME_BOOT"

const (
	restartMin = 50 * time.Millisecond
	restartMax = 2 * time.Second
	// steady is how long the agent must have run for its next death to be restarted at once again.
	steady = 10 * time.Second
)

// supervise is the rest of process 1's life: take in what dies, and start the agent again when that is what died.
func supervise(boot string) {
	// A stray kill 1 must not take the machine down. Taken in and dropped, not ignored: what is ignored stays so in
	// every program that is started from here.
	signal.Notify(make(chan os.Signal, 1))
	pause := restartMin
	for {
		started := time.Now()
		pid, err := startAgent(boot)
		if err != nil {
			fmt.Fprintf(os.Stderr, "stillframe-guest: start agent: %v\n", err)
		} else {
			status := reapUntil(pid)
			fmt.Fprintf(os.Stderr, "stillframe-guest: agent ended (%s), starting it again\n", describe(status))
		}
		if time.Since(started) > steady {
			pause = restartMin
		}
		time.Sleep(pause)
		pause = min(2*pause, restartMax)
	}
}

func startAgent(boot string) (int, error) {
	return syscall.ForkExec("/proc/self/exe", []string{"stillframe-guest", ServeCommand}, &syscall.ProcAttr{
		Dir:   "/",
		Env:   []string{bootEnv + "=" + boot},
		Files: []uintptr{0, 1, 2},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
}

// reapUntil takes in every child until pid ends.
func reapUntil(pid int) syscall.WaitStatus {
	for {
		var status syscall.WaitStatus
		dead, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil: // ECHILD: the agent is gone without a trace
			return status
		case dead == pid:
			return status
		}
	}
}

func describe(s syscall.WaitStatus) string {
	if s.Signaled() {
		return "signal " + s.Signal().String()
	}
	return fmt.Sprintf("exit status %d", s.ExitStatus())
}

package agent

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Boot is process 1, in the initramfs. It does not return: when the machine cannot be brought up it is powered off.
func Boot() {
	unix.Umask(0o022)
	steps, err := bringUp()
	if err != nil {
		fmt.Fprintf(os.Stderr, "stillframe-guest: boot failed: %v\n", err)
		unix.Sync()
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
		select {} // process 1 must not end, it would be a kernel panic that hides the message
	}
	supervise(steps.String())
}

// bringUp does the named steps of booting, in order.
func bringUp() (*bootLog, error) {
	log := &bootLog{}
	log.done("init")
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"filesystems", mountEarly},
		{"modules", loadModules},
		{"disks", mountRoot},
		{"root", switchRoot},
		{"network", configureNetwork},
	} {
		if err := step.do(); err != nil {
			return nil, fmt.Errorf("%s: %w", step.name, err)
		}
		log.done(step.name)
	}
	return log, nil
}

// bootLog collects when each step was done. It travels to the agent proper in an environment variable.
type bootLog struct{ entries []string }

func (l *bootLog) done(step string) {
	l.entries = append(l.entries, fmt.Sprintf("%s=%d", step, sinceBoot().Milliseconds()))
}

func (l *bootLog) String() string { return strings.Join(l.entries, ",") }

// sinceBoot reads the kernel's clock of time since it started.
func sinceBoot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

//go:build faults

package hypervisor

import (
	"os"
	"strings"
	"syscall"
	"time"

	"stillframe/fsm"
)

// faultPoint makes the process fail at one named place, for crash tests only: the build tag keeps it out of the program
// that people run. STILLFRAME_FAULT is "<action>:<kind>/<step>/<before|after>", the action kill or hang.
func faultPoint(kind fsm.IntentKind, s Step, when string) {
	action, place, ok := strings.Cut(os.Getenv("STILLFRAME_FAULT"), ":")
	if !ok || place != string(kind)+"/"+string(s)+"/"+when {
		return
	}
	if action == "kill" {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	// SIGKILL is delivered asynchronously: nothing more may be done in the meantime. For "hang" this is the fault.
	time.Sleep(time.Hour)
}

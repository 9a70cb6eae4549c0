//go:build faults

package hypervisor

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"stillframe/fsm"
)

// faultPoint makes the process fail at one named place, for crash tests only: the build tag keeps it out of the program
// that people run. STILLFRAME_FAULT is "<action>:<kind>/<step>/<before|after>", or "@" and the path of a file that holds
// that and is read anew at every place, so that a test can order the next fault from a daemon that runs. The actions:
//
//	kill  the process ends by SIGKILL
//	hang  the step never goes on
//	gate  FILE.reached appears, and the step goes on once FILE is removed; with "@FILE" only
func faultPoint(kind fsm.IntentKind, s Step, when string) {
	order, file := os.Getenv("STILLFRAME_FAULT"), ""
	if path, ok := strings.CutPrefix(order, "@"); ok {
		raw, err := os.ReadFile(path) //nolint:gosec // named by the test
		if err != nil {
			return // no order now
		}
		order, file = strings.TrimSpace(string(raw)), path
	}
	action, place, ok := strings.Cut(order, ":")
	if !ok || place != string(kind)+"/"+string(s)+"/"+when {
		return
	}
	switch {
	case action == "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case action == "gate" && file != "":
		passGate(file)
		return
	}
	// SIGKILL is delivered asynchronously: nothing more may be done in the meantime. For "hang" this is the fault.
	time.Sleep(time.Hour)
}

// passGate says that it is reached and waits until the order is withdrawn.
func passGate(file string) {
	if err := os.WriteFile(file+".reached", nil, 0o600); err != nil {
		panic(err)
	}
	for {
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
}

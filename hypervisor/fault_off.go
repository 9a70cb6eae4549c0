//go:build !faults

package hypervisor

import "stillframe/fsm"

// faultPoint does nothing in the program that people run; see fault_on.go.
func faultPoint(fsm.IntentKind, Step, string) {}

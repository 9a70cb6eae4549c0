//go:build bugs

package main

import (
	"os"

	"stillframe/fsm"
)

// A program with deliberate bugs is for tests of the tests only. The environment says which one is at work.
func init() { fsm.SetBug(os.Getenv("STILLFRAME_BUG")) }

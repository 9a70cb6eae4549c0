package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// The proof that the checks work: deliberate bugs, each built into the node (see fsm.SetBug), each given the faults
// that bring it out, and each to be found by an invariant that it breaks.

type bugCase struct {
	bug      string
	only     string // the faults that matter to it
	duration string
	lease    string
	finds    []string // the invariants that may find it
}

var bugCases = []bugCase{
	{"no-dedup", "none", "15s", "6s", []string{"5 keys"}},
	{"early-name", "hang a VMM", "30s", "6s", []string{"1 names"}},
	{"stale-read", "cut a node off,one-way cut,stop a daemon,lossy network", "45s", "6s", []string{"1 names"}},
	{"no-resume", "kill at a step", "40s", "6s", []string{"4 pauses", "10 recovery", "10 leaks"}},
	{"torn", "none", "20s", "6s", []string{"2 kept", "2 content"}},
	{"early-commit", "kill an owner at work,kill a node,kill all", "45s", "6s", []string{"2 kept", "3 whole"}},
}

// provingBugs runs every case (or those named), and says which invariant has found each.
func (o options) provingBugs(ctx context.Context) (int, error) {
	missed := 0
	var lines []string
	for _, c := range bugCases {
		if o.bug != "" && !slices.Contains(strings.Split(o.bug, ","), c.bug) {
			continue
		}
		found, err := o.proveOne(ctx, c)
		if err != nil {
			return 2, fmt.Errorf("bug %s: %w", c.bug, err)
		}
		what := "found by " + strings.Join(found, ", ")
		if len(found) == 0 {
			what = "NOT FOUND"
			missed++
		}
		lines = append(lines, fmt.Sprintf("  %-14s %s", c.bug, what))
		fmt.Println(lines[len(lines)-1])
	}
	fmt.Printf("\ndeliberate bugs\n%s\n", strings.Join(lines, "\n"))
	if missed > 0 || len(lines) == 0 {
		return 1, fmt.Errorf("%d of %d deliberate bugs were not found", missed, len(lines))
	}
	return 0, nil
}

// proveOne runs one case, more than once where chance did not bring the bug out.
func (o options) proveOne(ctx context.Context, c bugCase) (found []string, err error) {
	for try := range uint64(3) {
		out := filepath.Join(o.out, "bug-"+c.bug)
		cmd := exec.CommandContext(ctx, "/proc/self/exe", "-bug="+c.bug, "-only="+c.only, "-duration="+c.duration,
			"-lease="+c.lease, "-real=0", "-nodes=3", "-out="+out, "-images="+o.images, fmt.Sprint("-seed=", o.seed+try))
		raw, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		switch {
		case err == nil:
			continue // nothing was violated
		case !errors.As(err, &exit) || exit.ExitCode() != 1:
			return nil, fmt.Errorf("%w: %s", err, raw)
		}
		if found, err = foundBy(out, c.finds); err != nil || len(found) > 0 {
			return found, err
		}
	}
	return nil, nil
}

// foundBy gives the invariants that a report says were violated, of those that may find a bug.
func foundBy(out string, finds []string) (found []string, err error) {
	raw, err := os.ReadFile(filepath.Join(out, "report.json"))
	if err != nil {
		return nil, err
	}
	var res result
	if err := json.Unmarshal(raw, &res); err != nil {
		return nil, err
	}
	for _, v := range res.Violations {
		if slices.Contains(finds, v.Invariant) && !slices.Contains(found, v.Invariant) {
			found = append(found, v.Invariant)
		}
	}
	return found, nil
}

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// result is the report as a file.
type result struct {
	Seed          uint64         `json:"seed"`
	Nodes         int            `json:"nodes"`
	Real          int            `json:"real_vm_nodes"`
	Duration      string         `json:"duration"`
	Bug           string         `json:"bug,omitempty"`
	Faults        map[string]int `json:"faults"`
	Operations    map[string]int `json:"operations"` // "kind outcome" to count
	Total         int            `json:"total_operations"`
	Tries         int            `json:"requests"`
	Unknown       int            `json:"unknown_when_healed"`
	StillUnknown  int            `json:"unknown_at_the_end"`
	Moves         int            `json:"moves_judged"`
	Restored      int            `json:"snapshots_restored_and_compared"`
	Rechecked     int            `json:"keys_asked_again"`
	WriteOutage   string         `json:"longest_write_outage"`
	WriteOutageAt string         `json:"longest_write_outage_began_after"`
	Pauses        int            `json:"pauses"`
	LongestPause  string         `json:"longest_pause"`
	QuietPause    string         `json:"longest_pause_without_faults_of_its_host"`
	Violations    []violation    `json:"violations"`
}

func (r *run) result() result {
	outage, at := r.outage.result()
	out := result{
		Seed: r.o.seed, Nodes: r.o.nodes, Real: r.o.real, Duration: r.o.duration.String(), Bug: r.o.bug,
		Faults: r.faults.counts, Operations: map[string]int{}, Unknown: r.unknowns, Moves: r.judged,
		Restored: r.restored, Rechecked: r.rechecked, WriteOutage: outage.Round(time.Millisecond).String(),
		WriteOutageAt: at.Round(time.Millisecond).String(), Pauses: r.pauses.count,
		LongestPause: r.pauses.longest.Round(time.Microsecond).String(),
		QuietPause:   r.pauses.quiet.Round(time.Microsecond).String(), Violations: r.violations(),
	}
	for _, op := range r.history.all() {
		out.Operations[op.Kind+" "+op.Outcome]++
		out.Total++
		out.Tries += op.Tries
		if op.Outcome == outcomeUnknown {
			out.StillUnknown++
		}
	}
	return out
}

// report writes the history and the report, and says what came of it.
func (r *run) report() error {
	res := r.result()
	raw, err := json.MarshalIndent(res, "", "  ")
	if err != nil {
		return err
	}
	err = errors.Join(os.WriteFile(filepath.Join(r.o.out, "report.json"), append(raw, '\n'), 0o600), r.writeHistory())
	if len(res.Violations) > 0 {
		err = errors.Join(err, r.keepLogs())
	}
	fmt.Printf("\nfaults\n")
	total := 0
	for _, name := range slices.Sorted(maps.Keys(res.Faults)) {
		fmt.Printf("  %-28s %5d\n", name, res.Faults[name])
		total += res.Faults[name]
	}
	fmt.Printf("  %-28s %5d\n\noperations\n", "in all", total)
	for _, name := range slices.Sorted(maps.Keys(res.Operations)) {
		fmt.Printf("  %-28s %5d\n", name, res.Operations[name])
	}
	fmt.Printf("  %-28s %5d in %d requests\n", "in all", res.Total, res.Tries)
	fmt.Printf(`
unknown outcomes              %d when all was healed, %d at the end (without a key to ask with)
moves of names judged         %d
snapshots restored, compared  %d
keys asked again              %d
policies compared             %d
longest write outage          %s, from %s on
longest pause of a source     %s of %d; %s not counting faults of its own host
seed                          %d
`, res.Unknown, res.StillUnknown, res.Moves, res.Restored, res.Rechecked, r.policed, res.WriteOutage, res.WriteOutageAt,
		res.LongestPause, res.Pauses, res.QuietPause, res.Seed)
	if n := len(res.Violations); n > 0 {
		fmt.Printf("\n%d VIOLATIONS; history, report and logs are in %s\n", n, r.o.out)
	} else {
		fmt.Printf("\nno violation; history and report are in %s\n", r.o.out)
	}
	return err
}

// keepLogs copies the daemons' logs beside the report.
func (r *run) keepLogs() error {
	var errs []error
	for _, n := range r.nodes {
		errs = append(errs, copyFile(n.log, filepath.Join(r.o.out, n.name+".log")))
	}
	return errors.Join(errs...)
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

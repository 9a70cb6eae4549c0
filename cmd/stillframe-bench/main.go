// Command stillframe-bench measures what Stillframe does to a virtual machine against what the raw VMM does in the same
// run: how long a guest stands still for a snapshot (measured in the guest), how soon a restored one answers, how much
// of an API call is the service's own, how much disk a second snapshot takes; and what a network with an egress policy
// costs against bare rules and a bare namespace. And it measures clusters of real processes on loopback: accepted
// intents against bare hashicorp/raft (intents.go) and, where it is installed, etcd; reads against a handler that does
// nothing; how long writes are out when the leader is killed; what a million snapshots take. Only the ratios mean
// anything; --only runs some of the groups.
//
// It runs as root, makes filesystems on loop devices below --dir, and removes all that it makes. Absolute figures are
// those of the machine; an aim that is missed is reported, never an error: the exit code tells whether it could
// measure.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Result is one measured figure. Ratio is Value over Baseline; Aim is what the ratio should not exceed, 0 for none.
type Result struct {
	Name     string  `json:"name"`
	Value    float64 `json:"value"`
	Baseline float64 `json:"baseline"`
	Ratio    float64 `json:"ratio"`
	Aim      float64 `json:"aim,omitempty"`
	AtLeast  bool    `json:"at_least,omitempty"` // the aim is what the ratio should reach
	Met      bool    `json:"met"`
	Unit     string  `json:"unit"`
	Note     string  `json:"note,omitempty"`
}

type options struct {
	sizes    []int
	repeat   int
	clones   int
	networks int
	dir      string
	out      string
	images   string
	verbose  bool

	groups    []string
	seconds   int
	kills     int
	snapshots int
	profile   bool
}

// groups are the parts of the bench, each of which can be run alone, in their order.
var groups = []string{"egress", "vm", "intents", "reads", "kills", "scale"}

// roles are what a process of this program can be besides the bench itself: a part of a baseline.
var roles = map[string]func(args []string, in io.Reader, out io.Writer) error{bareRole: bareNode, noopRole: noopServer}

func main() {
	if len(os.Args) > 1 {
		if role := roles[os.Args[1]]; role != nil {
			if err := role(os.Args[2:], os.Stdin, os.Stdout); err != nil {
				fmt.Fprintln(os.Stderr, "stillframe-bench", os.Args[1]+":", err)
				os.Exit(1)
			}
			return
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	work := func() error { return run(ctx, os.Args[1:], os.Stdout) }
	if os.Getenv(egressInner) != "" {
		work = func() error { return runEgress(ctx, os.Stdout) }
	}
	if number := os.Getenv(networkChild); number != "" {
		work = func() error { return measureNetworks(ctx, number) }
	}
	if err := work(); err != nil {
		fmt.Fprintln(os.Stderr, "stillframe-bench:", err)
		stop()
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	var o options
	var sizes string
	flags := flag.NewFlagSet("stillframe-bench", flag.ContinueOnError)
	flags.StringVar(&sizes, "sizes", "256,1024,4096", "guest memory in MiB, comma-separated")
	flags.IntVar(&o.repeat, "repeat", 3, "how often each pause is measured; the median counts")
	flags.IntVar(&o.clones, "clones", 10, "clones restored at once")
	flags.IntVar(&o.networks, "networks", 1000, "networks at once; 0 leaves networks out")
	flags.StringVar(&o.dir, "dir", os.TempDir(), "folder for the loop filesystems")
	flags.StringVar(&o.out, "out", "build/bench.json", "file for the figures")
	flags.StringVar(&o.images, "images", "", "images folder (default as for stillframe server)")
	only := flags.String("only", strings.Join(groups, ","), "which groups to run")
	flags.IntVar(&o.seconds, "seconds", 8, "how long each load on a cluster lasts")
	flags.IntVar(&o.kills, "kills", 10, "how often the leader is killed (50 for the long form)")
	flags.IntVar(&o.snapshots, "snapshots", 1_000_000, "snapshots in the state whose size is measured")
	flags.BoolVar(&o.profile, "pids", false, "tell the nodes' process ids, for who wants to look at them")
	flags.BoolVar(&o.verbose, "v", false, "show the node's log")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	for field := range strings.SplitSeq(sizes, ",") {
		mib, err := strconv.Atoi(strings.TrimSpace(field))
		if err != nil || mib < 256 {
			return o, fmt.Errorf("--sizes %q: want MiB from 256 up", field)
		}
		o.sizes = append(o.sizes, mib)
	}
	for group := range strings.SplitSeq(*only, ",") {
		if !slices.Contains(groups, group) {
			return o, fmt.Errorf("--only %q: want some of %s", group, strings.Join(groups, ","))
		}
		o.groups = append(o.groups, group)
	}
	if o.seconds < 1 || o.kills < 1 || o.snapshots < 1000 {
		return o, errors.New("--seconds and --kills must be positive, --snapshots at least 1000")
	}
	if o.repeat < 1 || o.clones < 1 {
		return o, errors.New("--repeat and --clones must be positive")
	}
	return o, nil
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	o, err := parse(args)
	if err != nil {
		return err
	}
	level := slog.LevelError
	if o.verbose {
		level = slog.LevelInfo
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	b := &bench{options: o, log: log, out: out}
	run := map[string]func(context.Context) error{
		"vm": b.virtualMachines, "egress": b.networkPolicy, "intents": b.intents, "reads": b.reads, "kills": b.leaderKills,
		"scale": b.scale,
	}
	for _, group := range o.groups {
		if err := run[group](ctx); err != nil {
			return fmt.Errorf("%s: %w", group, err)
		}
	}
	b.table(out)
	return b.write(o.out)
}

// networkPolicy measures what the network policy costs.
func (b *bench) networkPolicy(ctx context.Context) error {
	if b.networks > 0 {
		if err := b.networkFigures(ctx); err != nil {
			return err
		}
	}
	return b.egress(ctx)
}

// virtualMachines measures what the service does to virtual machines.
func (b *bench) virtualMachines(ctx context.Context) error {
	for _, kind := range []string{"xfs", "ext4"} {
		if err := b.onFilesystem(ctx, kind); err != nil {
			return fmt.Errorf("on %s: %w", kind, err)
		}
	}
	return nil
}

// bench collects figures.
type bench struct {
	options
	log     *slog.Logger
	out     io.Writer
	results []Result
}

func (b *bench) say(format string, args ...any) {
	_, _ = fmt.Fprintf(b.out, "%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}

func (b *bench) add(r Result) {
	if r.Baseline != 0 {
		r.Ratio = r.Value / r.Baseline
	}
	r.Met = r.Aim == 0 || r.Ratio <= r.Aim
	if r.AtLeast {
		r.Met = r.Ratio >= r.Aim
	}
	b.results = append(b.results, r)
	b.say("%s: %.1f / %.1f %s = %.3f", r.Name, r.Value, r.Baseline, r.Unit, r.Ratio)
}

func (b *bench) table(out io.Writer) {
	width := 0
	for _, r := range b.results {
		width = max(width, len(r.Name))
	}
	_, _ = fmt.Fprintf(out, "\n%-*s %12s %12s %8s %8s  %s\n", width, "figure", "value", "baseline", "ratio", "aim", "")
	for _, r := range b.results {
		aim, met := "", ""
		if r.Aim > 0 {
			aim, met = fmt.Sprintf("≤ %.2g", r.Aim), "met"
			if r.AtLeast {
				aim = fmt.Sprintf("≥ %.2g", r.Aim)
			}
			if !r.Met {
				met = "MISSED"
			}
		}
		_, _ = fmt.Fprintf(out, "%-*s %9.1f %-2s %9.1f %-2s %8.3f %8s  %-6s %s\n", width, r.Name, r.Value, r.Unit, r.Baseline,
			r.Unit, r.Ratio, aim, met, r.Note)
	}
}

func (b *bench) write(path string) error {
	raw, err := json.MarshalIndent(b.results, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { // a report for anyone
		return err
	}
	return os.WriteFile(path, append(raw, '\n'), 0o644) // a report for anyone
}

// Command stillframe-bench measures what Stillframe does to a virtual machine against what the raw VMM does in the same
// run: how long a guest stands still for a snapshot (measured in the guest), how soon a restored one answers, how much
// of an API call is the service's own, how much disk a second snapshot takes; and what a network with an egress policy
// costs against bare rules and a bare namespace. Only the ratios mean anything.
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
	only     string
	verbose  bool
}

func main() {
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
	flags.StringVar(&o.only, "only", "", "measure only these: vm (on virtual machines) or egress (the network policy)")
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
	if o.only != "" && o.only != "vm" && o.only != "egress" {
		return o, fmt.Errorf("--only %q: want vm or egress", o.only)
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
	if o.only != "vm" {
		if o.networks > 0 {
			if err := b.networkFigures(ctx); err != nil {
				return err
			}
		}
		if err := b.egress(ctx); err != nil {
			return fmt.Errorf("egress: %w", err)
		}
	}
	for _, kind := range []string{"xfs", "ext4"} {
		if o.only == "egress" {
			break
		}
		if err := b.onFilesystem(ctx, kind); err != nil {
			return fmt.Errorf("on %s: %w", kind, err)
		}
	}
	b.table(out)
	return b.write(o.out)
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

// Command chaos runs a cluster of real processes under a seeded schedule of faults, several at once, while clients on
// all nodes create, snapshot, restore and delete, and then proves from what the clients saw, and from what is on the
// nodes, that nothing was lost, doubled or left behind.
//
// # What runs
//
// The test starts itself again in a mount and a network namespace of its own. In there are three or five "stillframe
// server" processes, each with a network namespace and an address on one bridge, and an XFS of its own in a file. All
// but one drive the light VMM (see lightvmm); the last one drives real virtual machines, unless told otherwise.
// Everything ends with the namespaces, whatever happens; only processes that this one has started, or that the data
// folders' records name, are ever ended.
//
// # What is judged
//
// Clients record every request and its answer (history.go). A request whose answer is lost is sent again under its
// idempotency key, mostly at another node; one that is never answered stays open-ended. Afterwards, with all faults
// healed: each name's history is linearizable (linear.go); every acknowledged snapshot is listed on every node, its
// digests verify, it restores, and holds what its source held (final.go); asked again, the same key gives the same
// answer, and another body a conflict; no network policy in force is wider than the one acknowledged last
// (policies.go); nodes at one position have one digest, all the time (watch.go); no source stood still longer than a
// bound but for faults of its own host, as its VMM has measured it (pauses.go); nothing is open, and when all is
// deleted nothing is left (leaks.go).
//
// It ends with a report and with status 1 if anything was violated. It imports httpd/client's contract only by
// speaking HTTP, and of this module hypervisor/vmm, hypervisor/store and netpolicy, to see the truth behind the API.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// options are the program's arguments.
type options struct {
	seed     uint64
	duration time.Duration
	nodes    int
	real     int    // how many nodes run real virtual machines
	out      string // where history and report are kept
	images   string
	bug      string // a deliberate bug to build in; empty: none
	race     bool
	lease    time.Duration // after which a silent node is given up
	only     string        // faults to choose from; empty: all
}

const envInside = "STILLFRAME_CHAOS_INSIDE"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	var o options
	var bugs bool
	flag.Uint64Var(&o.seed, "seed", 0, "seed of the schedule and of the clients; 0: a new one")
	flag.DurationVar(&o.duration, "duration", 2*time.Minute, "how long clients and faults go on")
	flag.IntVar(&o.nodes, "nodes", 3, "how many nodes: 3 or 5")
	flag.IntVar(&o.real, "real", 1, "how many of them run real virtual machines")
	flag.StringVar(&o.out, "out", "build/chaos", "folder for history and report")
	flag.StringVar(&o.images, "images", "build/images", "images folder")
	flag.StringVar(&o.bug, "bug", "", "build this deliberate bug in")
	flag.BoolVar(&o.race, "race", false, "run the nodes with the race detector")
	flag.DurationVar(&o.lease, "lease", 6*time.Second, "how long a node may be silent before it is given up for lost")
	flag.StringVar(&o.only, "only", "", "only these faults, separated by commas")
	flag.BoolVar(&bugs, "bugs", false, "prove that deliberate bugs are found (all, or those of -bug)")
	flag.Parse()
	if o.seed == 0 {
		o.seed = rand.Uint64() >> 1
	}
	do := o.main
	if bugs {
		do = o.provingBugs
	}
	code, err := do(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		code = max(code, 2)
	}
	stop()
	os.Exit(code)
}

func (o options) main(ctx context.Context) (int, error) {
	if work := os.Getenv(envInside); work != "" {
		return o.inside(ctx, work)
	}
	return o.outside(ctx)
}

// outside builds the programs and runs itself in namespaces of its own.
func (o options) outside(ctx context.Context) (int, error) {
	work, err := os.MkdirTemp("/tmp", "sfch-")
	if err != nil {
		return 2, err
	}
	defer func() { _ = os.RemoveAll(work) }()
	if err := o.build(ctx, work); err != nil {
		return 2, err
	}
	for _, path := range []*string{&o.out, &o.images} {
		if *path, err = filepath.Abs(*path); err != nil {
			return 2, err
		}
	}
	args := append(os.Args[1:], fmt.Sprint("-seed=", o.seed), "-out="+o.out, "-images="+o.images)
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), envInside+"="+work)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = time.Minute
	err = cmd.Run()
	endLeftovers(work)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// build makes the programs: the node with fault points, and with a deliberate bug where one is asked for.
func (o options) build(ctx context.Context, work string) error {
	tags := "faults"
	if o.bug != "" {
		tags += ",bugs"
	}
	daemon := []string{"build", "-tags", tags}
	if o.race {
		daemon = append(daemon, "-race")
	}
	for _, args := range [][]string{
		append(daemon, "-o", filepath.Join(work, "stillframe"), "./cmd/stillframe"),
		{"build", "-o", filepath.Join(work, "stillframe-devvmm"), "./cmd/stillframe-devvmm"},
		{"build", "-o", filepath.Join(work, "lightvmm"), "./deploy/chaos/lightvmm"},
	} {
		cmd := exec.CommandContext(ctx, "go", args...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

// inside runs the test in the namespaces.
func (o options) inside(ctx context.Context, work string) (int, error) {
	r, err := newRun(o, work)
	if err != nil {
		return 2, err
	}
	defer r.remove()
	fmt.Printf("chaos: seed %d, %d nodes (%d with real virtual machines), %s\n", o.seed, o.nodes, o.real, o.duration)
	if err := r.start(ctx); err != nil {
		return 2, err
	}
	r.storm(ctx)
	if ctx.Err() != nil {
		return 2, ctx.Err()
	}
	r.settle(ctx)
	r.judge(ctx)
	if err := r.report(); err != nil {
		return 2, err
	}
	if len(r.violations()) > 0 {
		return 1, nil
	}
	return 0, nil
}

// storm has clients and faults go on for the duration.
func (r *run) storm(ctx context.Context) {
	storm, cancel := context.WithTimeout(ctx, r.o.duration)
	defer cancel()
	r.went = time.Now()
	for i := range clientsPerNode * len(r.nodes) {
		c := r.newClient(i)
		r.clients = append(r.clients, c)
		r.tasks.Go(func() { c.run(storm) })
	}
	watching, unwatch := context.WithCancel(ctx)
	r.watching.Go(func() { r.watch(watching) })
	r.unwatch = unwatch
	r.faults.run(storm)
	<-storm.Done()
}

// settle heals everything, and waits until the clients have the answers that they are owed.
func (r *run) settle(ctx context.Context) {
	r.faults.heal(ctx)
	r.healed = time.Now()
	for _, n := range r.nodes {
		if err := n.awaitReady(ctx, recovery); err != nil {
			r.violated("10 recovery", "node %s does not serve %s after everything is healed: %v", n.name, recovery, err)
		}
	}
	r.tasks.Wait()
	r.resolve(ctx)
	r.unwatch()
	r.watching.Wait()
}

// judge compares what the clients saw with what is there.
func (r *run) judge(ctx context.Context) {
	for _, n := range r.nodes {
		if !n.running() {
			r.violated("10 recovery", "node %s is not running, so the rest cannot be judged", n.name)
			return
		}
	}
	r.checkTeeth()
	r.checkHistory()
	r.checkAgreement(ctx)
	r.checkKeys(ctx)
	r.checkSnapshots(ctx)
	r.checkPolicies(ctx)
	r.checkOpen(ctx)
	r.checkPauses()
	r.checkLeaks(ctx)
	r.checkLogs()
}

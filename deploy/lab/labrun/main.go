//go:build linux && amd64

// Command labrun runs one command as root in an emulated x86-64 machine that has AMD-V, so that a VMM which needs
// /dev/kvm runs where no usable KVM is, and so that tests may do to a kernel what they would not do to the host's.
// deploy/lab/prepare.sh makes what it boots; deploy/lab/run.sh does both. It imports deploy/lab/job only.
//
// Invariants: the emulated machine dies with labrun, however labrun ends; no file of a run has a name once the machine
// is up; nothing the command does reaches the host but its two output streams, its exit code and the collected folder.
//
// Exit codes: the command's own; 124 when the time was over; 125 when the lab itself failed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"stillframe/deploy/lab/job"
)

// exitLab is labrun's exit code when the lab itself failed.
const exitLab = 125

const guestWordsEnv = "STILLFRAME_LAB_GUEST_ARGS"

// options are what one run was asked for.
type options struct {
	dir     string // folder made by prepare.sh
	cpus    int
	memory  int           // MiB
	disk    int           // MiB of the scratch disk
	timeout time.Duration // for boot and command together
	console string        // file for the machine's serial console; empty keeps only its tail, for failures
	verbose bool
	tscKHz  uint64   // of this machine, and so of all that is emulated on it
	files   []string // on the host; job.Binds says at the same index where each appears
	collect string   // host folder that receives job.Collect
	job     job.Job
}

func main() {
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "labrun:", err)
		os.Exit(exitLab)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	code, err := run(ctx, o)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "labrun:", err)
	}
	os.Exit(code)
}

const help = `usage: labrun [flags] -- command [argument…]

Runs the command as root in an emulated Debian machine with /dev/kvm and ends with its exit code. The command finds in
STILLFRAME_LAB_GUEST_ARGS what to add to the command line of the kernels of its own guests.

`

func parse(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("labrun", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), help)
		flags.PrintDefaults()
	}
	flags.StringVar(&o.dir, "lab", "", "folder that prepare.sh made (required)")
	flags.IntVar(&o.cpus, "cpus", 2, "virtual processors")
	flags.IntVar(&o.memory, "memory", 2048, "memory in MiB")
	flags.DurationVar(&o.timeout, "timeout", 10*time.Minute, "longest time for boot and command together")
	flags.StringVar(&o.console, "console", "", "keep the machine's console in this file")
	flags.BoolVar(&o.verbose, "v", false, "say what the lab does")
	flags.StringVar(&o.job.Dir, "dir", "", "working directory of the command (default /root)")
	flags.Func("with", "bring in a file or folder, read-only: PATH or PATH:WHERE (repeatable)", o.addFile)
	flags.Func("env", "set KEY=VALUE for the command (repeatable)", func(s string) error {
		o.job.Env = append(o.job.Env, s)
		return nil
	})
	modules := flags.String("modules", "kvm_amd,tun,loop", "kernel modules to load, separated by commas")
	flags.Func("scratch", "attach an empty disk: SIZE-IN-MIB:xfs|btrfs|ext4:WHERE", o.setScratch)
	flags.Func("collect", "bring a folder back when the command has ended: WHERE:PATH", o.setCollect)
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	o.job.Argv = flags.Args()
	o.job.Modules = strings.FieldsFunc(*modules, func(r rune) bool { return r == ',' })
	o.job.Until = time.Now().Add(o.timeout - collectTime(o.timeout))
	o.tscKHz = tscKHz()
	o.job.Env = append(o.job.Env, guestWordsEnv+"="+guestWords(o.tscKHz))
	return o, o.check()
}

// collectTime is how much of the timeout is kept for collecting what the command left, so that the machine itself can
// end a stuck command and still hand that over.
func collectTime(timeout time.Duration) time.Duration { return min(timeout/4, 20*time.Second) }

func (o *options) check() error {
	switch {
	case len(o.job.Argv) == 0:
		return errors.New("no command; see labrun -help")
	case o.dir == "":
		return errors.New("flag -lab is required")
	case o.cpus < 1 || o.memory < 256:
		return errors.New("a machine needs a processor and 256 MiB")
	case o.timeout <= 0:
		return errors.New("the timeout must be positive")
	}
	return nil
}

func (o *options) addFile(s string) error {
	source, target, ok := strings.Cut(s, ":")
	source, err := filepath.Abs(source)
	if err != nil {
		return err
	}
	if !ok {
		target = source
	}
	if !filepath.IsAbs(target) {
		return fmt.Errorf("%q is not an absolute path", target)
	}
	if _, err := os.Stat(source); err != nil {
		return err
	}
	o.job.Binds = append(o.job.Binds, job.Bind{Source: fmt.Sprint(len(o.files)), Target: target})
	o.files = append(o.files, source)
	return nil
}

func (o *options) setScratch(s string) error {
	parts := strings.SplitN(s, ":", 3)
	if len(parts) != 3 || !filepath.IsAbs(parts[2]) {
		return errors.New("want SIZE-IN-MIB:FILESYSTEM:/WHERE")
	}
	if _, err := fmt.Sscanf(parts[0], "%d", &o.disk); err != nil || o.disk <= 0 {
		return fmt.Errorf("size %q is not a positive number", parts[0])
	}
	o.job.ScratchFS, o.job.ScratchMount = parts[1], parts[2]
	return nil
}

func (o *options) setCollect(s string) error {
	where, path, ok := strings.Cut(s, ":")
	if !ok || !filepath.IsAbs(where) || path == "" {
		return errors.New("want /WHERE:PATH")
	}
	o.job.Collect, o.collect = where, path
	return nil
}

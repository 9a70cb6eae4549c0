// Command stillframe-devvmm is the development VMM: it serves the REST API of Cloud Hypervisor over QEMU's software
// emulation. See package devvmm.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"stillframe/hypervisor/devvmm"
)

func main() {
	if err := devvmm.MaybeLaunch(os.Args); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(os.Stderr, "%s: %v\n", devvmm.Name, err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	var o devvmm.Options
	var logFile string
	var version bool
	level := slog.LevelWarn
	flags := flag.NewFlagSet(devvmm.Name, flag.ContinueOnError)
	flags.StringVar(&o.APISocket, "api-socket", "", "Unix socket of the REST API: path=`PATH` or fd=NUMBER")
	flags.StringVar(&o.EventMonitor, "event-monitor", "", "where events go: path=`PATH` or fd=NUMBER")
	flags.StringVar(&logFile, "log-file", "", "log to this `FILE`, truncated first; default: standard error")
	flags.BoolVar(&version, "version", false, "print the version and end")
	flags.BoolVar(&version, "V", false, "print the version and end")
	flags.BoolFunc("v", "say more", func(string) error { level = slog.LevelInfo; return nil })
	flags.BoolFunc("vv", "say all", func(string) error { level = slog.LevelDebug; return nil })
	flags.Func("seccomp", "accepted and ignored: QEMU is always confined", func(string) error { return nil })
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if version {
		v, err := devvmm.NewVersion().Resolve()
		if err != nil {
			return err
		}
		fmt.Println(v.Line())
		return nil
	}
	// Everything made here is for this user only: sockets, logs, snapshots hold what guests do.
	syscall.Umask(0o077)
	out, closeLog, err := openLog(logFile)
	if err != nil {
		return err
	}
	defer closeLog()
	o.Logger = slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: level}))
	return devvmm.Serve(ctx, o)
}

func openLog(path string) (io.Writer, func(), error) {
	if path == "" {
		return os.Stderr, func() {}, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600) // an argument
	if err != nil {
		return nil, nil, err
	}
	return f, func() { _ = f.Close() }, nil
}

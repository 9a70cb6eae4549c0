// Command lightvmm stands in for a VMM where there must be many sandboxes and none has to compute: it serves the part
// of Cloud Hypervisor's REST API that an owner uses and runs no guest. A node that is pointed at it by STILLFRAME_VMM
// needs no special case.
//
// # What it does as a VMM does
//
// It is a process of its own in the sandbox's network namespace that outlives the daemon. It maps the RAM file that
// its configuration names and opens the disk file, and goes on writing to both for as long as it is not paused: a
// counter in memory, pages that depend on it, the counter on the disk, the counter in memory again. Pausing stops this
// between two rounds, so that whatever is copied in the pause is of one counter, and what is copied beside it is not.
// vm.snapshot writes config.json and state.json, the latter with the counter; vm.restore refuses files that are not of
// the instant of their state.json. An agent answers at the guest's address, through the sandbox's tap and a kernel's
// network stack behind it: who it is, and small files, of which those below /dev/shm are kept in RAM and all others on
// the disk.
//
// # What it is not
//
// No processor, no kernel, no file system, no commands, no boundary. It says nothing about how long anything takes,
// and what it answers of random numbers, clocks and authorities is that it has been told. Real guests are for the
// tests that need them.
//
// It imports hypervisor/guest (the agent's protocol and the fixed addresses) and nothing else of this module.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// version begins with the name of the development VMM, as which the driver takes it.
const version = "stillframe-devvmm light.1 (no guest)"

// envReport names a folder in which each process keeps a file of its pauses.
const envReport = "STILLFRAME_LIGHTVMM_REPORT"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "lightvmm:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	var socket, logFile, events string
	var showVersion bool
	flags := flag.NewFlagSet("lightvmm", flag.ContinueOnError)
	flags.StringVar(&socket, "api-socket", "", "path=`PATH` of the API's socket")
	flags.StringVar(&logFile, "log-file", "", "log to this `FILE`, truncated first")
	flags.StringVar(&events, "event-monitor", "", "path=`PATH` of a file that is made and stays empty")
	flags.BoolVar(&showVersion, "version", false, "print the version and end")
	flags.BoolFunc("v", "accepted and ignored", func(string) error { return nil })
	if err := flags.Parse(args); err != nil {
		return err
	}
	if showVersion {
		fmt.Println(version)
		return nil
	}
	syscall.Umask(0o077)
	out := os.Stderr
	if logFile != "" {
		f, err := os.Create(logFile) // an argument
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		out = f
	}
	if path := strings.TrimPrefix(events, "path="); path != "" {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			return err
		}
	}
	return serve(ctx, strings.TrimPrefix(socket, "path="), slog.New(slog.NewTextHandler(out, nil)))
}

// serve answers the API until ctx ends or it is told to shut down.
func serve(ctx context.Context, socket string, log *slog.Logger) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err // a stale one is replaced, as the real VMM does
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	report, err := openReport(os.Getenv(envReport))
	if err != nil {
		return err
	}
	a := &api{log: log, stop: cancel, report: report}
	defer a.remove()
	server := &http.Server{Handler: a.handler(), ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		grace, done := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer done()
		return server.Shutdown(grace)
	}
}

// Command stillframe-guest is the program inside every sandbox's virtual machine: its first process, the agent that the
// node talks to, and a few tools for use inside the sandbox.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"stillframe/hypervisor/guest/agent"
)

func main() {
	if os.Getpid() == 1 {
		agent.Boot()
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "stillframe-guest:", err)
		stop()
		os.Exit(1)
	}
}

var errUsage = errors.New(`usage: stillframe-guest COMMAND [flags]

commands:
  stillness   measure how long this machine stood still, by the node's clock
  counter     count in memory, writing the number with the time to a file
  load        fill memory and go on writing to it, for benchmarks
  version     print the version
(-h after a command lists its flags)`)

func run(ctx context.Context, args []string, stdout io.Writer) error {
	if len(args) == 0 {
		return errUsage
	}
	switch args[0] {
	case agent.ServeCommand:
		return agent.Serve(ctx, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	case "stillness":
		return agent.Stillness(ctx, args[1:], stdout)
	case "counter":
		return agent.Counter(ctx, args[1:])
	case "load":
		return agent.Load(ctx, args[1:])
	case "version":
		_, err := fmt.Fprintln(stdout, agent.Version)
		return err
	}
	return errUsage
}

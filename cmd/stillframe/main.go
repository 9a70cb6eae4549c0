// Command stillframe is both sides of Stillframe: the client commands (package cli) and, beside this file, the commands
// that run a node. main only joins them to the process.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"stillframe/cmd/stillframe/cli"
)

// Set by the linker: -X main.version=… -X main.commit=…
var (
	version = "devel"
	commit  = ""
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	built := cli.Version{Version: version, Commit: commit, Go: runtime.Version()}
	return cli.Run(ctx, cli.System(built), os.Args[1:], serverCommand, devCommand, clusterCommand)
}

// Package cli is the stillframe command line as a value: Run takes a world (Env) and arguments and gives an exit code,
// so that main is tiny and tests run whole commands in their own process.
//
// It may import httpd/client and cobra. It must not import the rooms of a node (cluster, hypervisor, httpd itself): the
// commands that run a node live beside main and are handed to Run, so that the client commands stay what any user of
// the HTTP contract could write.
//
// # Invariants
//
//   - What a program reads goes to Out, everything else (progress, hints, errors) to Err.
//   - With -o json, Out gets the node's JSON unchanged; with -q, ids only, one a line.
//   - An API key is read from the environment or a file, never from an argument, and is never printed, but once by
//     "key create". Nor are the values of headers that a policy injects.
//   - Every failure has a documented exit code (exit.go) and says what to do next.
package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// Env is the world that a command runs in.
type Env struct {
	In       io.Reader
	Out, Err io.Writer
	Getenv   func(string) string
	Now      func() time.Time
	// Terminal reports whether a person watches a stream. Progress is shown only there.
	Terminal func(io.Writer) bool
	Version  Version
}

// Version says what was built. Empty fields were not known at build time.
type Version struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Go      string `json:"go"`
}

// System is the process's own world.
func System(v Version) Env {
	return Env{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr,
		Getenv: os.Getenv, Now: time.Now, Terminal: isTerminal, Version: v,
	}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// Command makes a command that lives outside this package, such as the one that runs a node.
type Command func(Env) *cobra.Command

// Run carries out one command line (without the program's name) and gives the exit code of the process. A cancelled
// context interrupts it.
func Run(ctx context.Context, env Env, args []string, more ...Command) int {
	root := New(env, more...)
	root.SetArgs(append([]string{}, args...)) // nil would mean those of the process
	started := false
	onStart(root, func() { started = true })
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return ExitOK
	}
	var usage usageError
	if !started && !errors.As(err, &usage) {
		err = usageError{err} // cobra's own checks, such as of required flags, fail before a command starts
	}
	if ctx.Err() != nil {
		err = errors.Join(errInterrupted, err)
	}
	return explain(env, cmd, err)
}

// onStart has f called when a command of the tree begins its own work.
func onStart(cmd *cobra.Command, f func()) {
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			f()
			return run(cmd, args)
		}
	}
	for _, child := range cmd.Commands() {
		onStart(child, f)
	}
}

// New makes the tree of all commands. Most callers want Run.
func New(env Env, more ...Command) *cobra.Command {
	a := &app{env: env}
	root := group(&cobra.Command{
		Use:   "stillframe",
		Short: "Self-hosted sandboxes that can be snapshotted and restored while they run",
		Long: `Stillframe runs sandboxes: virtual machines that are made from a template, snapshotted with their memory
while they run, and restored as often as wanted.

The commands below talk to a node over HTTP. They find it by --url or by STILLFRAME_URL or LEAP0_BASE_URL, and the API
key by --key-file or by STILLFRAME_API_KEY or LEAP0_API_KEY; --env-file reads both from a file. The commands org and
key talk to the admin socket in the node's data folder instead, which --data or STILLFRAME_DATA names.

Exit codes are listed by "stillframe help exit-codes".`,
	})
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetIn(env.In)
	root.SetOut(env.Out)
	root.SetErr(env.Err)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddGroup(
		&cobra.Group{ID: groupUse, Title: "Use sandboxes:"},
		&cobra.Group{ID: groupRun, Title: "Run a node:"},
	)
	root.SetHelpCommand(help())
	add(root, groupUse, a.sandbox(), a.snapshot(), a.policy(), a.exec(), a.cp(), a.file(), a.template())
	add(root, groupRun, a.nodeGroup(), a.cluster(), a.org(), a.key())
	root.AddCommand(a.version(), exitCodes())
	for _, command := range more {
		join(root, command(env))
	}
	return root
}

// join puts a command from outside this package into the tree; the children of a group that is there join that.
func join(root, cmd *cobra.Command) {
	for _, there := range root.Commands() {
		if there.Name() == cmd.Name() {
			children := cmd.Commands()
			cmd.RemoveCommand(children...)
			there.AddCommand(children...)
			return
		}
	}
	add(root, groupRun, cmd)
}

// help is cobra's help command, but for a word that it does not know: that is a usage error.
func help() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Show the help of a command",
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return usagef("there is no command %q", strings.Join(args, " "))
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}

const (
	groupUse = "use"
	groupRun = "run"
)

func add(root *cobra.Command, group string, cmds ...*cobra.Command) {
	for _, c := range cmds {
		c.GroupID = group
		root.AddCommand(c)
	}
}

// app is what the commands of one tree share: the world and the flags of the group that was called.
type app struct {
	env    Env
	output string
	quiet  bool
	node   nodeFlags
	admin  adminFlags
}

// group makes a command that only holds others: alone it shows its help, and a word it does not know is a usage error.
func group(cmd *cobra.Command, children ...*cobra.Command) *cobra.Command {
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		near := cmd.SuggestionsFor(args[0])
		if len(near) == 0 {
			return usagef("%q is not a command of %q", args[0], cmd.CommandPath())
		}
		return usagef("%q is not a command of %q; did you mean %s?", args[0], cmd.CommandPath(), strings.Join(near, " or "))
	}
	cmd.SuggestionsMinimumDistance = 2
	cmd.AddCommand(children...)
	return cmd
}

// args wants exactly the named arguments; a last name ending in "..." stands for one or more.
func args(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, given []string) error {
		many := len(names) > 0 && strings.HasSuffix(names[len(names)-1], "...")
		switch {
		case len(given) < len(names):
			return usagef("%s is missing", strings.TrimSuffix(names[len(given)], "..."))
		case len(given) > len(names) && !many:
			return usagef("unexpected argument %q", given[len(names)])
		}
		return nil
	}
}

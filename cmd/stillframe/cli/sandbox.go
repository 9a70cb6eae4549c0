package cli

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"stillframe/httpd/client"
)

// DefaultTemplate is what a sandbox is made from when no template is named.
const DefaultTemplate = "system/debian:bookworm"

var sandboxStates = []string{
	"starting", "running", "snapshotting", "paused", "unpausing", "stopping", "stopped", "deleting",
}

func (a *app) sandbox() *cobra.Command {
	return a.withNode(a.withOutput(group(&cobra.Command{
		Use:     "sandbox",
		Aliases: []string{"sandboxes", "sbx"},
		Short:   "Make, show and delete sandboxes",
	}, a.sandboxCreate(), a.staleFlag(a.sandboxGet()), a.staleFlag(a.sandboxList()), a.sandboxDelete())))
}

func (a *app) sandboxCreate() *cobra.Command {
	var (
		in      client.CreateSandbox
		memory  mib
		timeout seconds
		env     []string
		net     = newNetwork()
	)
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a sandbox and wait until it runs",
		Example: `  stillframe sandbox create
  stillframe sandbox create --template system/busybox --vcpu 2 --memory 2GiB --timeout 30m
  stillframe sandbox create --allow-domain '*.debian.org' --inject api.example.com:Authorization=API_AUTHORIZATION
  id=$(stillframe sandbox create -q)`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			in.Memory, in.Timeout = int64(memory), int64(timeout)
			var err error
			if in.EnvVars, err = a.environment(env); err != nil {
				return err
			}
			if in.NetworkPolicy, err = net.policy(a); err != nil {
				return err
			}
			c, ctx, done, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			stop := a.progress("making a sandbox from %s", in.TemplateName)
			sandbox, err := c.CreateSandbox(ctx, in)
			stop()
			if err != nil {
				return err
			}
			return a.printSandbox(sandbox)
		},
	}
	f := cmd.Flags()
	f.StringVar(&in.TemplateName, "template", DefaultTemplate, "name of the template")
	f.IntVar(&in.VCPU, "vcpu", 0, "virtual CPUs, 1 to 8 (default 1)")
	f.Var(&memory, "memory", "memory, 512MiB to 8GiB (default 1GiB)")
	f.Var(&timeout, "timeout", "end the sandbox after this long, up to 8h (default 5m)")
	f.BoolVar(&in.AutoPause, "auto-pause", false, "ask for a pause at the timeout; a node that cannot says so")
	f.StringArrayVar(&env, "env", nil, "NAME=VALUE for commands in it; NAME alone takes the value from here (repeatable)")
	net.flags(cmd)
	idempotencyFlag(cmd, &in.IdempotencyKey)
	_ = cmd.RegisterFlagCompletionFunc("template", a.completeTemplates())
	return cmd
}

func (a *app) sandboxGet() *cobra.Command {
	return &cobra.Command{
		Use:               "get SANDBOX",
		Short:             "Show a sandbox",
		Args:              args("SANDBOX"),
		ValidArgsFunction: a.completeSandboxes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, ctx, done, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			sandbox, err := c.Sandbox(ctx, args[0])
			if err != nil {
				return sandboxHint(err)
			}
			return a.printSandbox(sandbox)
		},
	}
}

func (a *app) sandboxList() *cobra.Command {
	var o client.ListOptions
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the sandboxes of the key's organization",
		Example: `  stillframe sandbox list --state running
  stillframe sandbox list -o json | jq '.items[].id'`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, ctx, done, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			list, err := c.Sandboxes(ctx, o)
			if err != nil {
				return err
			}
			rows := make([]row, 0, len(list.Items))
			for _, s := range list.Items {
				rows = append(rows, row{s.ID, s.Raw, []string{
					s.ID, s.State, either(s.TemplateName, s.TemplateID), s.PodID, a.age(s.CreatedAt), a.ends(s),
				}})
			}
			return a.printList([]string{"ID", "STATE", "TEMPLATE", "NODE", "AGE", "ENDS IN"}, list.Total, rows)
		},
	}
	wordFlag(cmd, cmd.Flags(), &o.State, "state", "", sandboxStates, "only sandboxes in this state, such as running")
	listFlags(cmd, &o, "created_at", "state")
	return cmd
}

// listFlags are the flags that all paged lists have.
func listFlags(cmd *cobra.Command, o *client.ListOptions, sorts ...string) {
	wordFlag(cmd, cmd.Flags(), &o.Sort, "sort", "", sorts, "what to sort by (default "+sorts[0]+")")
	wordFlag(cmd, cmd.Flags(), &o.Order, "order", "", []string{"asc", "desc"}, "direction (default desc)")
	cmd.Flags().IntVar(&o.Limit, "limit", 0, "stop after this many (default: all)")
}

func (a *app) sandboxDelete() *cobra.Command {
	return &cobra.Command{
		Use:               "delete SANDBOX...",
		Aliases:           []string{"rm"},
		Short:             "Delete sandboxes, running or not",
		Args:              args("SANDBOX..."),
		ValidArgsFunction: a.completeSandboxes(-1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, ctx, done, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			return a.each("deleted", args, func(id string) error {
				stop := a.progress("deleting %s", id)
				err := c.DeleteSandbox(ctx, id)
				stop()
				return sandboxHint(err)
			})
		},
	}
}

// each does something to every named thing, goes on after a failure, and says what it did.
func (a *app) each(did string, names []string, do func(string) error) error {
	var failed severalErrors
	for _, name := range names {
		if err := do(name); err != nil {
			failed = append(failed, namedError{name, err})
			continue
		}
		if a.quiet {
			if err := a.printIDs([]row{{id: name}}); err != nil {
				return err
			}
		} else if err := a.say("%s %s", clean(name), did); err != nil {
			return err
		}
	}
	if len(failed) == 0 {
		return nil
	}
	return failed
}

func sandboxHint(err error) error {
	return withHint(err, http.StatusNotFound, "The sandboxes there are: stillframe sandbox list")
}

var sandboxFields = []string{
	"ID", "State", "Why", "Template", "Snapshot", "vCPU", "Memory", "Disk", "Timeout", "Network",
	"Reaches", "Why so", "Node", "Age",
}

func (a *app) printSandbox(s client.Sandbox) error {
	template := either(s.TemplateName, s.TemplateID)
	for _, warning := range s.Warnings {
		fmt.Fprintf(a.env.Err, "stillframe: warning: %s\n", clean(warning))
	}
	return a.printOne(row{s.ID, s.Raw, []string{
		s.ID, s.State, s.StateReason, template, s.SnapshotID, strconv.Itoa(s.VCPU), mebibytes(s.Memory),
		mebibytes(s.Disk), (time.Duration(s.Timeout) * time.Second).String(), policy(s.NetworkPolicy),
		s.NetworkStatus, s.NetworkNote, s.PodID, a.age(s.CreatedAt),
	}}, sandboxFields)
}

// either gives the first, or the second where the first is empty.
func either(first, second string) string {
	if first != "" {
		return first
	}
	return second
}

// ends says how long a sandbox has until its timeout.
func (a *app) ends(s client.SandboxItem) string {
	if s.TimeoutAt == 0 || s.State == "stopped" {
		return ""
	}
	return brief(time.Unix(s.TimeoutAt, 0).Sub(a.env.Now()))
}

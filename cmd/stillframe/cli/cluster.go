package cli

import (
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"stillframe/httpd/client"
)

// operations are the commands that change a running cluster, through the admin socket of any of its nodes.
func (a *app) operations() []*cobra.Command {
	return []*cobra.Command{a.clusterDrain(), a.clusterTransfer(), a.clusterRemove()}
}

// nodeHint says where the names are.
func nodeHint(err error) error {
	return withHint(err, http.StatusNotFound, "The nodes there are: stillframe cluster status")
}

func (a *app) clusterDrain() *cobra.Command {
	var snapshot, leave, undo bool
	cmd := &cobra.Command{
		Use:   "drain NODE",
		Short: "Have a node take no new sandboxes, and hand the leadership over",
		Long: `Have a node take no new sandboxes, by its name or id, and hand the leadership over where it has it. Sandboxes
that run there are left alone, or, with --snapshot, each is kept as a snapshot named drained-<its id> and deleted. Where
another node has the same VMM and CPU features, it restores there, for as long as the drained one is up to send it. To
repeat a drain goes on with what is left.`,
		Example: `  stillframe cluster drain b --snapshot
  stillframe cluster drain b --undo`,
		Args: args("NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (snapshot && leave) || (undo && (snapshot || leave)) {
				return usagef("--snapshot, --leave and --undo exclude each other")
			}
			c, ctx, done, err := a.connectOperator(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			d, err := c.Drain(ctx, client.Drain{Node: args[0], Snapshot: snapshot, Undo: undo})
			if err != nil {
				return nodeHint(err)
			}
			return a.printDrained(d)
		},
	}
	cmd.Flags().BoolVar(&snapshot, "snapshot", false, "snapshot the sandboxes that run there, and delete them")
	cmd.Flags().BoolVar(&leave, "leave", false, "leave them running (the default)")
	cmd.Flags().BoolVar(&undo, "undo", false, "let the node take sandboxes again")
	return a.withAdmin(a.withOutput(cmd))
}

// printDrained tells what a drain has done. Its failure is that of the sandboxes that were not kept.
func (a *app) printDrained(d client.Drained) error {
	state := "drained"
	if !d.Drained {
		state = "takes sandboxes"
	}
	rows := make([]row, 0, len(d.Snapshots))
	var failed severalErrors
	for _, s := range d.Snapshots {
		if s.Error != "" {
			failed = append(failed, namedError{s.SandboxID, fmt.Errorf("%s", s.Error)})
			continue
		}
		rows = append(rows, row{id: s.SnapshotID, cells: []string{s.SandboxID, s.SnapshotID, s.Name}})
	}
	var err error
	switch {
	case a.output == outputJSON:
		err = a.printRaw(d.Raw)
	case a.quiet:
		err = a.printIDs(rows)
	default:
		if err = a.say("%s %s; %d sandboxes are on it", clean(d.Name), state, d.Sandboxes); err == nil && len(rows) > 0 {
			err = a.printList([]string{"SANDBOX", "SNAPSHOT", "NAME"}, len(rows), rows)
		}
	}
	if err == nil && len(failed) > 0 {
		return failed
	}
	return err
}

func (a *app) clusterTransfer() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "transfer [NODE]",
		Short: "Hand the leadership to a node, or to the fittest one",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, ctx, done, err := a.connectOperator(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			to := ""
			if len(args) > 0 {
				to = args[0]
			}
			t, err := c.Transfer(ctx, to)
			if err != nil {
				return nodeHint(err)
			}
			return a.printOne(row{t.Leader, t.Raw, []string{t.Name, t.Leader}}, []string{"Leader", "ID"})
		},
	}
	return a.withAdmin(a.withOutput(cmd))
}

func (a *app) clusterRemove() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "remove NODE",
		Short: "Take a node out of the cluster for good",
		Long: `Take a node out of the cluster, by its name or id. Its certificate is no good from then on, and its id is never
taken in again: a host comes back with a new identity ("stillframe cluster add") and an empty data folder. Refused
where too few voters would be left that answer, and where the node holds sandboxes or snapshots; with --force those
are gone. The removed node itself says so and ends; virtual machines that run there are left to its host.`,
		Example: "  stillframe cluster remove c",
		Args:    args("NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, ctx, done, err := a.connectOperator(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			return a.each("removed", args, func(node string) error {
				return nodeHint(c.RemoveNode(ctx, node, force))
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "also when it holds sandboxes or snapshots, which are gone then")
	return a.withAdmin(a.withOutput(cmd))
}

package cli

import (
	"context"
	"net/http"
	"regexp"
	"strconv"

	"github.com/spf13/cobra"

	"stillframe/httpd/client"
)

func (a *app) snapshot() *cobra.Command {
	return a.withNode(a.withOutput(group(&cobra.Command{
		Use:     "snapshot",
		Aliases: []string{"snapshots", "snap"},
		Short:   "Take, list, restore and delete snapshots",
	}, a.snapshotCreate(), a.staleFlag(a.snapshotList()), a.snapshotRestore(), a.snapshotDelete())))
}

func (a *app) snapshotCreate() *cobra.Command {
	var in client.CreateSnapshot
	cmd := &cobra.Command{
		Use:   "create SANDBOX",
		Short: "Take a snapshot of a running sandbox, which goes on running",
		Example: `  stillframe snapshot create sbx-… --name warm
  stillframe snapshot create sbx-… --kill-sandbox-after`,
		Args:              args("SANDBOX"),
		ValidArgsFunction: a.completeSandboxes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, ctx, done, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			stop := a.progress("taking a snapshot of %s", args[0])
			snapshot, err := c.CreateSnapshot(ctx, args[0], in)
			stop()
			if err != nil {
				err = withHint(err, http.StatusConflict,
					"A name is free once its snapshot is deleted; without --name one is made up. The sandbox must be running.")
				return sandboxHint(err)
			}
			return a.printSnapshot(snapshot)
		},
	}
	cmd.Flags().StringVar(&in.Name, "name", "", "name, unique in the organization (default: one is made up)")
	cmd.Flags().BoolVar(&in.KillSandboxAfter, "kill-sandbox-after", false, "delete the sandbox once the snapshot is kept")
	idempotencyFlag(cmd, &in.IdempotencyKey)
	return cmd
}

func (a *app) snapshotList() *cobra.Command {
	var o client.ListOptions
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the snapshots of the key's organization",
		Example: `  stillframe snapshot list --query warm`,
		Args:    args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, ctx, done, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			list, err := c.Snapshots(ctx, o)
			if err != nil {
				return err
			}
			rows := make([]row, 0, len(list.Items))
			for _, s := range list.Items {
				rows = append(rows, row{s.ID, s.Raw, []string{
					s.Name, s.ID, either(s.TemplateName, s.TemplateID), strconv.Itoa(s.VCPU), mebibytes(s.Memory),
					stored(s), a.age(s.CreatedAt),
				}})
			}
			return a.printList([]string{"NAME", "ID", "TEMPLATE", "VCPU", "MEMORY", "STORED", "AGE"}, list.Total, rows)
		},
	}
	cmd.Flags().StringVar(&o.Query, "query", "", "only names that contain this")
	listFlags(cmd, &o, "created_at", "template_id")
	return cmd
}

func (a *app) snapshotRestore() *cobra.Command {
	var (
		in        client.RestoreSnapshot
		timeout   seconds
		autoPause bool
		net       = newNetwork()
	)
	cmd := &cobra.Command{
		Use:   "restore NAME",
		Short: "Make a new sandbox from a snapshot and wait until it runs",
		Example: `  stillframe snapshot restore warm
  stillframe snapshot restore warm --timeout 1h --network deny-all`,
		Args:              args("NAME"),
		ValidArgsFunction: a.completeSnapshots(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in.SnapshotName, in.Timeout = args[0], int64(timeout)
			if cmd.Flags().Changed("auto-pause") {
				in.AutoPause = &autoPause
			}
			var err error
			if in.NetworkPolicy, err = net.policy(a); err != nil {
				return err
			}
			c, ctx, done, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			stop := a.progress("restoring %s", in.SnapshotName)
			sandbox, err := c.RestoreSnapshot(ctx, in)
			stop()
			if err != nil {
				return snapshotHint(err)
			}
			return a.printSandbox(sandbox)
		},
	}
	cmd.Flags().Var(&timeout, "timeout", "end the new sandbox after this long, up to 8h (default 5m)")
	cmd.Flags().BoolVar(&autoPause, "auto-pause", false, "ask for a pause at the timeout; a node that cannot says so")
	net.flags(cmd)
	idempotencyFlag(cmd, &in.IdempotencyKey)
	return cmd
}

func (a *app) snapshotDelete() *cobra.Command {
	return &cobra.Command{
		Use:               "delete SNAPSHOT...",
		Aliases:           []string{"rm"},
		Short:             "Delete snapshots, given by id or name",
		Args:              args("SNAPSHOT..."),
		ValidArgsFunction: a.completeSnapshots(-1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, ctx, done, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			return a.each("deleted", args, func(name string) error {
				stop := a.progress("deleting %s", name)
				err := deleteSnapshot(ctx, c, name)
				stop()
				return withHint(snapshotHint(err), http.StatusConflict,
					"A snapshot can be deleted once no active sandbox stands on it: stillframe sandbox list")
			})
		},
	}
}

// snapshotID is the form of a snapshot's id. A snapshot may be named like this too: then the name is looked for first.
var snapshotID = regexp.MustCompile(`^snap-[a-z2-7]{26}$`)

// deleteSnapshot deletes by name or id: the API knows only ids, people mostly names.
func deleteSnapshot(ctx context.Context, c *client.Client, name string) error {
	query := name
	if len(query) > 64 { // no name is longer, and the node refuses longer queries
		return c.DeleteSnapshot(ctx, name)
	}
	list, err := c.Snapshots(ctx, client.ListOptions{Query: query})
	if err != nil {
		return err
	}
	for _, s := range list.Items {
		if s.Name == name {
			return c.DeleteSnapshot(ctx, s.ID)
		}
	}
	if snapshotID.MatchString(name) {
		return c.DeleteSnapshot(ctx, name)
	}
	return &client.Error{Status: http.StatusNotFound, Message: "there is no snapshot of this name"}
}

func snapshotHint(err error) error {
	return withHint(err, http.StatusNotFound, "The snapshots there are: stillframe snapshot list")
}

func (a *app) printSnapshot(s client.Snapshot) error {
	pause := ""
	if s.PauseMS > 0 {
		pause = strconv.FormatFloat(s.PauseMS, 'f', 1, 64) + " ms"
	}
	return a.printOne(row{s.ID, s.Raw, []string{
		s.Name, s.ID, s.SandboxID, either(s.TemplateName, s.TemplateID), strconv.Itoa(s.VCPU), mebibytes(s.Memory),
		mebibytes(s.Disk), policy(s.NetworkPolicy), stored(s), s.CloneMethod, pause, a.age(s.CreatedAt),
	}}, []string{
		"Name", "ID", "Source", "Template", "vCPU", "Memory", "Disk", "Network", "Stored", "Kept by", "Source paused", "Age",
	})
}

// stored says how much a snapshot occupies, where the node tells.
func stored(s client.Snapshot) string {
	if s.StoredBytes == 0 {
		return ""
	}
	return bytesOf(s.StoredBytes)
}

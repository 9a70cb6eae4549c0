package cli

import "github.com/spf13/cobra"

func (a *app) template() *cobra.Command {
	return a.withNode(a.withOutput(group(&cobra.Command{
		Use:     "template",
		Aliases: []string{"templates"},
		Short:   "List what sandboxes are made from",
	}, &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the system's templates and the organization's own",
		Args:    args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, ctx, done, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			list, err := c.Templates(ctx)
			if err != nil {
				return err
			}
			rows := make([]row, 0, len(list.Items))
			for _, t := range list.Items {
				rows = append(rows, row{t.ID, t.Raw, []string{t.Name, t.ID, short(t.Digest), a.age(t.CreatedAt)}})
			}
			return a.printList([]string{"NAME", "ID", "DIGEST", "AGE"}, list.Total, rows)
		},
	})))
}

// short cuts a digest to what tells two of them apart for a person.
func short(digest string) string {
	const most = len("sha256:") + 12
	return digest[:min(len(digest), most)]
}

func (a *app) nodeGroup() *cobra.Command {
	return a.withNode(a.withOutput(group(&cobra.Command{
		Use:   "node",
		Short: "Show the node",
	}, &cobra.Command{
		Use:   "status",
		Short: "Show the node that answers, and which virtual machine monitor it uses",
		Args:  args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, ctx, done, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			n, err := c.Node(ctx)
			if err != nil {
				return err
			}
			return a.printOne(row{n.ID, n.Raw, []string{
				n.ID, n.Name, n.Version, n.VMM.Kind, n.VMM.Version, n.VMM.Binary, n.VMM.Reason, n.CloneMethod,
			}}, []string{"ID", "Name", "Version", "VMM", "VMM version", "VMM binary", "Why this VMM", "Clones by"})
		},
	})))
}

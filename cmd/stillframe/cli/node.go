package cli

import (
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"stillframe/httpd/client"
)

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
			policies := "enforced"
			if !n.Egress.Enforced {
				policies = "not enforced: " + n.Egress.Reason
			}
			return a.printOne(row{n.ID, n.Raw, []string{
				n.ID, n.Name, n.Version, n.VMM.Kind, n.VMM.Version, n.VMM.Binary, n.VMM.Reason, n.CloneMethod, policies,
			}}, []string{"ID", "Name", "Version", "VMM", "VMM version", "VMM binary", "Why this VMM", "Clones by",
				"Policies"})
		},
	})))
}

// cluster is the group of the commands about several nodes. Those that write files live beside main and join it.
func (a *app) cluster() *cobra.Command {
	return group(&cobra.Command{
		Use:   "cluster",
		Short: "Make a cluster, change it, and show how it is",
	}, append(a.operations(), a.clusterStatus(), a.reseal())...)
}

func (a *app) clusterStatus() *cobra.Command {
	var digest bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the nodes of the cluster, as the node that answers sees them",
		Long: `Show the nodes of the cluster. A node that the answering one cannot reach has no role and no index; its last
contact tells since when. A lost one has been given up by the leader: it was silent for a lease. A node's clock is as
far ahead of the answering node's as SKEW says, give or take half of the time that its answer took.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, ctx, done, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			status, err := c.Cluster(ctx, digest)
			if err != nil {
				return err
			}
			return a.printCluster(status, digest)
		},
	}
	a.withNode(a.withOutput(cmd))
	cmd.Flags().BoolVar(&digest, "digest", false, "digest every node's state; equal applied entries give equal digests")
	return cmd
}

func (a *app) printCluster(status client.Cluster, digest bool) error {
	if a.output == outputJSON {
		return a.printRaw(status.Raw)
	}
	head := []string{"NAME", "ID", "ROLE", "VOTER", "APPLIED", "SANDBOXES", "VCPU FREE", "MEMORY FREE", "DISK FREE", "VMM",
		"VERSION", "CONTACT", "SKEW"}
	if digest {
		head = append(head, "POSITION", "DIGEST")
	}
	var rows []row
	for _, n := range status.Nodes {
		r := row{id: n.ID, cells: []string{
			n.Name, n.ID, clusterRole(n), yesNo(n.Voter), number(n.AppliedIndex), strconv.Itoa(n.Sandboxes),
			fmt.Sprintf("%d of %d", n.Free.VCPU, n.Total.VCPU),
			share(n.Free.Memory, n.Total.Memory), share(n.Free.Disk, n.Total.Disk), n.VMMVersion,
			n.Version, contact(n), skew(n),
		}}
		if digest {
			r.cells = append(r.cells, number(n.Position), n.Digest[:min(len(n.Digest), 12)])
		}
		rows = append(rows, r)
	}
	return a.printList(head, len(rows), rows)
}

// clusterRole tells what a node is; the leader as the answering node has it.
func clusterRole(n client.ClusterNode) string {
	role := n.Role
	if !n.Reachable {
		role = "unreachable"
	}
	if n.Lost {
		role += ", lost"
	}
	if n.Drained {
		role += ", drained"
	}
	return role
}

// skew tells how far a node's clock is off, in milliseconds: none of the answering node's own.
func skew(n client.ClusterNode) string {
	if !n.Reachable || n.TripMS == 0 {
		return ""
	}
	return fmt.Sprintf("%+.1f ms", n.SkewMS)
}

// share tells how much of a size is left. Less than nothing is left where a node has shrunk.
func share(free, total int64) string {
	size := func(n int64) string {
		if n <= 0 {
			return "0"
		}
		return mebibytes(n)
	}
	return size(free) + " of " + size(total)
}

func contact(n client.ClusterNode) string {
	if n.LastContactMS == nil {
		return "never"
	}
	return brief(time.Duration(*n.LastContactMS)*time.Millisecond) + " ago"
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func number(n uint64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(n, 10)
}

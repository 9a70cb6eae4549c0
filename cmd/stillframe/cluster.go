package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"stillframe/cluster"
	"stillframe/cmd/stillframe/cli"
	"stillframe/fsm"
)

// clusterCommand holds the commands that make the files of a cluster. They join the group of the same name in cli.
func clusterCommand(env cli.Env) *cobra.Command {
	cmd := &cobra.Command{Use: "cluster"}
	cmd.AddCommand(clusterInit(env), clusterRenew(env), clusterBackup(env), clusterRestore(env))
	return cmd
}

func clusterInit(env cli.Env) *cobra.Command {
	var dir, nodes string
	cmd := &cobra.Command{
		Use:   "init --dir DIR --nodes NAME=HOST:PORT,...",
		Short: "Make the certificates and the member list of a new cluster",
		Long: `Make a new cluster: a certificate authority in DIR, and for every node a folder DIR/NAME with its certificate
and key, the authority's certificate, and the list of the members. HOST:PORT is where the other nodes reach a node: one
TCP port, mutual TLS. Take each folder to its host and name it with "stillframe server --cluster".

DIR/ca.key makes members: keep it off the nodes.`,
		Example: "  stillframe cluster init --dir ./prod --nodes a=10.0.0.1:7071,b=10.0.0.2:7071,c=10.0.0.3:7071",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			members, err := parseMembers(nodes)
			if err != nil {
				return err
			}
			if err := cluster.Init(dir, members); err != nil {
				return err
			}
			for _, m := range members {
				fmt.Fprintf(env.Out, "%s\t%s\t%s\n", m.Name, m.ID, filepath.Join(dir, m.Name))
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "folder of the new cluster's files (required)")
	cmd.Flags().StringVar(&nodes, "nodes", "", "the nodes: NAME=HOST:PORT, separated by commas (required)")
	_ = cmd.MarkFlagRequired("dir")
	_ = cmd.MarkFlagRequired("nodes")
	_ = cmd.MarkFlagDirname("dir")
	return cmd
}

// parseMembers reads --nodes and gives each node the id that it keeps for ever.
func parseMembers(nodes string) ([]cluster.Member, error) {
	var members []cluster.Member
	for part := range strings.SplitSeq(nodes, ",") {
		name, addr, ok := strings.Cut(part, "=")
		if !ok {
			return nil, fmt.Errorf("--nodes: %q is not NAME=HOST:PORT", part)
		}
		members = append(members, cluster.Member{ID: fsm.NodeID(uuid.NewString()), Name: name, Addr: addr})
	}
	return members, nil
}

func clusterRenew(cli.Env) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "renew --dir DIR NAME...",
		Short: "Make new certificates for nodes of a cluster",
		Long: `Make a new certificate and key in DIR/NAME for each node that is named, with the authority in DIR. A
certificate is good for two years. A running node takes up the new files in its folder by itself.`,
		Example: "  stillframe cluster renew --dir ./prod a b c",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, names []string) error {
			for _, name := range names {
				if err := cluster.Renew(dir, name); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "folder of the cluster's files (required)")
	_ = cmd.MarkFlagRequired("dir")
	_ = cmd.MarkFlagDirname("dir")
	return cmd
}

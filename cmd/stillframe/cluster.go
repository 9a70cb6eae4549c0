package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"stillframe/cluster"
	"stillframe/cmd/stillframe/cli"
	"stillframe/fsm"
)

// clusterCommand holds the commands that make the files of a cluster. They join the group of the same name in cli.
func clusterCommand(env cli.Env) *cobra.Command {
	cmd := &cobra.Command{Use: "cluster"}
	cmd.AddCommand(clusterInit(env), clusterAdd(env), clusterRenew(env), clusterBackup(env), clusterRestore(env),
		clusterRotateSecrets(env))
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

DIR/ca.key makes members: keep it off the nodes. secrets.json, in DIR and in each folder, has the keys for the secrets
that the cluster keeps: without it they are lost.`,
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
			return nil, fmt.Errorf("%q is not NAME=HOST:PORT", part)
		}
		members = append(members, cluster.Member{ID: fsm.NodeID(uuid.NewString()), Name: name, Addr: addr})
	}
	return members, nil
}

func clusterAdd(env cli.Env) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "add --dir DIR NAME=HOST:PORT",
		Short: "Make the identity folder of a node that is to join a cluster",
		Long: `Make DIR/NAME, the identity folder of a new node, with the authority in DIR: the folder that "stillframe
cluster init" made, with the folders of the members in it. Take the new folder to its host and start the node with
"stillframe server --cluster": it finds the others and joins, at first without a vote, and gets one when it has caught
up.

HOST:PORT is where the other nodes reach it.`,
		Example: "  stillframe cluster add --dir ./prod d=10.0.0.4:7071",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			members, err := parseMembers(args[0])
			if err != nil {
				return err
			}
			if len(members) != 1 {
				return errors.New("one node at a time")
			}
			if err := cluster.Add(dir, members[0]); err != nil {
				return err
			}
			m := members[0]
			_, err = fmt.Fprintf(env.Out, "%s\t%s\t%s\n", m.Name, m.ID, filepath.Join(dir, m.Name))
			return err
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "folder of the cluster's files (required)")
	_ = cmd.MarkFlagRequired("dir")
	_ = cmd.MarkFlagDirname("dir")
	return cmd
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

func clusterRotateSecrets(env cli.Env) *cobra.Command {
	var dir string
	var after time.Duration
	cmd := &cobra.Command{
		Use:   "rotate-secrets --dir DIR",
		Short: "Add a new key for the secrets that the cluster keeps",
		Long: `Header values that policies inject, and the keys of sandboxes' certificate authorities, are kept sealed with
keys that are in DIR/secrets.json and in every node's folder. This adds a new one and writes it to the folders in DIR.
Bring secrets.json to the folder of every node within --use-after; running nodes take it up by themselves. From then on
new values are sealed with the new key. Afterwards "stillframe cluster reseal" seals the rest anew.

Keys stay in the file: what is sealed with them, in backups too, opens with nothing else. Cut off, it is finished when
it is called again.`,
		Example: `  stillframe cluster rotate-secrets --dir ./prod --use-after 30m
  scp prod/a/secrets.json a:/etc/stillframe/  # and so on, for every node
  stillframe cluster reseal`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			id, from, err := cluster.RotateSecrets(dir, time.Now().Add(after))
			if err != nil {
				return err
			}
			fmt.Fprintf(env.Out, "%s\t%s\n", id, from.UTC().Format(time.RFC3339))
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "folder of the cluster's files (required)")
	cmd.Flags().DurationVar(&after, "use-after", 10*time.Minute, "how long the nodes have to get the key until it is used")
	_ = cmd.MarkFlagRequired("dir")
	_ = cmd.MarkFlagDirname("dir")
	return cmd
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"stillframe/cluster"
	"stillframe/cmd/stillframe/cli"
	"stillframe/fsm"
	"stillframe/httpd/client"
)

// backupPatience bounds taking a backup.
const backupPatience = 30 * time.Minute

// keysHint is what a backup lacks, said wherever one is made or used.
const keysHint = `Header values and other secrets are in it sealed: they are
of use only with the cluster's secrets.json, which is not in the backup and has to be kept apart from it. Environment
variables of sandboxes are in it in clear.`

func clusterBackup(env cli.Env) *cobra.Command {
	var data, socket string
	var verify bool
	cmd := &cobra.Command{
		Use:   "backup FILE",
		Short: "Write the whole replicated state to a file, or verify such a file",
		Long: `Write a backup: the whole state of the cluster as of now, with its digest, to FILE, which must not exist. It is
verified before it gets its name, so that it is there whole or not at all. Any node with a majority will do; it is
reached through its admin socket.

With --verify, nothing is written: FILE is read to its end, and what it is from is shown.

A backup has no data of sandboxes and snapshots, which stay on their nodes: only what the cluster knows of them.
` + keysHint,
		Example: "  stillframe cluster backup --data /var/lib/stillframe ./cluster.backup\n" +
			"  stillframe cluster backup --verify ./cluster.backup",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if verify {
				return showBackup(env, args[0])
			}
			if socket == "" {
				socket = filepath.Join(data, "admin.sock")
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), backupPatience)
			defer cancel()
			if err := writeBackup(ctx, env, socket, args[0]); err != nil {
				return err
			}
			return showBackup(env, args[0])
		},
	}
	if data = env.Getenv("STILLFRAME_DATA"); data == "" {
		data = cli.DefaultData
	}
	cmd.Flags().StringVar(&data, "data", data, "the node's data folder, with admin.sock in it")
	cmd.Flags().StringVar(&socket, "socket", "", "the admin socket itself, in place of --data")
	cmd.Flags().BoolVar(&verify, "verify", false, "verify FILE instead")
	return cmd
}

// writeBackup brings a backup from a node to a path where nothing is. Until it is whole, verified and on the disk it
// has another name.
func writeBackup(ctx context.Context, env cli.Env, socket, path string) (err error) {
	c, err := client.New(client.Config{Socket: socket, UserAgent: "stillframe/" + env.Version.Version, Attempts: 1})
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		return errors.Join(fmt.Errorf("%s is there already", path), err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".partial-") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if err := errors.Join(c.Backup(ctx, f), f.Sync(), f.Close()); err != nil {
		return err
	}
	if _, err := cluster.ReadBackup(f.Name()); err != nil {
		return fmt.Errorf("what the node sent is not the whole of a backup: %w", err)
	}
	if err := unix.Renameat2(unix.AT_FDCWD, f.Name(), unix.AT_FDCWD, path, unix.RENAME_NOREPLACE); err != nil {
		return fmt.Errorf("name the backup %s: %w", path, err)
	}
	return syncFolder(filepath.Dir(path))
}

func syncFolder(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// showBackup verifies a backup and tells what it is from.
func showBackup(env cli.Env, path string) error {
	b, err := cluster.ReadBackup(path)
	if err != nil {
		return err
	}
	h := b.Header
	fmt.Fprintf(env.Out, "made at\t%s\nby\t%s\nposition\t%d\norganizations\t%d\nsandboxes\t%d\nsnapshots\t%d\n",
		h.MadeAt.Format(time.RFC3339), h.Program, h.Position, h.Orgs, h.Sandboxes, h.Snapshots)
	for _, n := range h.Nodes {
		fmt.Fprintf(env.Out, "node\t%s\t%s\n", n.Name, n.ID)
	}
	fmt.Fprintln(env.Err, keysHint)
	return nil
}

func clusterRestore(env cli.Env) *cobra.Command {
	var dir, nodes, secrets string
	var giveUp bool
	cmd := &cobra.Command{
		Use:   "restore FILE --dir DIR --nodes NAME=HOST:PORT,... --secrets-from OLD",
		Short: "Make a new cluster that starts from a backup",
		Long: `Make a new cluster as "stillframe cluster init" does, whose nodes start from a backup. FILE is verified, and
goes into every node's folder; a node takes it in at its first start, into an empty log only: one whose data folder has
a log of another history (the folder "raft" in it) refuses to start.

A node with the NAME of one in the backup stands for that node: with its data folder, but without "raft", it finds its
snapshots again. What was made after the backup is not known any more, and is removed from its node at the start. Of
nodes of the backup that are not named, sandboxes are shown as stopped, and snapshots are listed but cannot be restored
unless the node joins again.

OLD is the folder of the old cluster's files or an identity folder of one of its nodes, with secrets.json in it.

` + keysHint,
		Example: "  stillframe cluster restore ./cluster.backup --dir ./new --secrets-from ./prod \\\n" +
			"    --nodes a=10.0.0.1:7071,b=10.0.0.2:7071,c=10.0.0.3:7071",
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if (secrets == "") != giveUp {
				return errors.New("give either --secrets-from or --new-secrets")
			}
			b, err := cluster.ReadBackup(args[0])
			if err != nil {
				return err
			}
			members, err := parseMembers(nodes)
			if err != nil {
				return err
			}
			for i, m := range members {
				members[i].ID = oldID(b, m)
			}
			if err := cluster.Restore(dir, members, args[0], secrets); err != nil {
				return err
			}
			for _, m := range members {
				fmt.Fprintf(env.Out, "%s\t%s\t%s\n", m.Name, m.ID, filepath.Join(dir, m.Name))
			}
			fmt.Fprintln(env.Err, keysHint)
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "folder of the new cluster's files (required)")
	cmd.Flags().StringVar(&nodes, "nodes", "", "the nodes: NAME=HOST:PORT, separated by commas (required)")
	cmd.Flags().StringVar(&secrets, "secrets-from", "", "folder with the old cluster's secrets.json")
	cmd.Flags().BoolVar(&giveUp, "new-secrets", false, "give up what is sealed in the backup, and make new keys")
	_ = cmd.MarkFlagRequired("dir")
	_ = cmd.MarkFlagRequired("nodes")
	_ = cmd.MarkFlagDirname("dir")
	return cmd
}

// oldID is the id of the node in a backup that a member stands for: the one of its name, where there is exactly one.
func oldID(b *cluster.Backup, m cluster.Member) fsm.NodeID {
	id, found := m.ID, 0
	for _, n := range b.Header.Nodes {
		if n.Name == m.Name {
			id = n.ID
			found++
		}
	}
	if found != 1 {
		return m.ID
	}
	return id
}

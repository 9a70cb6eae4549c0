package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"stillframe/cmd/internal/node"
	"stillframe/cmd/stillframe/cli"
	"stillframe/hypervisor"
	"stillframe/netpolicy"
)

// stopPatience bounds how long a node that was told to stop may take.
const stopPatience = 45 * time.Second

// nodeFlags are the flags that every way of running a node has.
type nodeFlags struct {
	cfg      node.Config
	logLevel slog.LevelVar
	logJSON  bool
}

func (f *nodeFlags) add(cmd *cobra.Command, listen string) {
	f.cfg.Overcommit = hypervisor.DefaultOvercommit
	flags := cmd.Flags()
	flags.StringVar(&f.cfg.DataDir, "data", "", "data folder of this node (required)")
	flags.StringVar(&f.cfg.Listen, "listen", listen, "host:port of the API")
	flags.StringVar(&f.cfg.TLSCert, "tls-cert", "", "the API's certificate, PEM; taken up anew when it changes")
	flags.StringVar(&f.cfg.TLSKey, "tls-key", "", "the API's private key, PEM (default: the API is plain HTTP)")
	flags.StringVar(&f.cfg.Images, "images", "", "images folder (default: STILLFRAME_IMAGES, images beside this "+
		"program, or /var/lib/stillframe/images)")
	flags.StringVar(&f.cfg.KernelArgs, "kernel-args", os.Getenv("STILLFRAME_KERNEL_ARGS"),
		"added to the command line of every guest's kernel (also STILLFRAME_KERNEL_ARGS)")
	flags.StringVar(&f.cfg.Name, "name", "", "name of this node, for people (default: the host's name)")
	flags.IntVar(&f.cfg.Overcommit.VCPU, "overcommit-vcpu", f.cfg.Overcommit.VCPU,
		"virtual CPUs promised per CPU of this host")
	flags.IntVar(&f.cfg.Overcommit.Disk, "overcommit-disk", f.cfg.Overcommit.Disk,
		"times the data folder's filesystem is promised as virtual disk")
	flags.DurationVar(&f.cfg.IntentDeadline, "intent-deadline", 0, "how long one create, restore, snapshot or delete "+
		"may take before it is undone (default 2m)")
	f.addEgress(cmd)
	flags.TextVar(&f.logLevel, "log-level", &f.logLevel, "debug, info, warn or error")
	flags.BoolVar(&f.logJSON, "log-json", false, "log JSON lines")
	_ = cmd.MarkFlagRequired("data")
	_ = cmd.MarkFlagDirname("data")
	_ = cmd.MarkFlagDirname("images")
}

// addEgress adds what is to be said about the way from sandboxes to the outside.
func (f *nodeFlags) addEgress(cmd *cobra.Command) {
	flags, egress := cmd.Flags(), &f.cfg.Egress
	flags.StringVar(&egress.Pool, "egress-pool", netpolicy.DefaultPool.String(),
		"range that the addresses between this host and its sandboxes are from")
	flags.StringArrayVar(&egress.Resolvers, "egress-resolver", nil, "address or address:port of a DNS server that is "+
		"asked for sandboxes; may be repeated (default: those of /etc/resolv.conf)")
	flags.StringArrayVar(&egress.AllowPrivate, "egress-allow-private", nil, "private range, in CIDR form, that sandboxes "+
		"may reach as if it were public; may be repeated")
	flags.IntVar(&egress.Bounds.Connections, "egress-connections", 0,
		"connections that one sandbox may have open at once (default 1024)")
	flags.IntVar(&egress.Bounds.NewPerSecond, "egress-new-per-second", 0,
		"connections that one sandbox may open in a second (default 200)")
	flags.IntVar(&egress.Bounds.BytesPerSecond, "egress-bytes-per-second", 0,
		"bytes that one sandbox may send, and may receive, in a second (default: no bound)")
}

func (f *nodeFlags) logger(env cli.Env) *slog.Logger {
	options := &slog.HandlerOptions{Level: &f.logLevel}
	if f.logJSON {
		return slog.New(slog.NewJSONHandler(env.Err, options))
	}
	return slog.New(slog.NewTextHandler(env.Err, options))
}

// run starts a node, calls ready, and stops the node when ctx ends or the node fails.
func (f *nodeFlags) run(ctx context.Context, env cli.Env, ready func(*node.Node) error) error {
	f.cfg.Version = env.Version.Version
	f.cfg.Logger = f.logger(env)
	n, err := node.Start(ctx, f.cfg)
	if err != nil {
		return err
	}
	if err = ready(n); err == nil {
		err = n.Failed(ctx)
	}
	f.cfg.Logger.Info("stopping; virtual machines go on running")
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopPatience)
	defer cancel()
	return errors.Join(err, n.Stop(stop))
}

// serverCommand runs a node of which nothing is said but where its data is.
func serverCommand(env cli.Env) *cobra.Command {
	f := &nodeFlags{}
	cmd := &cobra.Command{
		Use:   "server --data DIR",
		Short: "Run a node",
		Long: `Run a node of Stillframe: the replicated log, this host's virtual machines and the API. A start takes up the
virtual machines of an earlier run; a stop (SIGTERM) leaves them running.

With --cluster the node is a member of the cluster whose identity folder that is (see "stillframe cluster init"); the
command line is the same at every start. Without, it is a cluster of its own. Which VMM is used is said at
start and by "stillframe node status": the binary that STILLFRAME_VMM names, else cloud-hypervisor where KVM works, else
the development VMM.

Organizations and API keys are made with "stillframe org" and "stillframe key" through the admin socket in the data
folder.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.run(cmd.Context(), env, func(*node.Node) error { return nil })
		},
	}
	f.add(cmd, "127.0.0.1:7070")
	cmd.Flags().StringVar(&f.cfg.RaftListen, "raft", "", "host:port to listen at for other nodes (default: this node's "+
		"address in the member list)")
	cmd.Flags().StringVar(&f.cfg.Advertise, "advertise", "", "host:port at which other nodes reach this one, when "+
		"that is no longer as in the member list")
	cmd.Flags().DurationVar(&f.cfg.DeadServerCleanup, "dead-server-cleanup", 0, "how long a voter must be gone to lose "+
		"its vote until it is back, where three healthy ones are left: the same on all nodes (default: it keeps it)")
	cmd.Flags().DurationVar(&f.cfg.NodeLease, "node-lease", 0, "how long a node may be silent before the leader gives it "+
		"up: the same on all nodes (default 30s)")
	cmd.Flags().StringVar(&f.cfg.Cluster, "cluster", "",
		"identity folder of this node, as \"stillframe cluster init\" made it")
	_ = cmd.MarkFlagDirname("cluster")
	return cmd
}

// devCommand runs a node with an organization and a key to try things with.
func devCommand(env cli.Env) *cobra.Command {
	f := &nodeFlags{}
	cmd := &cobra.Command{
		Use:   "dev --data DIR",
		Short: "Run one node for trying things, with a key of its own",
		Long: `Run one node with an organization "dev" and an API key, for development and trials. Once the API answers, the
file DIR/dev.env holds LEAP0_API_KEY and LEAP0_BASE_URL, and a first command to copy is printed. Sandboxes, snapshots
and the key are still there at the next start with the same folder.`,
		Example: "  stillframe dev --data ./dev-data --listen 127.0.0.1:7070",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.run(cmd.Context(), env, func(n *node.Node) error {
				return greet(cmd.Context(), env, f.cfg.DataDir, n)
			})
		},
	}
	f.add(cmd, "127.0.0.1:7070")
	return cmd
}

// greet makes the development key and says how to go on.
func greet(ctx context.Context, env cli.Env, dir string, n *node.Node) error {
	file, err := n.WriteDevEnv(ctx)
	if err != nil {
		return fmt.Errorf("make the development key: %w", err)
	}
	status := n.Status()
	_, err = fmt.Fprintf(env.Out, `Stillframe is ready.

  API          %s
  VMM          %s
               %s
  data folder  %s (memory and disks are kept by %s)
  key          in %s

Try, in another terminal:

  set -a; . %s; set +a
  stillframe sandbox create --template system/busybox
  curl -sS -H "authorization: Bearer $LEAP0_API_KEY" "$LEAP0_BASE_URL/v1/sandboxes"
`, n.URL(), status.VMM.Version, status.VMM.Reason, dir, status.CloneMethod, file, file)
	return err
}

// Package node assembles the rooms into one running node: the replicated log, the owner of this host's virtual machines
// and the API in front of them. It is the only place that knows all of them; the rooms do not know each other beyond
// what their package comments say. It may import every room and is imported by commands only.
//
// # Invariants
//
//   - The API serves nothing before the log has caught up and the owner has taken up the VMs of an earlier run.
//   - Stopping goes against the flow: first the API, then the owner, then the log. VMs go on running.
//   - One process at a time uses a data folder.
package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sys/unix"

	"stillframe/cluster"
	"stillframe/cluster/seal"
	"stillframe/fsm"
	"stillframe/httpd"
	"stillframe/hypervisor"
	"stillframe/hypervisor/vmm"
	"stillframe/netpolicy"
	"stillframe/netpolicy/gate"
)

// Config says where a node keeps its data and where it listens. DataDir and Listen are required.
type Config struct {
	DataDir string // made if missing
	Listen  string // host:port of the API
	// TLSCert and TLSKey are files in PEM form with the API's certificate (and what is between it and its CA) and key.
	// Both empty: the API speaks plain HTTP.
	TLSCert, TLSKey string
	RaftListen      string // host:port to listen at for other nodes; empty: as the member list has it
	Name            string // empty: the member list's, or the host's name
	// Cluster is this node's identity folder (see cluster.OpenIdentity). Empty: a cluster of this node alone, with a CA of
	// its own in the data folder.
	Cluster    string
	Images     string // images folder; empty: see hypervisor.FindImages
	KernelArgs string // added to every guest kernel's command line
	Overcommit hypervisor.Overcommit
	Egress     EgressConfig
	// IntentDeadline bounds one create, restore, snapshot or delete on this host; 0 is the owner's default.
	IntentDeadline time.Duration
	// NodeLease is how long a node may be silent before the leader gives it up; 0 is the cluster's default.
	NodeLease time.Duration
	// Advertise is where other nodes reach this one, host:port; empty: at its address in the member list.
	Advertise string
	// DeadServerCleanup is how long a voter must be gone to lose its vote until it is back; 0: it keeps it.
	DeadServerCleanup time.Duration
	Version           string
	Logger            *slog.Logger
}

// Node is a running node.
type Node struct {
	cfg      Config
	id       fsm.NodeID
	identity *cluster.Identity
	secrets  *seal.Ring
	lock     *os.File
	log      *cluster.Node
	owner    *hypervisor.Owner
	api      *httpd.Server
	tunnels  *tunnels
	choice   vmm.Choice
	gate     *gate.Gate
	networks *netpolicy.Manager // nil: noNetworks says why
	serving  atomic.Bool
	registry *prometheus.Registry

	noNetworks string

	stopNetworks context.CancelFunc
	networksDone chan struct{}
	stopOwner    context.CancelFunc
	ownerDone    chan error
}

// soloTimeout is the election timeout of a cluster of one.
const soloTimeout = 200 * time.Millisecond

// A start tries again what the cluster cannot do yet: tryTime bounds one try, tryPause is between two.
const (
	tryTime  = 10 * time.Second
	tryPause = 50 * time.Millisecond
)

// Start brings a node up and returns when its API answers. Stop it with Stop.
func Start(ctx context.Context, cfg Config) (_ *Node, err error) {
	if cfg.Overcommit == (hypervisor.Overcommit{}) {
		cfg.Overcommit = hypervisor.DefaultOvercommit
	}
	if cfg.DataDir, err = filepath.Abs(cfg.DataDir); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, registry: prometheus.NewRegistry()}
	n.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	defer func() {
		if err != nil {
			stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			err = errors.Join(err, n.Stop(stopCtx))
		}
	}()
	if err := n.claimFolder(); err != nil {
		return nil, err
	}
	// Before anything is written: what a start writes must find room on a full disk.
	if err := n.giveUpSpare(); err != nil {
		return nil, err
	}
	if n.identity, err = n.findIdentity(); err != nil {
		return nil, err
	}
	n.id = n.identity.ID()
	if n.secrets, err = n.openSecrets(); err != nil {
		return nil, err
	}
	images, err := n.loadImages()
	if err != nil {
		return nil, err
	}
	if n.choice, err = vmm.Detect(ctx, os.Getenv); err != nil {
		return nil, err
	}
	cfg.Logger.Info("VMM chosen", "kind", n.choice.Kind, "binary", n.choice.Binary, "version", n.choice.Version,
		"reason", n.choice.Reason)
	// Beside the log, which may have to wait for others: no VM is to stand still for that.
	var resuming sync.WaitGroup
	resuming.Go(func() { hypervisor.ResumeLeftPaused(ctx, n.cfg.DataDir, cfg.Logger) })
	err = n.openLog(ctx)
	resuming.Wait()
	if err != nil {
		return nil, err
	}
	if err := n.startNetworks(ctx); err != nil {
		return nil, err
	}
	if err := n.startOwner(ctx, images); err != nil {
		return nil, err
	}
	if err := n.startAPI(ctx); err != nil {
		return nil, err
	}
	n.setAsideSpare()
	return n, nil
}

// claimFolder makes the data folder and keeps other daemons out of it; the lock goes with the process.
func (n *Node) claimFolder() error {
	if err := os.MkdirAll(n.cfg.DataDir, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(n.cfg.DataDir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	n.lock = f
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("data folder %s is in use by another stillframe process: %w", n.cfg.DataDir, err)
	}
	return nil
}

func (n *Node) loadImages() (*hypervisor.Images, error) {
	dir, err := hypervisor.FindImages(n.cfg.Images)
	if err != nil {
		return nil, err
	}
	return hypervisor.LoadImages(dir)
}

// openLog opens the replicated log and waits until this node knows all that was done before. Other nodes may take their
// time to come up: there is no harm in waiting for them.
func (n *Node) openLog(ctx context.Context) (err error) {
	cfg := cluster.Config{
		Identity: n.identity, Dir: filepath.Join(n.cfg.DataDir, "raft"), Addr: n.cfg.RaftListen, Logger: n.cfg.Logger,
		Voters: n.identity.Voters(), NodeLease: n.cfg.NodeLease, Version: n.cfg.Version,
		Advertise: n.cfg.Advertise, DeadServerCleanup: n.cfg.DeadServerCleanup,
	}
	if n.cfg.Cluster == "" {
		// A cluster of its own, which none can join: long timeouts would only make its start slow.
		cfg.HeartbeatTimeout, cfg.ElectionTimeout, cfg.LeaseTimeout = soloTimeout, soloTimeout, soloTimeout
	}
	if n.log, err = cluster.Open(cfg); err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	n.tunnels = newTunnels(n.log)
	return n.untilDone(ctx, "catch up with the log", func(ctx context.Context) error {
		_, err := n.log.Linearizable(ctx)
		return err
	})
}

// untilDone repeats what may be repeated until it is done, refused, or ctx ends.
func (n *Node) untilDone(ctx context.Context, what string, try func(context.Context) error) error {
	said := time.Now()
	for {
		tryCtx, cancel := context.WithTimeout(ctx, tryTime)
		err := try(tryCtx)
		cancel()
		var e *fsm.Error
		passing := errors.As(err, &e) &&
			(e.Kind == fsm.KindUnavailable || e.Kind == fsm.KindUnknown || e.Kind == fsm.KindTimeout)
		if failure := n.log.Failure(); failure != nil || !passing {
			return errors.Join(err, failure)
		}
		if time.Since(said) > tryTime {
			n.cfg.Logger.Warn("waiting for the cluster", "to", what, "error", err)
			said = time.Now()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, errors.Join(ctx.Err(), err))
		case <-time.After(tryPause):
		}
	}
}

func (n *Node) startOwner(ctx context.Context, images *hypervisor.Images) (err error) {
	cfg := hypervisor.Config{
		Node: n.id, DataDir: n.cfg.DataDir, Images: images, VMM: n.choice, KernelArgs: n.cfg.KernelArgs,
		Log: n.log, NewIntentID: cluster.NewIntentID, Logger: n.cfg.Logger, Metrics: n.registry,
		Deadline: n.cfg.IntentDeadline, Peers: transfers{n.log}, Secrets: n.secrets, NoNetworks: n.noNetworks,
	}
	if n.networks != nil {
		cfg.Networks = n.networks
	}
	if n.owner, err = hypervisor.New(cfg); err != nil {
		return err
	}
	if err := n.register(ctx, images); err != nil {
		return err
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	n.stopOwner, n.ownerDone = cancel, make(chan error, 1)
	go func() { n.ownerDone <- n.owner.Run(run) }()
	select {
	case <-n.owner.Ready():
		return nil
	case err := <-n.ownerDone:
		n.ownerDone <- err
		return fmt.Errorf("the owner ended: %w", err)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// register writes into the log what this node is and which templates it brings.
func (n *Node) register(ctx context.Context, images *hypervisor.Images) error {
	capacity, err := hypervisor.MeasureCapacity(n.cfg.DataDir, n.cfg.Overcommit)
	if err != nil {
		return err
	}
	fingerprint, err := vmm.CPUFingerprint(n.choice)
	if err != nil {
		return err
	}
	name := n.cfg.Name
	if name == "" && n.cfg.Cluster != "" {
		name = n.identity.Self().Name
	}
	if name == "" {
		if name, err = os.Hostname(); err != nil {
			return err
		}
	}
	now := fsm.At(time.Now())
	commands := []fsm.Command{fsm.RegisterNode{Now: now, Node: fsm.Node{
		ID: n.id, Name: name, APIAddr: n.cfg.Listen, Capacity: capacity, VMM: string(n.choice.Kind),
		VMMVersion: n.choice.Version, CPUFingerprint: fingerprint, CloneMethod: n.owner.CloneMethod(), RegisteredAt: now,
		Templates: digests(images),
		Level:     fsm.Level,
	}}}
	for _, t := range images.Templates {
		known, ok := n.log.State().TemplateByName("", t.Name)
		if ok && known.Digest == t.Digest {
			continue
		}
		commands = append(commands, fsm.PutTemplate{Now: now, Template: fsm.Template{
			ID: cluster.NewTemplateID(), Name: t.Name, Digest: t.Digest, CreatedAt: now,
		}})
	}
	for _, c := range commands {
		// Repeating either command changes nothing.
		err := n.untilDone(ctx, "register this node", func(ctx context.Context) error {
			_, err := n.log.Apply(ctx, c)
			return err
		})
		if err != nil {
			return fmt.Errorf("register this node: %w", err)
		}
	}
	return nil
}

// digests lists the images that this node has, in one order at every start.
func digests(images *hypervisor.Images) []string {
	var out []string
	for _, t := range images.Templates {
		out = append(out, t.Digest)
	}
	slices.Sort(out)
	return out
}

func (n *Node) startAPI(ctx context.Context) (err error) {
	n.tunnels.serve(n.owner)
	transfers{n.log}.serve(n.owner)
	serverTLS, err := n.apiTLS()
	if err != nil {
		return err
	}
	policies := policies{n.id, n.log.State, n.owner, n.tunnels}
	policies.serve()
	n.serveKeys()
	n.api, err = httpd.New(httpd.Config{
		Addr: n.cfg.Listen, TLS: serverTLS, AdminSocket: n.AdminSocket(), Log: n.log, Ready: n.ready,
		Guests:   guests{n.id, n.log.State, n.owner, n.tunnels},
		Policies: policies, Secrets: n.secrets,
		NodeStatus: n.Status, ClusterStatus: n.ClusterStatus, Backup: n.backup, Operations: operations{n.log},
		Reseal:   n.Reseal,
		Registry: n.registry, Logger: n.cfg.Logger, Version: n.cfg.Version,
	})
	if err != nil {
		return err
	}
	// The API outlives the context of the start.
	if err := n.api.Listen(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	n.serving.Store(true)
	n.cfg.Logger.Info("serving", "url", n.URL(), "node", n.id)
	return nil
}

func (n *Node) backup(ctx context.Context) (io.WriterTo, error) {
	return n.log.Backup(ctx, n.cfg.Version)
}

func (n *Node) ready() error {
	if !n.serving.Load() {
		return errors.New("the node is starting or stopping")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_, err := n.log.Linearizable(ctx)
	return err
}

// Status is what the node tells of itself.
func (n *Node) Status() httpd.NodeStatus {
	self, _ := n.log.State().Node(n.id)
	return httpd.NodeStatus{
		ID: n.id, Name: self.Name, Version: n.cfg.Version, CloneMethod: n.owner.CloneMethod(), Egress: n.egressStatus(),
		VMM: httpd.VMMStatus{
			Kind: string(n.choice.Kind), Binary: n.choice.Binary, Version: n.choice.Version, Reason: n.choice.Reason,
		},
	}
}

// AdminSocket is the path of the socket through which organizations and keys are managed.
func (n *Node) AdminSocket() string { return filepath.Join(n.cfg.DataDir, "admin.sock") }

// URL is the base URL of the API, with an address that a client on this machine can use.
func (n *Node) URL() string {
	scheme := "http://"
	if n.cfg.TLSCert != "" {
		scheme = "https://"
	}
	host, port, err := net.SplitHostPort(n.api.Addr())
	if err != nil {
		return scheme + n.api.Addr()
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return scheme + net.JoinHostPort(host, port)
}

// Log is the node's replicated log.
func (n *Node) Log() *cluster.Node { return n.log }

// Owner is the node's owner of virtual machines.
func (n *Node) Owner() *hypervisor.Owner { return n.owner }

// ID is the node's identity.
func (n *Node) ID() fsm.NodeID { return n.id }

// Failed gives the first failure after which the node cannot go on serving.
func (n *Node) Failed(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-n.api.Failed():
		return err
	case <-n.log.Failed():
		return fmt.Errorf("the log: %w", n.log.Failure())
	case err := <-n.ownerDone:
		n.ownerDone <- err
		return fmt.Errorf("the owner ended: %w", err)
	}
}

// apiPatience bounds how long a stop waits for calls under way. A call may wait for minutes, for a leader or for a VM:
// it would take the time that the intents under way need to end well.
const apiPatience = 5 * time.Second

// stopAPI ends the API. Calls that it does not wait for are answered that their outcome is unknown.
func (n *Node) stopAPI(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, apiPatience)
	defer cancel()
	err := n.api.Shutdown(limited)
	if errors.Is(err, context.DeadlineExceeded) {
		n.cfg.Logger.Warn("calls were still under way at shutdown; who made them has to ask again", "error", err)
		return nil
	}
	return err
}

// Stop ends the node: calls under way are answered, intents under way are finished or left to the next start. VMs go on
// running. It may be called on a node whose start failed half way.
func (n *Node) Stop(ctx context.Context) error {
	n.serving.Store(false)
	var errs []error
	if n.api != nil {
		errs = append(errs, n.stopAPI(ctx))
	}
	if n.tunnels != nil {
		n.tunnels.stop()
	}
	if n.stopOwner != nil {
		n.stopOwner()
		errs = append(errs, <-n.ownerDone)
	}
	errs = append(errs, n.closeNetworks())
	if n.log != nil {
		errs = append(errs, n.log.Shutdown(ctx))
	}
	if n.lock != nil {
		errs = append(errs, n.lock.Close())
	}
	return errors.Join(errs...)
}

package cluster

import (
	"errors"
	"log/slog"
	"time"

	"github.com/hashicorp/raft"

	"stillframe/fsm"
)

// Server is a member of the cluster: its id and the address that its Raft transport is reached at.
type Server struct {
	ID   fsm.NodeID
	Addr string // host:port; may be empty for the node itself, which knows its own
}

// Config is what Open needs. Identity and Dir are required; every zero duration or count has a default.
type Config struct {
	// Identity says who this node is, and who the others are. Nodes that it does not list are not dialled.
	Identity *Identity
	// Dir holds the log, the votes and the snapshots. It is made when it is missing. One process at a time.
	Dir string
	// Addr is where to listen for other nodes, host:port; empty: at this node's address in the member list.
	Addr string
	// Advertise is where other nodes reach this one, host:port; empty: at its address in the member list. When it is not
	// what the cluster has, the node tells the others.
	Advertise string
	// Voters are the members of a new cluster, the same list on every node and at every start: it is written when this
	// node's log is empty and ignored after that. Empty: the node waits to be taken into a cluster.
	Voters []Server
	// Logger takes the node's and the library's messages; nil is slog.Default().
	Logger *slog.Logger

	// HeartbeatTimeout is how long a follower waits for its leader before it stands for election; ElectionTimeout how
	// long an election may take; LeaseTimeout how long a leader serves without hearing from a majority.
	HeartbeatTimeout, ElectionTimeout, LeaseTimeout time.Duration
	// IOTimeout bounds one exchange between nodes, a call to the leader among them.
	IOTimeout time.Duration
	// EnqueueTimeout bounds how long a proposal waits for the main loop to take it.
	EnqueueTimeout time.Duration
	// TickInterval is how often the leader looks whether time has made something due.
	TickInterval time.Duration
	// NodeLease is how long a node may be silent before the leader gives it up.
	NodeLease time.Duration
	// PromoteAfter is how long a member without a vote must have kept up to get one.
	PromoteAfter time.Duration
	// DeadServerCleanup is how long a voter must be gone to lose its vote until it is back; 0: it keeps it.
	DeadServerCleanup time.Duration
	// Version is of the program, for the status that other nodes ask for.
	Version string
	// StallTimeout is how long the disk under the log may hang before a leader gives up the lead; after twice that any
	// node gives up itself.
	StallTimeout time.Duration
	probe        func(dir string) error // nil: probeDisk
	// FreshInterval is how often a node makes sure how far its state is: the age that a stale read tells is not much more
	// than this while all is well.
	FreshInterval time.Duration
	// TransferTimeout bounds handing the leadership over at Shutdown; DrainTimeout waiting for open proposals there.
	TransferTimeout, DrainTimeout time.Duration

	// A snapshot of the state is taken when, at a check every SnapshotInterval or up to twice that, the log has grown
	// by SnapshotThreshold entries; TrailingLogs entries are kept behind it for followers that lag.
	SnapshotInterval                time.Duration
	SnapshotThreshold, TrailingLogs uint64

	// decode stands, in tests, for a program of another version; nil is fsm.Decode.
	decode func([]byte) (fsm.Command, error)
}

const (
	// keptSnapshots is how many snapshots stay on disk: the newest, and one before it should that be unreadable.
	keptSnapshots = 2
	// cachedLogs is how many entries are kept in memory for followers that are a little behind.
	cachedLogs = 512
	// lockTimeout is how long Open waits for another process to let go of the log.
	lockTimeout = 2 * time.Second
	// barrierTimeout bounds how long a new leader's barrier waits to be taken; it is retried while the term lasts.
	barrierTimeout = 10 * time.Second
	// retryPause is between attempts of what a term must get done.
	retryPause = 200 * time.Millisecond
)

func (c Config) withDefaults() Config {
	setDefault(&c.HeartbeatTimeout, 3*time.Second)
	setDefault(&c.ElectionTimeout, 3*time.Second)
	setDefault(&c.LeaseTimeout, 1500*time.Millisecond)
	setDefault(&c.IOTimeout, 10*time.Second)
	setDefault(&c.EnqueueTimeout, 5*time.Second)
	setDefault(&c.TickInterval, time.Second)
	setDefault(&c.NodeLease, 30*time.Second)
	setDefault(&c.StallTimeout, 15*time.Second)
	setDefault(&c.PromoteAfter, 5*time.Second)
	setDefault(&c.FreshInterval, time.Second)
	setDefault(&c.TransferTimeout, 5*time.Second)
	setDefault(&c.DrainTimeout, 3*time.Second)
	setDefault(&c.SnapshotInterval, 2*time.Minute)
	setDefault(&c.SnapshotThreshold, 8192)
	setDefault(&c.TrailingLogs, 10240)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

func (c Config) validate() error {
	switch {
	case c.Identity == nil:
		return errors.New("the node's identity is missing")
	case c.Dir == "":
		return errors.New("the folder of the log is missing")
	}
	return nil
}

// raft gives the library's configuration.
func (c Config) raft(notify chan<- bool) *raft.Config {
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(c.Identity.ID())
	rc.HeartbeatTimeout = c.HeartbeatTimeout
	rc.ElectionTimeout = c.ElectionTimeout
	rc.LeaderLeaseTimeout = c.LeaseTimeout
	rc.SnapshotInterval = c.SnapshotInterval
	rc.SnapshotThreshold = c.SnapshotThreshold
	rc.TrailingLogs = c.TrailingLogs
	rc.ShutdownOnRemove = true
	rc.NotifyCh = notify
	// Proposals that wait share a write to the disk and a request to each peer.
	rc.BatchApplyCh, rc.MaxAppendEntries = true, 256
	rc.NoLegacyTelemetry = true
	rc.Logger = newRaftLogger(c.Logger)
	return rc
}

package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"stillframe/fsm"
)

// Node is one member of the cluster. All its methods may be called at once.
type Node struct {
	cfg     Config
	id      fsm.NodeID
	log     *slog.Logger
	machine *machine
	raft    *raft.Raft
	port    *port
	trans   transport
	store   *raftboltdb.BoltStore

	term atomic.Uint64 // the term in which this node is the leader and has passed its barrier; 0: none

	gate     sync.Mutex // guards shut and, against it, the growth of calls
	shut     bool       // no new calls into the library
	calls    sync.WaitGroup
	closing  chan struct{} // closed when shut is set
	stopped  chan struct{} // closed when the library has stopped: what has no answer by then gets none
	failed   chan struct{} // closed when the node cannot go on: see Failed
	failure  error         // set before failed is closed
	failOnce sync.Once
	watching chan struct{}   // closed when watch has ended
	life     context.Context // ends when the node begins to shut down, or fails
	endLife  context.CancelFunc
	keep     sync.WaitGroup         // what runs for the node's life
	probe    func(dir string) error // of the disk; tests make it hang

	needs func(command []byte) int // fsm.Needs, but for tests

	forward   *forwarder
	positions rounds[uint64]   // asked of the leader
	verified  rounds[struct{}] // by a majority, that this node leads

	fresh freshness

	stopRaft func() error // runs once: stops the library and waits for it
	closeAll func() error // runs once: stops everything
}

// Open starts a node on the log in cfg.Dir, after bootstrapping it where it is empty and cfg.Voters are given. It
// returns before there is a leader: see WaitLeader. The caller ends it with Shutdown.
func Open(cfg Config) (*Node, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("open cluster node: %w", err)
	}
	n, err := open(cfg)
	if err != nil {
		return nil, fmt.Errorf("open cluster node in %s: %w", cfg.Dir, err)
	}
	return n, nil
}

// newNode makes a node that has opened nothing yet.
func newNode(cfg Config) *Node {
	n := &Node{
		cfg: cfg, id: cfg.Identity.ID(), log: cfg.Logger.With("node", string(cfg.Identity.ID())),
		closing: make(chan struct{}), stopped: make(chan struct{}),
		failed: make(chan struct{}), watching: make(chan struct{}),
	}
	if n.probe = cfg.probe; n.probe == nil {
		n.probe = probeDisk
	}
	n.life, n.endLife = context.WithCancel(context.Background())
	n.needs = fsm.Needs
	n.positions.n, n.positions.ask = n, n.askPosition
	n.verified.n, n.verified.ask = n, n.askMajority
	n.machine = newMachine(n.fail)
	if cfg.decode != nil {
		n.machine.decode = cfg.decode
	}
	n.stopRaft = sync.OnceValue(func() error {
		defer close(n.stopped)
		return errors.Join(n.raft.Shutdown().Error(), n.trans.Close())
	})
	n.closeAll = sync.OnceValue(n.close)
	n.forward = newForwarder(n)
	return n
}

func open(cfg Config) (_ *Node, err error) {
	n := newNode(cfg)
	undo := []func() error{func() error { n.endLife(); n.forward.stop(); return nil }}
	defer func() {
		for i := len(undo) - 1; err != nil && i >= 0; i-- {
			err = errors.Join(err, undo[i]())
		}
	}()
	if err = os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	if n.store, err = openStore(filepath.Join(cfg.Dir, "raft.db")); err != nil {
		return nil, err
	}
	undo = append(undo, n.store.Close)
	if err := reserveLog(filepath.Join(cfg.Dir, "raft.db")); err != nil {
		n.log.Warn("no space is set aside for the log", "error", err)
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(cfg.Dir, keptSnapshots, newRaftLogger(cfg.Logger))
	if err != nil {
		return nil, err
	}
	if n.port, err = openPort(cfg.Identity, cfg.Addr, n.directory(), n.log); err != nil {
		return nil, err
	}
	undo = append(undo, n.port.close)
	n.trans = newTransport(cfg, raftStream{newHalf(n.port, n.port.raft), n.port.advertised(cfg.Advertise)})
	undo = append(undo, n.trans.Close)
	logs, err := raft.NewLogCache(cachedLogs, n.store)
	if err != nil {
		return nil, err
	}
	notify := make(chan bool, 16)
	rc := cfg.raft(notify)
	if err = n.prepare(rc, logs, snaps); err != nil {
		return nil, err
	}
	if n.raft, err = raft.NewRaft(rc, n.machine, logs, n.store, snaps, n.trans); err != nil {
		return nil, errors.Join(err, n.Failure())
	}
	n.trans.begins(func(index, term uint64) bool { return n.beginsAfter(logs, index, term) })
	go n.watch(notify)
	n.serveCalls()
	n.campaignAlone()
	n.keep.Go(func() { n.belong(n.life, cfg.Voters) })
	n.keep.Go(func() { n.watchDisk(n.life) })
	n.keep.Go(func() { n.keepFresh(n.life) })
	return n, nil
}

// beginsAfter says whether an entry is the last of this node's snapshot, and no longer in its log.
func (n *Node) beginsAfter(logs raft.LogStore, index, term uint64) bool {
	var entry raft.Log
	if !errors.Is(logs.GetLog(index, &entry), raft.ErrLogNotFound) {
		return false
	}
	stats := n.raft.Stats()
	return stats["last_snapshot_index"] == strconv.FormatUint(index, 10) &&
		stats["last_snapshot_term"] == strconv.FormatUint(term, 10)
}

func openStore(path string) (*raftboltdb.BoltStore, error) {
	store, err := raftboltdb.New(raftboltdb.Options{
		Path: path,
		// Without a free list on disk a write is smaller; it is rebuilt when the file is opened.
		BoltOptions: &bbolt.Options{Timeout: lockTimeout, NoFreelistSync: true},
	})
	if errors.Is(err, bbolterrors.ErrTimeout) {
		return nil, fmt.Errorf("%s is in use by another process", path)
	}
	return store, err
}

// Bytes set aside for the log's file: at the least, and beyond what it has grown to.
const (
	reservedLog    = 64 << 20
	reservedGrowth = 32 << 20
)

// reserveLog sets blocks aside for the log to grow into, past the end of its file: a node whose disk is full, by its
// guests say, can then still write down what is deleted to make room. Where this is not possible the node goes without.
func reserveLog(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // nothing was written
	info, err := f.Stat()
	if err != nil {
		return err
	}
	size := max(reservedLog, info.Size()+reservedGrowth)
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size)
}

// prepare takes in a backup that the node is to start from, writes the first membership of a sole voter into an empty
// log, and finds out whether the node may vote. Where there are to be several, they look for each other first: see
// found.
func (n *Node) prepare(rc *raft.Config, logs raft.LogStore, snaps raft.SnapshotStore) error {
	blank, err := emptyLog(logs, snaps)
	if err != nil {
		return err
	}
	if err := n.seed(logs, snaps); err != nil {
		return err
	}
	if alone := n.cfg.Voters; len(alone) == 1 && alone[0].ID == n.id {
		n.trans.admit()
		has, err := raft.HasExistingState(logs, n.store, snaps)
		if err != nil || has {
			return err
		}
		n.log.Info("founding a new cluster", "voters", 1)
		return raft.BootstrapCluster(rc, logs, n.store, snaps, n.trans, n.members())
	}
	ok, err := proven(n.cfg.Dir, blank)
	if err == nil && ok {
		n.trans.admit()
	}
	return err
}

// campaignAlone saves a sole voter the wait for a leader that cannot be there.
func (n *Node) campaignAlone() {
	servers := n.raft.GetConfiguration().Configuration().Servers
	if len(servers) != 1 || servers[0].ID != raft.ServerID(n.id) {
		return
	}
	if err := n.trans.campaign(servers[0].ID); err != nil {
		n.log.Warn("the sole voter waits for its election timeout", "error", err)
	}
}

// Addr is where this node listens for others.
func (n *Node) Addr() string { return string(n.trans.LocalAddr()) }

// Failed is closed when the node has stopped for good: it met a log entry that it does not know (a newer version of the
// program is likely needed), it was removed from the cluster, or its disk hangs. The process should say Failure and
// exit.
func (n *Node) Failed() <-chan struct{} { return n.failed }

// Failure says why Failed is closed; before that it is nil.
func (n *Node) Failure() error {
	select {
	case <-n.failed:
		return n.failure
	default:
		return nil
	}
}

// fail stops the node for a reason; the first one counts. It does not block.
func (n *Node) fail(err error) {
	n.failOnce.Do(func() {
		n.log.Error("stopping: this node cannot go on", "error", err)
		n.failure = err
		close(n.failed)
		n.endLife()
	})
}

// Shutdown stops the node: no new calls, leadership handed over where there is another voter, open calls ended, the
// library stopped and the files closed. Repeating it waits for the first. The error is ctx's when that ended the wait;
// the stop goes on.
func (n *Node) Shutdown(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- n.closeAll() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("shut down cluster node: %w", ctx.Err())
	}
}

// close is Shutdown's work, every part of it bounded but for a disk that hangs.
func (n *Node) close() error {
	n.endLife()
	n.handOver()
	n.shutGate()
	n.keep.Wait()
	n.forward.stop()
	<-n.watching
	n.drain()
	if err := errors.Join(n.stopRaft(), n.port.close(), n.store.Close()); err != nil {
		return fmt.Errorf("shut down cluster node: %w", err)
	}
	return nil
}

func (n *Node) otherVoters() int {
	count := 0
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		if s.Suffrage == raft.Voter && s.ID != raft.ServerID(n.id) {
			count++
		}
	}
	return count
}

// enter takes part in the count of calls into the library; false once the node is shutting down.
func (n *Node) enter() bool {
	n.gate.Lock()
	defer n.gate.Unlock()
	if n.shut {
		return false
	}
	n.calls.Add(1)
	return true
}

func (n *Node) leave() { n.calls.Done() }

func (n *Node) shutGate() {
	n.gate.Lock()
	defer n.gate.Unlock()
	if !n.shut {
		n.shut = true
		close(n.closing)
	}
}

// drain waits for open calls, so that none is left without an answer: the library drops what is between its log and its
// state machine when it stops. A call that needs a majority which is not there ends with the library instead.
func (n *Node) drain() {
	drained := make(chan struct{})
	go func() {
		n.calls.Wait()
		close(drained)
	}()
	select {
	case <-drained:
	case <-time.After(n.cfg.DrainTimeout):
		n.log.Warn("shutting down with calls open")
	}
}

// ID is the node's own id.
func (n *Node) ID() fsm.NodeID { return n.id }

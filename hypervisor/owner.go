package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"stillframe/fsm"
	"stillframe/hypervisor/store"
	"stillframe/hypervisor/vmm"
)

// Log is the replicated log as the owner sees it. Apply's errors are those of package cluster: nil is done,
// KindUnknown may or may not have been applied, KindUnavailable has certainly not, everything else is the state
// machine's refusal.
type Log interface {
	Apply(context.Context, fsm.Command) (fsm.Result, error)
	State() *fsm.State
	Changed() <-chan struct{}
}

// Config is what an Owner needs. Every field without a default named here is required.
type Config struct {
	Node       fsm.NodeID
	DataDir    string // absolute; holds sandboxes/, snapshots/ and copies/
	Images     *Images
	VMM        vmm.Choice
	KernelArgs string // added to the guest kernel's command line; may be empty
	Log        Log
	// Networks keeps the networks of this node's sandboxes. Nil: NoNetworks says why there are none, and no sandbox is
	// started here.
	Networks   Networks
	NoNetworks string
	// Secrets opens header values and CA seeds; nil: sandboxes that have any cannot be started here.
	Secrets Secrets
	// NewIntentID makes the id of an intent that an outcome opens.
	NewIntentID func() fsm.IntentID
	// Peers reaches the nodes that hold snapshots which are restored here; nil: this node has no others.
	Peers   Peers
	Logger  *slog.Logger
	Metrics prometheus.Registerer
	// Deadline bounds one intent from its first step to its last; 0 means two minutes.
	Deadline time.Duration
	// Grace is how long Run lets intents under way finish after its context ended; 0 means 20 seconds.
	Grace time.Duration
}

// Owner carries out this node's intents. Make one with New, then call Run once.
type Owner struct {
	cfg     Config
	log     *slog.Logger
	files   *store.Files
	metrics *metrics
	copies  *copies
	method  store.Method // what the data folder's filesystem can do, probed at New

	mu       sync.Mutex
	machines map[fsm.SandboxID]*machine
	jobs     map[fsm.IntentID]*job
	stopping bool
	// seenEpoch is the epoch of this node at which its data and the log were last compared (see comeBack).
	seenEpoch  uint64
	comingBack bool

	workers sync.WaitGroup
	wake    chan struct{} // has the loop look again without a change of the state
	ready   chan struct{} // closed once the node's VMs are taken up again
	quit    chan struct{} // closed when the daemon ends
}

// New prepares the data folder and probes its filesystem. It touches no VM: that is Run's work.
func New(cfg Config) (*Owner, error) {
	if cfg.Deadline == 0 {
		cfg.Deadline = 2 * time.Minute
	}
	if cfg.Grace == 0 {
		cfg.Grace = 20 * time.Second
	}
	o := &Owner{
		cfg:      cfg,
		log:      cfg.Logger.With("room", "hypervisor"),
		files:    store.New(),
		metrics:  newMetrics(cfg.Metrics),
		copies:   newCopies(filepath.Join(cfg.DataDir, "copies")),
		machines: map[fsm.SandboxID]*machine{},
		jobs:     map[fsm.IntentID]*job{},
		wake:     make(chan struct{}, 1),
		ready:    make(chan struct{}),
		quit:     make(chan struct{}),
	}
	for _, d := range []string{o.sandboxesDir(), o.snapshotsDir(), o.copies.dir} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	var err error
	var known *fsm.Error
	o.method, err = o.files.Probe(o.sandboxesDir())
	switch {
	case errors.As(err, &known) && known.Kind == fsm.KindUnavailable:
		// No room for the two small files of the probe. The node must start all the same: deleting is what makes room.
		o.method = store.MethodCopy
		o.log.Warn("the data folder's disk is full", "folder", cfg.DataDir, "error", err)
	case err != nil:
		return nil, fmt.Errorf("probe the data folder's filesystem: %w", err)
	}
	o.log.Info("data folder probed", "folder", cfg.DataDir, "clone_method", o.method)
	return o, nil
}

// CloneMethod tells how memory and disk are kept on this data folder: "reflink" or "copy".
func (o *Owner) CloneMethod() string { return string(o.method) }

// Ready is closed once the VMs of an earlier run have been taken up again and intents are being carried out.
func (o *Owner) Ready() <-chan struct{} { return o.ready }

func (o *Owner) sandboxesDir() string { return filepath.Join(o.cfg.DataDir, "sandboxes") }
func (o *Owner) snapshotsDir() string { return filepath.Join(o.cfg.DataDir, "snapshots") }

func (o *Owner) sandboxDir(id fsm.SandboxID) string {
	return filepath.Join(o.sandboxesDir(), string(id))
}

func (o *Owner) snapshotDir(id fsm.SnapshotID) string {
	return filepath.Join(o.snapshotsDir(), string(id))
}

// Run takes up the VMs of an earlier run and then carries out intents until ctx ends. The log's local state must have
// caught up before Run is called, or VMs of sandboxes not yet known here would be taken for leftovers. Run returns
// when every goroutine it started has ended; VMs go on running.
func (o *Owner) Run(ctx context.Context) error {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	changed, state := o.cfg.Log.Changed(), o.cfg.Log.State()
	self, _ := state.Node(o.cfg.Node)
	if err := o.takeUp(work, state); err != nil {
		return fmt.Errorf("take up the node's VMs: %w", err)
	}
	o.seenEpoch = self.Epoch
	close(o.ready)
	// At first by the same state as the take-up: it has left alone what belongs to an intent that was open then, and if
	// that was closed since, only carrying it out finds that out and undoes it.
	o.startOpenIntents(work, func() *fsm.State { return state })
	for {
		select {
		case <-changed:
		case <-o.wake:
		case <-ctx.Done():
			o.windDown(cancel)
			return nil
		}
		// The channel is taken before the state is read: a change in between wakes the loop once too often, never
		// once too seldom.
		changed, state = o.cfg.Log.Changed(), o.cfg.Log.State()
		o.obey(state)
		o.startOpenIntents(work, o.cfg.Log.State)
		o.watchEpoch(work, state)
		o.dropCopies(work, state)
	}
}

// windDown lets intents under way finish for a while, then cuts them off: what they leave is what a crash would leave,
// and the next start deals with it.
func (o *Owner) windDown(cut context.CancelFunc) {
	close(o.quit)
	o.mu.Lock()
	o.stopping = true
	for _, m := range o.machines {
		m.detach()
	}
	o.mu.Unlock()
	done := make(chan struct{})
	go func() { o.workers.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(o.cfg.Grace):
		o.log.Warn("intents still under way at shutdown; they are taken up at the next start")
		cut()
		<-done
	}
	cut()
}

// startOpenIntents gives every open intent of this node that may start now a goroutine. The state is read while no
// intent can end: in one read before, an intent that is done and off the books would still be open, and done again.
func (o *Owner) startOpenIntents(ctx context.Context, state func() *fsm.State) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.stopping {
		return
	}
	busy := map[fsm.IntentID]fsm.Intent{}
	for id, j := range o.jobs {
		busy[id] = j.in
	}
	for _, in := range startable(state().OpenIntents(o.cfg.Node), busy) {
		jobCtx, cancel := context.WithCancelCause(ctx)
		o.jobs[in.ID] = &job{in: in, cancel: cancel}
		o.workers.Add(1)
		go func() {
			defer o.end(in)
			o.carryOut(ctx, jobCtx, in)
		}()
	}
}

// carryOut takes an intent through its course: its steps and, where one fails, what undoes them and the report. When
// ctx was cut off by a shutdown it stops where it is: the intent stays open for the next start. jobCtx bounds the
// steps; it ends besides when the log supersedes the intent.
func (o *Owner) carryOut(ctx, jobCtx context.Context, in fsm.Intent) {
	began := time.Now()
	log := o.log.With("intent", in.ID, "kind", in.Kind, "sandbox", in.Sandbox, "snapshot", in.Snapshot)
	limited := &deadline{parent: jobCtx, after: o.cfg.Deadline}
	defer limited.end()
	p, failure := o.plan(in)
	outcome := fsm.Complete{Intent: in.ID, Owner: in.Owner, Epoch: in.Epoch}
	for c := newCourse(p.names()); c.next != moveEnd; {
		var err error
		switch c.next {
		case moveStep:
			c, err = o.takeStep(ctx, limited, in, p, c)
			failure = err
		case moveUndo:
			log.Error("intent failed", "took", time.Since(began), "error", failure)
			outcome.Error = o.clientError(in, failure) // before the undo, which may make room
			c = o.undo(ctx, in, p, c, &outcome)
		case moveReport:
			var v verdict
			if v, err = o.complete(ctx, in, outcome); v != verdictSettled {
				log.Warn("the outcome is not in the log", "error", err)
			}
			c = c.reported(v)
		}
		if ctx.Err() != nil && c.next != moveEnd {
			log.Warn("intent interrupted by shutdown", "error", err)
			return
		}
	}
	if failure == nil {
		log.Info("intent done", "took", time.Since(began))
	}
}

// undo takes back what the steps have made; what for the log besides, where it has closed the intent by itself.
func (o *Owner) undo(ctx context.Context, in fsm.Intent, p plan, c course, outcome *fsm.Complete) course {
	p.undo(ctx, outcome)
	if !c.over {
		return c.undone()
	}
	o.log.Warn("intent superseded; what was done is undone", "intent", in.ID, "kind", in.Kind, "sandbox", in.Sandbox,
		"snapshot", in.Snapshot)
	o.metrics.takenUp.WithLabelValues("superseded").Inc()
	if p.giveUp != nil {
		p.giveUp()
	}
	return c.undone()
}

// plan is an intent made concrete: its steps, the last of which commits with what fill adds to the outcome, and what
// undoes them. undo is there when planning failed, too; it adds to the outcome, which has the error already, what has
// become of the sandbox. giveUp is for what must be undone besides when the log has closed the intent by itself.
type plan struct {
	steps  []step
	fill   func(*fsm.Complete)
	undo   func(context.Context, *fsm.Complete)
	giveUp func()
}

func (p plan) names() []Step {
	names := make([]Step, 0, len(p.steps))
	for _, s := range p.steps {
		names = append(names, s.name)
	}
	return names
}

func (o *Owner) plan(in fsm.Intent) (plan, error) {
	switch in.Kind {
	case fsm.IntentCreate:
		return o.planCreate(in)
	case fsm.IntentRestore:
		return o.planRestore(in)
	case fsm.IntentSnapshot:
		return o.planSnapshot(in)
	case fsm.IntentDelete:
		return o.planDelete(in), nil
	case fsm.IntentDeleteSnapshot:
		return o.planDeleteSnapshot(in), nil
	case fsm.IntentSetPolicy:
		return o.planSetPolicy(in), nil
	}
	return plan{undo: nothingToUndo}, fsm.Errorf(fsm.KindInternal, "intent kind %q is not known to this node", in.Kind)
}

// complete proposes an outcome until the log's answer is known, or ctx ends. The error is the last answer's.
func (o *Owner) complete(ctx context.Context, in fsm.Intent, c fsm.Complete) (verdict, error) {
	for {
		c.Now = fsm.At(time.Now())
		_, err := o.cfg.Log.Apply(ctx, c)
		v := judge(o.cfg.Log.State(), in, c, err)
		if v != verdictAgain {
			return v, err
		}
		o.log.Warn("outcome not in the log yet, trying again", "intent", c.Intent, "error", err)
		select {
		case <-ctx.Done():
			return v, errors.Join(err, ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// clientError turns a step's failure into what the log keeps and the client reads: an error with a kind keeps its kind
// and message; of any other the client learns the step, and the log file the cause. It must be asked before the undo.
func (o *Owner) clientError(in fsm.Intent, err error) *fsm.Error {
	var known *fsm.Error
	if errors.As(err, &known) {
		return fsm.Errorf(known.Kind, "%s", known.Message)
	}
	if o.outOfSpace(err) {
		return fsm.Errorf(fsm.KindUnavailable, "the node's disk is full")
	}
	what := map[fsm.IntentKind]string{
		fsm.IntentCreate:         "the sandbox could not be created",
		fsm.IntentRestore:        "the snapshot could not be restored",
		fsm.IntentSnapshot:       "the snapshot could not be taken",
		fsm.IntentDelete:         "the sandbox could not be deleted",
		fsm.IntentDeleteSnapshot: "the snapshot could not be deleted",
		fsm.IntentSetPolicy:      "the network policy could not be put in force",
	}[in.Kind]
	if errors.Is(err, context.DeadlineExceeded) {
		return fsm.Errorf(fsm.KindTimeout, "%s in time: %s", what, failedStep(err))
	}
	return fsm.Errorf(fsm.KindInternal, "%s: %s failed on node (intent %s; the node's log has the cause)", what,
		failedStep(err), in.ID)
}

// spaceFloor is how few free bytes make a full disk the cause of a failure that nothing else explains: a little more
// than a VMM's device state, of which it only says that it could not be written, or leaves a part.
const spaceFloor = 1 << 20

// outOfSpace tells whether a failure comes from a full disk.
func (o *Owner) outOfSpace(err error) bool {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return true
	}
	free, statErr := o.files.Free(o.cfg.DataDir)
	return statErr == nil && free < spaceFloor
}

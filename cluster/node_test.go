package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"

	"stillframe/fsm"
)

// testConfig is a sole voter on a real disk and a real loopback socket.
func testConfig(t *testing.T, dir string) Config {
	return Config{
		Identity: testIdentity(t, t.TempDir(), Member{"node-a", "a", "127.0.0.1:0"})[0], Dir: dir,
		Voters: []Server{{ID: "node-a"}}, Logger: testLogger(t),
	}
}

// testIdentity makes a cluster in dir and gives its members' identities.
func testIdentity(t *testing.T, dir string, members ...Member) []*Identity {
	t.Helper()
	require.NoError(t, Init(dir, members))
	var ids []*Identity
	for _, m := range members {
		id, err := OpenIdentity(filepath.Join(dir, m.Name), testLogger(t))
		require.NoError(t, err)
		ids = append(ids, id)
	}
	return ids
}

// testLogger logs to the test until it ends: the library may say a last word after that.
func testLogger(t *testing.T) *slog.Logger {
	w := &testWriter{t: t}
	t.Cleanup(w.close)
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

type testWriter struct {
	mu sync.Mutex
	t  *testing.T
}

func (w *testWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.t == nil {
		return len(b), nil
	}
	return w.t.Output().Write(b)
}

func (w *testWriter) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.t = nil
}

// start opens a node that leads when start returns, and that the test's end shuts down.
func start(t *testing.T, cfg Config) *Node {
	t.Helper()
	n, err := Open(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { stop(t, n) })
	require.NoError(t, n.WaitLeader(deadline(t)))
	return n
}

func stop(t *testing.T, n *Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	require.NoError(t, n.Shutdown(ctx))
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func now() fsm.Time { return fsm.At(time.Now()) }

func putOrg(name string) fsm.PutOrg {
	return fsm.PutOrg{Now: now(), Org: fsm.Org{ID: fsm.OrgID("org-" + name), Name: name}}
}

// apply applies commands that must be done.
func apply(t *testing.T, n *Node, cmds ...fsm.Command) fsm.Result {
	t.Helper()
	var res fsm.Result
	for _, cmd := range cmds {
		var err error
		res, err = n.Apply(deadline(t), cmd)
		require.NoError(t, err)
	}
	return res
}

func requireKind(t *testing.T, want fsm.Kind, err error) {
	t.Helper()
	var e *fsm.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, want, e.Kind, "%v", err)
}

// furnish gives a state in which sandboxes can be made.
func furnish(t *testing.T, n *Node) {
	t.Helper()
	apply(t, n, putOrg("a"),
		fsm.RegisterNode{Now: now(), Node: fsm.Node{
			ID: "node-a", Level: fsm.Level, Capacity: fsm.Capacity{VCPU: 100, MemoryMiB: 1 << 20, DiskMiB: 1 << 30},
		}},
		fsm.PutTemplate{Now: now(), Template: fsm.Template{ID: NewTemplateID(), Name: "system/busybox", Digest: "d"}})
}

// running makes a running sandbox, as an owner would.
func running(t *testing.T, n *Node, timeoutSec int64) fsm.Sandbox {
	t.Helper()
	in := apply(t, n, fsm.CreateSandbox{
		Now: now(), Intent: NewIntentID(), Org: "org-a", Sandbox: NewSandboxID(), TemplateName: "system/busybox",
		VCPU: 1, MemoryMiB: 512, DiskMiB: 1024, TimeoutSec: timeoutSec,
	}).Intent
	return *apply(t, n, fsm.Complete{Now: now(), Intent: in.ID, Owner: in.Owner, Epoch: in.Epoch}).Intent.ResultSandbox
}

func TestRestartKeepsState(t *testing.T) {
	dir := t.TempDir()
	n := start(t, testConfig(t, dir))
	apply(t, n, putOrg("one"), putOrg("two"), putOrg("three"))
	before, addr := n.State().Digest(), n.Addr()
	stop(t, n)

	n = start(t, testConfig(t, dir))
	require.Equal(t, before, n.State().Digest(), "what was done is there when the node leads again")
	require.Len(t, n.State().Orgs(), 3)

	// Port 0 gave another address; the membership follows.
	require.NotEqual(t, addr, n.Addr())
	require.Eventually(t, func() bool {
		servers := n.raft.GetConfiguration().Configuration().Servers
		return len(servers) == 1 && string(servers[0].Address) == n.Addr()
	}, time.Minute, time.Millisecond)
	apply(t, n, putOrg("four"))
}

func TestRefusals(t *testing.T) {
	n := start(t, testConfig(t, t.TempDir()))
	apply(t, n, putOrg("one"))
	cmd := putOrg("one")
	cmd.Org.ID = "org-other"
	res, err := n.Apply(deadline(t), cmd)
	requireKind(t, fsm.KindConflict, err)
	require.Equal(t, fsm.KindConflict, res.Err.Kind)

	last := n.Status().Last
	_, err = n.Apply(deadline(t), fsm.FinishRequest{Response: fsm.Response{Body: make([]byte, 1<<20)}})
	requireKind(t, fsm.KindTooLarge, err)
	require.Equal(t, last, n.Status().Last, "what is too large is not proposed")
}

func TestApplyWithEndedContext(t *testing.T) {
	n := start(t, testConfig(t, t.TempDir()))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	last := n.Status().Last
	_, err := n.Apply(ctx, putOrg("one"))
	requireKind(t, fsm.KindUnavailable, err)
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, last, n.Status().Last)
}

func TestAfterShutdown(t *testing.T) {
	n := start(t, testConfig(t, t.TempDir()))
	furnish(t, n)
	in := apply(t, n, fsm.CreateSandbox{
		Now: now(), Intent: NewIntentID(), Org: "org-a", Sandbox: NewSandboxID(), TemplateName: "system/busybox",
		VCPU: 1, MemoryMiB: 512, DiskMiB: 1024, TimeoutSec: 300,
	}).Intent
	waiting := make(chan error, 1)
	go func() {
		_, err := n.WaitIntent(context.Background(), in.ID)
		waiting <- err
	}()
	stop(t, n)
	requireKind(t, fsm.KindUnavailable, <-waiting)
	_, err := n.Apply(deadline(t), putOrg("late"))
	requireKind(t, fsm.KindUnavailable, err)
	_, err = n.Linearizable(deadline(t))
	requireKind(t, fsm.KindUnavailable, err)
	requireKind(t, fsm.KindUnavailable, n.WaitLeader(deadline(t)))
	require.False(t, n.IsLeader())
	require.Len(t, n.State().Orgs(), 1, "the last state stays readable")
	stop(t, n) // once more does nothing
}

// TestShutdownUnderLoad stops a node while proposals are under way: each ends with an answer, and what the answers say
// is what the log holds at the next start.
func TestShutdownUnderLoad(t *testing.T) {
	dir := t.TempDir()
	n := start(t, testConfig(t, dir))
	const proposers = 16
	outcomes := make([]map[string]error, proposers)
	var wg sync.WaitGroup
	begun := make(chan struct{}, proposers)
	for p := range proposers {
		outcomes[p] = map[string]error{}
		wg.Go(func() {
			for i := 0; ; i++ {
				name := fmt.Sprintf("p%d-%d", p, i)
				_, err := n.Apply(context.Background(), putOrg(name))
				outcomes[p][name] = err
				if i == 3 {
					begun <- struct{}{}
				}
				if err != nil {
					return
				}
			}
		})
	}
	for range proposers {
		<-begun
	}
	stop(t, n)
	wg.Wait()

	n = start(t, testConfig(t, dir))
	for _, o := range outcomes {
		for name, err := range o {
			_, there := n.State().OrgByName(name)
			var e *fsm.Error
			switch {
			case err == nil:
				require.True(t, there, "%s was done", name)
			case errors.As(err, &e) && e.Kind == fsm.KindUnavailable:
				require.False(t, there, "%s was certainly not applied", name)
			default:
				requireKind(t, fsm.KindUnknown, err)
			}
		}
	}
}

func TestOneNameManyProposers(t *testing.T) {
	n := start(t, testConfig(t, t.TempDir()))
	furnish(t, n)
	sandboxes := []fsm.Sandbox{running(t, n, 300), running(t, n, 300)}
	const proposers = 50
	errs := make([]error, proposers)
	var wg sync.WaitGroup
	for i := range proposers {
		wg.Go(func() {
			_, errs[i] = n.Apply(context.Background(), fsm.CreateSnapshot{
				Now: now(), Intent: NewIntentID(), Org: "org-a", Sandbox: sandboxes[i%2].ID, Snapshot: NewSnapshotID(),
				Name: "base", GeneratedName: "unused",
			})
		})
	}
	wg.Wait()
	done := 0
	for _, err := range errs {
		if err == nil {
			done++
			continue
		}
		requireKind(t, fsm.KindConflict, err)
	}
	require.Equal(t, 1, done)
	require.NoError(t, n.State().Check())
}

// TestSnapshotsAndTruncation lowers the thresholds so that the log is cut, and starts from a snapshot and a short log.
func TestSnapshotsAndTruncation(t *testing.T) {
	dir := t.TempDir()
	cfg := testConfig(t, dir)
	cfg.SnapshotInterval, cfg.SnapshotThreshold, cfg.TrailingLogs = 10*time.Millisecond, 8, 2
	n := start(t, cfg)
	furnish(t, n)
	for range 30 {
		running(t, n, 300)
	}
	require.Eventually(t, func() bool {
		first, err := n.store.FirstIndex()
		return err == nil && first > 20
	}, time.Minute, 5*time.Millisecond, "the log is cut behind a snapshot")
	apply(t, n, putOrg("last"))
	before := n.State().Digest()
	stop(t, n)

	n = start(t, cfg)
	require.Equal(t, before, n.State().Digest())
	require.NoError(t, n.State().Check())
	apply(t, n, putOrg("next"))
}

func TestWaitIntent(t *testing.T) {
	n := start(t, testConfig(t, t.TempDir()))
	furnish(t, n)
	in := apply(t, n, fsm.CreateSandbox{
		Now: now(), Intent: NewIntentID(), Org: "org-a", Sandbox: NewSandboxID(), TemplateName: "system/busybox",
		VCPU: 1, MemoryMiB: 512, DiskMiB: 1024, TimeoutSec: 300,
	}).Intent
	short, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	got, err := n.WaitIntent(short, in.ID)
	requireKind(t, fsm.KindTimeout, err)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Equal(t, in, got, "the intent as it is")

	type answer struct {
		in  fsm.Intent
		err error
	}
	answers := make(chan answer, 10)
	for range cap(answers) {
		go func() {
			got, err := n.WaitIntent(context.Background(), in.ID)
			answers <- answer{got, err}
		}()
	}
	closed := apply(t, n, fsm.Complete{Now: now(), Intent: in.ID, Owner: in.Owner, Epoch: in.Epoch}).Intent
	for range cap(answers) {
		a := <-answers
		require.NoError(t, a.err)
		require.Equal(t, closed, a.in)
	}
	_, err = n.WaitIntent(deadline(t), "int-none")
	requireKind(t, fsm.KindNotFound, err)
}

func TestChangedMissesNothing(t *testing.T) {
	n := start(t, testConfig(t, t.TempDir()))
	const orgs = 200
	seen := make(chan int)
	go func() {
		for {
			changed := n.Changed()
			if len(n.State().Orgs()) == orgs {
				seen <- orgs
				return
			}
			<-changed
		}
	}()
	for i := range orgs {
		apply(t, n, putOrg(fmt.Sprint("o", i)))
	}
	require.Equal(t, orgs, <-seen)
}

func TestLinearizable(t *testing.T) {
	n := start(t, testConfig(t, t.TempDir()))
	s, err := n.Linearizable(deadline(t))
	require.NoError(t, err, "also when nothing but the barrier was committed")
	require.Empty(t, s.Orgs())
	var wg sync.WaitGroup
	for p := range 8 {
		wg.Go(func() {
			for i := range 20 {
				name := fmt.Sprintf("p%d-%d", p, i)
				if _, err := n.Apply(context.Background(), putOrg(name)); err != nil {
					t.Error(err)
				}
				s, err := n.Linearizable(context.Background())
				if err != nil {
					t.Error(err)
					return
				}
				if _, ok := s.OrgByName(name); !ok {
					t.Errorf("%s was done before the read", name)
				}
			}
		})
	}
	wg.Wait()
}

// TestTimePassesOnlyWhenDue has a sandbox beyond its timeout deleted by the leader, and an idle log that does not grow.
func TestTimePassesOnlyWhenDue(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	cfg.TickInterval = 10 * time.Millisecond
	n := start(t, cfg)
	furnish(t, n)
	sb := running(t, n, 1)
	for {
		changed := n.Changed()
		got, ok := n.State().Sandbox(sb.ID)
		require.True(t, ok)
		if got.State == fsm.SandboxDeleting {
			require.GreaterOrEqual(t, got.StateAt, sb.TimeoutAt)
			break
		}
		<-changed
	}
	last := n.Status().Last
	time.Sleep(20 * cfg.TickInterval)
	require.Equal(t, last, n.Status().Last, "nothing is due")
}

// TestUnknownEntryStopsTheNode puts an entry of a newer program into the log.
func TestUnknownEntryStopsTheNode(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	cfg.SnapshotInterval, cfg.SnapshotThreshold, cfg.TrailingLogs = 10*time.Millisecond, 1, 1
	n := start(t, cfg)
	apply(t, n, putOrg("one"))
	require.NoError(t, n.Failure())
	future := n.raft.Apply([]byte{1, 250, 1, 0x80}, time.Minute)
	after := n.raft.Apply(encode(t, putOrg("two")), time.Minute) // in the log behind it, if it gets there
	_, _ = future.Error(), after.Error()
	select {
	case <-n.Failed():
	case <-deadline(t).Done():
		t.Fatal("the node goes on")
	}
	require.ErrorIs(t, n.Failure(), fsm.ErrUnknownCommand)
	_, err := n.Apply(deadline(t), putOrg("three"))
	requireKind(t, fsm.KindUnavailable, err)
	require.Len(t, n.State().Orgs(), 1, "nothing behind the entry is applied")
	stop(t, n)
	require.Equal(t, raft.Shutdown, n.raft.State())

	// A restart meets it again: no snapshot has swallowed it.
	n, err = Open(cfg)
	require.NoError(t, err)
	defer stop(t, n)
	select {
	case <-n.Failed():
	case <-deadline(t).Done():
		t.Fatal("the entry was skipped")
	}
	require.Len(t, n.State().Orgs(), 1)
}

func encode(t *testing.T, cmd fsm.Command) []byte {
	b, err := fsm.Encode(cmd)
	require.NoError(t, err)
	return b
}

func TestOpenErrors(t *testing.T) {
	_, err := Open(Config{})
	require.ErrorContains(t, err, "identity is missing")
	cfg := testConfig(t, t.TempDir())
	_, err = Open(Config{Identity: cfg.Identity})
	require.ErrorContains(t, err, "folder")

	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = taken.Close() }()
	cfg.Addr = taken.Addr().String()
	_, err = Open(cfg)
	require.ErrorContains(t, err, "address already in use")

	cfg.Addr = "127.0.0.1:0" // what failed let go of everything
	start(t, cfg)
	_, err = Open(cfg)
	require.ErrorContains(t, err, "in use by another process")
	_, err = Open(Config{Identity: cfg.Identity, Dir: filepath.Join(cfg.Dir, "raft.db")})
	var pathErr *fs.PathError
	require.ErrorAs(t, err, &pathErr)
}

func TestWaitsToBeTakenIn(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	cfg.Voters = nil
	n, err := Open(cfg)
	require.NoError(t, err)
	defer stop(t, n)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	requireKind(t, fsm.KindTimeout, n.WaitLeader(ctx))
	_, err = n.Apply(deadline(t), putOrg("one"))
	requireKind(t, fsm.KindUnavailable, err)
	require.Zero(t, n.Status().Last, "it does not make a cluster of its own")
}

func TestShutdownLeavesNoGoroutine(t *testing.T) {
	for range 3 {
		n, err := Open(testConfig(t, t.TempDir()))
		require.NoError(t, err)
		require.NoError(t, n.WaitLeader(deadline(t)))
		apply(t, n, putOrg("one"))
		stop(t, n)
	}
	require.Eventually(t, func() bool { return ours() == 0 }, time.Minute, 10*time.Millisecond)
}

// ours counts the goroutines that run code of this package or of the Raft library, but for the test itself.
func ours() int {
	buf := make([]byte, 1<<20)
	count := 0
	for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		mine := strings.Contains(g, "cluster.(*Node)") || strings.Contains(g, "cluster.(*port)") ||
			strings.Contains(g, "hashicorp/raft")
		if mine && !strings.Contains(g, "testing.tRunner") {
			count++
		}
	}
	return count
}

package e2e

import (
	"crypto/rand"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"stillframe/fsm"
	"stillframe/httpd/client"
	"stillframe/hypervisor"
	"stillframe/hypervisor/vmm"
)

// point is a place at which the daemon dies.
type point struct {
	kind fsm.IntentKind
	step hypervisor.Step
	when string
}

func (p point) String() string { return place(p.kind, p.step, p.when) }

// points enumerates the places of a kind of intent, from the list that the program itself takes its names from.
func points(kind fsm.IntentKind) (all []point) {
	for i, s := range hypervisor.Steps[kind] {
		if !testing.Short() || i == 0 {
			all = append(all, point{kind, s, "before"})
		}
		all = append(all, point{kind, s, "after"})
	}
	return all
}

// isAfter tells whether everything up to and including a step has been done when the daemon dies at the point.
func (p point) isAfter(s hypervisor.Step) bool {
	steps := hypervisor.Steps[p.kind]
	at, of := slices.Index(steps, p.step), slices.Index(steps, s)
	return at > of || (at == of && p.when == "after")
}

// eachPoint runs check at every place of a kind and goes on after a failure only if the daemon runs.
func eachPoint(t *testing.T, n *node, kind fsm.IntentKind, check func(p point)) {
	t.Helper()
	require.NotEmpty(t, hypervisor.Steps[kind])
	for _, p := range points(kind) {
		began := time.Now()
		check(p)
		n.requireExact()
		t.Logf("%-32s %6.1f s", p, time.Since(began).Seconds())
	}
}

// TestCrashMatrixKnowsEveryKind fails when a kind of intent is added that no test below visits.
func TestCrashMatrixKnowsEveryKind(t *testing.T) {
	visited := []fsm.IntentKind{
		fsm.IntentCreate, fsm.IntentRestore, fsm.IntentSnapshot, fsm.IntentDelete, fsm.IntentDeleteSnapshot,
		fsm.IntentSetPolicy, // by TestKilledWhilePolicyChanges
	}
	for kind := range hypervisor.Steps {
		require.Contains(t, visited, kind)
	}
}

func TestCrashDuringCreate(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	eachPoint(t, n, fsm.IntentCreate, func(p point) {
		key := rand.Text()
		var first client.Sandbox
		err := n.dieAt(p.String(), func() (err error) {
			first, err = n.api.CreateSandbox(within(t), small(key))
			return err
		})
		n.start()
		sb, retryErr := n.api.CreateSandbox(within(t), small(key))
		require.NoError(t, retryErr, "%s\n%s", p, n.output())
		if err == nil {
			require.Equal(t, first.ID, sb.ID, "%s: answered before the end, and otherwise after it", p)
		}
		again, err := n.api.CreateSandbox(within(t), small(key))
		require.NoError(t, err)
		require.Equal(t, sb.ID, again.ID, "%s: one key, one sandbox", p)
		require.Equal(t, "running", again.State)
		require.Equal(t, sb.ID, n.exec(sb.ID, "hostname"))
		n.requireOne(sb.ID)
		require.NoError(t, n.api.DeleteSandbox(within(t), sb.ID))
	})
}

// requireOne fails unless a sandbox is the only one besides the given others.
func (n *node) requireOne(id string, others ...string) {
	n.t.Helper()
	n.requireExact()
	sandboxes, _ := n.listed()
	var ids []string
	for _, sb := range sandboxes {
		if !slices.Contains(others, sb.ID) {
			ids = append(ids, sb.ID)
		}
	}
	require.Equal(n.t, []string{id}, ids)
}

// TestCrashDuringTheRest visits all other kinds, with one source VM that lives through all of it.
func TestCrashDuringTheRest(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	source := n.newGuest()
	run := func(name string, f func(t *testing.T)) {
		if !t.Failed() { // what comes after uses the same source
			t.Run(name, func(t *testing.T) {
				outer := n.t
				n.t = t
				defer func() { n.t = outer }()
				f(t)
			})
		}
	}
	run("snapshot", func(t *testing.T) {
		eachPoint(t, n, fsm.IntentSnapshot, func(p point) { crashSnapshot(t, source, p) })
	})
	run("kill source after", func(t *testing.T) { crashKillAfter(t, source) })
	run("VMM lost meanwhile", func(t *testing.T) { crashVMMLost(t, source) })
	run("restore", func(t *testing.T) {
		_, err := source.snapshot("base", "")
		require.NoError(t, err)
		eachPoint(t, n, fsm.IntentRestore, func(p point) { crashRestore(t, source, p) })
	})
	run("delete", func(t *testing.T) {
		eachPoint(t, n, fsm.IntentDelete, func(p point) { crashDelete(t, source, p) })
	})
	run("delete snapshot", func(t *testing.T) {
		eachPoint(t, n, fsm.IntentDeleteSnapshot, func(p point) { crashDeleteSnapshot(t, source, p) })
	})
	run("source", func(*testing.T) { source.requireRuns() })
}

func crashSnapshot(t *testing.T, source *guest, p point) {
	n, name, key := source.n, "crashed", rand.Text()
	counted := source.count()
	var first client.Snapshot
	err := n.dieAt(p.String(), func() (err error) {
		first, err = source.snapshot(name, key)
		return err
	})
	// The test's own teeth: in the pause the guest really stands still, and only the next start can end that.
	want := vmm.StateRunning
	if p.isAfter(hypervisor.StepPause) && !p.isAfter(hypervisor.StepResume) {
		want = vmm.StatePaused
	}
	require.Equal(t, want, n.vmState(source.id), "%s: while no daemon runs", p)
	n.start()
	if p.isAfter(hypervisor.StepPrepare) {
		// Not begun anew, so that nothing may hold the source any more from the moment the API answers.
		require.Equal(t, vmm.StateRunning, n.vmState(source.id), "%s: after the restart", p)
	}
	sn, retryErr := source.snapshot(name, key)
	if err == nil {
		require.NoError(t, retryErr, "%s: answered with success before the end", p)
		require.Equal(t, first.ID, sn.ID)
	}
	if p.isAfter(hypervisor.StepPublish) {
		require.NoError(t, retryErr, "%s: published data was given up", p)
	}
	again, againErr := source.snapshot(name, key)
	source.requireRuns()
	if retryErr != nil {
		require.Equal(t, http.StatusServiceUnavailable, client.Status(retryErr), "%s: %v", p, retryErr)
		require.ErrorContains(t, retryErr, "restarted")
		require.Equal(t, retryErr.Error(), againErr.Error(), "%s: one key, one answer", p)
		n.requireExact()
		source.requireNameFree(name)
		return
	}
	require.NoError(t, againErr)
	require.Equal(t, sn.ID, again.ID, "%s: one key, one snapshot", p)
	n.requireExact()
	clone := source.restore(name)
	clone.requireRuns()
	require.GreaterOrEqual(t, clone.count(), counted)
	clone.delete()
	_, err = source.snapshot(name, "")
	require.Equal(t, http.StatusConflict, client.Status(err), "%s: the name is taken", p)
	require.NoError(t, n.api.DeleteSnapshot(within(t), sn.ID))
}

// crashKillAfter: where the snapshot is to be the end of its source, it is also after a crash.
func crashKillAfter(t *testing.T, source *guest) {
	n := source.n
	_, err := source.snapshot("origin", "")
	require.NoError(t, err)
	for _, at := range []string{
		place(fsm.IntentSnapshot, hypervisor.StepCapture, "after"),
		place(fsm.IntentSnapshot, hypervisor.StepPublish, "after"),
		place(fsm.IntentSnapshot, hypervisor.StepCommit, "after"),
	} {
		doomed := source.restore("origin")
		last := client.CreateSnapshot{Name: "last", KillSandboxAfter: true, IdempotencyKey: rand.Text()}
		_ = n.dieAt(at, func() error {
			_, err := n.api.CreateSnapshot(within(t), doomed.id, last)
			return err
		})
		n.start()
		sn, err := n.api.CreateSnapshot(within(t), doomed.id, last)
		if at == place(fsm.IntentSnapshot, hypervisor.StepCapture, "after") {
			require.Equal(t, http.StatusServiceUnavailable, client.Status(err), "%v", err)
			doomed.requireRuns() // no snapshot, so it is not killed either
			doomed.delete()
			continue
		}
		require.NoError(t, err, "%s\n%s", at, n.output())
		n.requireGone(doomed.id)
		n.requireExact()
		clone := source.restore("last")
		clone.requireRuns()
		clone.delete()
		require.NoError(t, n.api.DeleteSnapshot(within(t), sn.ID))
	}
	n.deleteSnapshotNamed("origin")
	n.requireExact()
}

// crashVMMLost: the daemon dies during a snapshot, and the source's VMM before the next start.
func crashVMMLost(t *testing.T, source *guest) {
	n := source.n
	_, err := source.snapshot("origin", "")
	require.NoError(t, err)
	for _, p := range []point{
		{fsm.IntentSnapshot, hypervisor.StepCapture, "after"},
		{fsm.IntentSnapshot, hypervisor.StepPublish, "after"},
		{fsm.IntentSnapshot, hypervisor.StepCommit, "after"},
	} {
		victim, key := source.restore("origin"), rand.Text()
		_ = n.dieAt(p.String(), func() error { _, err := victim.snapshot("last", key); return err })
		n.signalVMM(victim.id, unix.SIGKILL)
		n.start()
		_, err := victim.snapshot("last", key)
		n.requireStopped(victim.id)
		n.requireExact()
		if p.isAfter(hypervisor.StepPublish) {
			require.NoError(t, err, "%s: a complete snapshot needs its source no more", p)
			clone := source.restore("last")
			clone.requireRuns()
			clone.delete()
			n.deleteSnapshotNamed("last")
		} else {
			require.Error(t, err, "%s", p)
			source.requireNameFree("last")
		}
		victim.delete()
		n.requireExact()
	}
	n.deleteSnapshotNamed("origin")
}

func crashRestore(t *testing.T, source *guest, p point) {
	n, in := source.n, client.RestoreSnapshot{SnapshotName: "base", Timeout: 3600, IdempotencyKey: rand.Text()}
	var first client.Sandbox
	err := n.dieAt(p.String(), func() (err error) {
		first, err = n.api.RestoreSnapshot(within(t), in)
		return err
	})
	n.start()
	sb, retryErr := n.api.RestoreSnapshot(within(t), in)
	require.NoError(t, retryErr, "%s\n%s", p, n.output())
	if err == nil {
		require.Equal(t, first.ID, sb.ID)
	}
	again, err := n.api.RestoreSnapshot(within(t), in)
	require.NoError(t, err)
	require.Equal(t, sb.ID, again.ID, "%s: one key, one sandbox", p)
	clone := &guest{n: n, id: sb.ID, memory: source.memory, disk: source.disk}
	clone.requireRuns()
	require.Equal(t, sb.ID, n.exec(sb.ID, "hostname"))
	n.requireOne(sb.ID, source.id)
	clone.delete()
}

func crashDelete(t *testing.T, source *guest, p point) {
	n := source.n
	doomed := source.restore("base")
	_ = n.dieAt(p.String(), func() error { return n.api.DeleteSandbox(within(t), doomed.id) })
	n.start()
	n.requireGone(doomed.id)
	require.Equal(t, http.StatusNotFound, client.Status(n.api.DeleteSandbox(within(t), doomed.id)))
	source.requireRuns()
}

func crashDeleteSnapshot(t *testing.T, source *guest, p point) {
	n := source.n
	sn, err := source.snapshot("doomed", "") // the same name every time: it must be free again
	require.NoError(t, err, "%s", p)
	_ = n.dieAt(p.String(), func() error { return n.api.DeleteSnapshot(within(t), sn.ID) })
	n.start()
	deadline := time.Now().Add(patience)
	for client.Status(n.api.DeleteSnapshot(within(t), sn.ID)) != http.StatusNotFound {
		require.True(t, time.Now().Before(deadline), "%s: it is still there", p)
		time.Sleep(20 * time.Millisecond)
	}
}

// requireGone waits until a sandbox is not there any more.
func (n *node) requireGone(id string) {
	n.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		_, err := n.api.Sandbox(within(n.t), id)
		if client.Status(err) == http.StatusNotFound {
			return
		}
		require.NoError(n.t, err)
		require.True(n.t, time.Now().Before(deadline), "%s is still there\n%s", id, n.output())
		time.Sleep(20 * time.Millisecond)
	}
}

// requireStopped waits until a sandbox is stopped, and fails unless it says why.
func (n *node) requireStopped(id string) client.Sandbox {
	n.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		sb, err := n.api.Sandbox(within(n.t), id)
		require.NoError(n.t, err)
		if sb.State == "stopped" {
			require.NotEmpty(n.t, sb.StateReason)
			return sb
		}
		require.True(n.t, time.Now().Before(deadline), "%s is %s\n%s", id, sb.State, n.output())
		time.Sleep(20 * time.Millisecond)
	}
}

func (n *node) deleteSnapshotNamed(name string) {
	n.t.Helper()
	list, err := n.api.Snapshots(within(n.t), client.ListOptions{Query: name})
	require.NoError(n.t, err)
	for _, sn := range list.Items {
		if sn.Name == name {
			require.NoError(n.t, n.api.DeleteSnapshot(within(n.t), sn.ID))
		}
	}
}

package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"stillframe/httpd/client"
	"stillframe/hypervisor/vmm"
)

// intentDeadline is short enough to wait for and long enough for every step of the smallest sandbox.
const intentDeadline = 40 * time.Second

// requireClear fails unless an error is an answer with a status and words that a person can act on.
func requireClear(t *testing.T, err error, status int, words string) {
	t.Helper()
	require.Equal(t, status, client.Status(err), "%v", err)
	require.ErrorContains(t, err, words)
	for _, private := range []string{"/snapshots/", "/sandboxes/", "vmm.sock"} {
		require.NotContains(t, err.Error(), private, "a path of the host")
	}
}

// TestFaultyVMM lets VMMs die, hang and lie while a snapshot is taken. Every VM but the first is a clone of it.
func TestFaultyVMM(t *testing.T) {
	n := newNode(t, "--intent-deadline", intentDeadline.String())
	source := n.newGuest()
	_, err := source.snapshot("origin", "")
	require.NoError(t, err)
	run := func(name string, f func(t *testing.T)) {
		t.Run(name, func(t *testing.T) {
			outer := n.t
			n.t = t
			defer func() { n.t = outer }()
			f(t)
			source.requireRuns()
			n.requireExact()
		})
	}
	for _, at := range []string{
		"snapshot/pause/before", "snapshot/vm-snapshot/before", "snapshot/capture/before", "snapshot/resume/before",
		"snapshot/digest/before",
	} {
		run("killed at "+at, func(t *testing.T) { killedDuringSnapshot(t, source, at) })
	}
	run("killed while idle", func(t *testing.T) { killedWhileIdle(t, source) })
	run("killed while a command runs", func(t *testing.T) { killedDuringExec(t, source) })
	run("killed while no daemon runs", func(t *testing.T) { killedWhileAlone(t, source) })
	run("killed while it is restored", func(t *testing.T) { killedDuringRestore(t, source) })
	run("lies", func(t *testing.T) { truncatedState(t, source) })
	run("lies in what was published", func(t *testing.T) { truncatedLater(t, source) })
	hangs := []string{"snapshot/pause/before", "snapshot/vm-snapshot/before", "snapshot/resume/before"}
	if testing.Short() {
		hangs = hangs[1:2]
	}
	// These wait for the deadline, so it is made short first: nothing here is restored under it.
	n.stop()
	n.args = []string{"--intent-deadline", "8s"}
	n.start()
	for _, at := range hangs {
		run("hangs at "+at, func(t *testing.T) { hangsDuringSnapshot(t, source, at) })
	}
}

func killedDuringSnapshot(t *testing.T, source *guest, at string) {
	n, victim := source.n, source.restore("origin")
	g := n.holdAt(at, func() error { _, err := victim.snapshot("wanted", ""); return err })
	n.signalVMM(victim.id, unix.SIGKILL)
	err := g.open()
	sb := n.requireStopped(victim.id)
	require.Contains(t, sb.StateReason, "VMM")
	n.requireExact()
	if err == nil {
		// Everything had been captured when it died.
		require.Equal(t, "snapshot/digest/before", at)
		clone := source.restore("wanted")
		clone.requireRuns()
		clone.delete()
		n.deleteSnapshotNamed("wanted")
	} else {
		requireClear(t, err, http.StatusConflict, "the sandbox has stopped")
		source.requireNameFree("wanted")
	}
	victim.refusesWork()
	victim.delete()
}

// refusesWork: a stopped sandbox answers every use with the same conflict.
func (g *guest) refusesWork() {
	g.n.t.Helper()
	_, err := g.n.api.Exec(within(g.n.t), g.id, client.Exec{Command: "true"})
	requireClear(g.n.t, err, http.StatusConflict, "stopped")
	_, err = g.snapshot("never", "")
	requireClear(g.n.t, err, http.StatusConflict, "stopped")
}

func killedWhileIdle(t *testing.T, source *guest) {
	n, victim := source.n, source.restore("origin")
	n.signalVMM(victim.id, unix.SIGKILL)
	sb := n.requireStopped(victim.id)
	require.Contains(t, sb.StateReason, "its VMM ended: signal: killed")
	n.requireExact()
	victim.refusesWork()
	victim.delete()
}

func killedDuringExec(t *testing.T, source *guest) {
	n, victim := source.n, source.restore("origin")
	result := make(chan error, 1)
	go func() {
		_, err := n.api.Exec(within(t), victim.id, client.Exec{Command: "touch /dev/shm/begun; sleep 600", Timeout: 900})
		result <- err
	}()
	n.exec(victim.id, "while ! [ -e /dev/shm/begun ]; do usleep 10000; done")
	n.signalVMM(victim.id, unix.SIGKILL)
	select {
	case err := <-result:
		require.GreaterOrEqual(t, client.Status(err), 500, "%v", err)
	case <-time.After(patience / 2):
		t.Fatal("the call waits for a VM that has ended")
	}
	n.requireStopped(victim.id)
	victim.delete()
}

func killedWhileAlone(t *testing.T, source *guest) {
	n, victim, survivor := source.n, source.restore("origin"), source
	counted := survivor.count()
	n.stop()
	require.Equal(t, vmm.StateRunning, n.vmState(survivor.id), "SIGTERM to the daemon ends no VM")
	n.signalVMM(victim.id, unix.SIGKILL)
	n.start()
	sb := n.requireStopped(victim.id)
	require.Contains(t, sb.StateReason, "while the daemon was not running")
	survivor.requireRuns()
	require.Greater(t, survivor.count(), counted, "the guest went on without a daemon")
	victim.refusesWork()
	victim.delete()
}

func killedDuringRestore(t *testing.T, source *guest) {
	n := source.n
	g := n.holdAt("restore/guest-ready/before", func() error {
		_, err := n.api.RestoreSnapshot(within(t), client.RestoreSnapshot{SnapshotName: "origin"})
		return err
	})
	sandboxes, _ := n.listed()
	for _, sb := range sandboxes {
		if sb.State == "starting" {
			n.signalVMM(sb.ID, unix.SIGKILL)
		}
	}
	began := time.Now()
	requireClear(t, g.open(), http.StatusInternalServerError, "could not be restored")
	require.Less(t, time.Since(began), intentDeadline, "the end of the VMM was noticed, not waited out")
}

func truncatedState(t *testing.T, source *guest) {
	n := source.n
	g := n.holdAt("snapshot/verify/before", func() error { _, err := source.snapshot("cut", ""); return err })
	files, err := filepath.Glob(filepath.Join(n.dir, "snapshots", "*.tmp", "state.json"))
	require.NoError(t, err)
	require.Len(t, files, 1)
	st, err := os.Stat(files[0])
	require.NoError(t, err)
	require.NoError(t, os.Truncate(files[0], st.Size()/2))
	requireClear(t, g.open(), http.StatusInternalServerError, "step verify")
	n.requireExact()
	source.requireRuns()
	source.requireNameFree("cut")
}

// truncatedLater: data that decays after it was published fails the restore, cleanly.
func truncatedLater(t *testing.T, source *guest) {
	n := source.n
	sn, err := source.snapshot("decayed", "")
	require.NoError(t, err)
	state := filepath.Join(n.dir, "snapshots", sn.ID, "state.json")
	whole, err := os.ReadFile(state)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(state, whole[:len(whole)/2], 0o600))
	_, err = n.api.RestoreSnapshot(within(t), client.RestoreSnapshot{SnapshotName: "decayed"})
	requireClear(t, err, http.StatusInternalServerError, "could not be restored")
	n.requireExact()
	require.NoError(t, n.api.DeleteSnapshot(within(t), sn.ID))
}

func hangsDuringSnapshot(t *testing.T, source *guest, at string) {
	n := source.n
	proc := n.vmmOf(source.id)
	g := n.holdAt(at, func() error { _, err := source.snapshot("hung", ""); return err })
	n.signalVMM(source.id, unix.SIGSTOP)
	requireStandsStill(t, proc.Record().PID)
	defer func() {
		if proc.Alive() {
			n.signalVMM(source.id, unix.SIGCONT)
		}
	}()
	requireClear(t, g.open(), http.StatusGatewayTimeout, "in time: "+step(at))
	list, err := n.api.Snapshots(within(t), client.ListOptions{Query: "hung"})
	require.NoError(t, err)
	require.Empty(t, list.Items)
	// The daemon goes on serving meanwhile.
	_, err = n.api.Sandbox(within(t), source.id)
	require.NoError(t, err)
	n.signalVMM(source.id, unix.SIGCONT)
	n.requireSettled(source.id)
	source.requireRuns()
	n.requireExact()
	source.requireNameFree("hung")
}

func step(at string) string { return "step " + strings.Split(at, "/")[1] }

// requireSettled waits until a VM runs and goes on running: what had queued up in a hanging VMM's socket has been
// carried out by then.
func (n *node) requireSettled(id string) {
	n.t.Helper()
	deadline := time.Now().Add(patience)
	for since := time.Now(); time.Since(since) < 3*time.Second; {
		if n.vmState(id) != vmm.StateRunning {
			since = time.Now()
		}
		require.True(n.t, time.Now().Before(deadline), "the VM is left paused\n%s", n.output())
		time.Sleep(50 * time.Millisecond)
	}
}

// requireStandsStill waits until every thread of a stopped process stands still: the signal is only on its way when
// sending it returns, and a thread that still ran would answer the next request.
func requireStandsStill(t *testing.T, pid int) {
	t.Helper()
	require.Eventually(t, func() bool {
		stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		if err != nil || len(stats) == 0 {
			return false
		}
		for _, file := range stats {
			raw, err := os.ReadFile(file)
			_, after, found := strings.Cut(string(raw), ") ")
			if err != nil || !found || !strings.HasPrefix(after, "T") {
				return false
			}
		}
		return true
	}, 10*time.Second, time.Millisecond)
}

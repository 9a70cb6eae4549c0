package fsm

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestLateAndForeignCompletions(t *testing.T) {
	w := newWorld(t)
	in := w.ok(w.create("sbx-1")).Intent
	for _, change := range []func(*Complete){
		func(c *Complete) { c.Owner = "node-2" },
		func(c *Complete) { c.Epoch = 0 },
		func(c *Complete) { c.Epoch = 2 },
		func(c *Complete) { c.Intent = "int-x" },
	} {
		c := w.complete(in, nil)
		change(&c)
		w.refused(c, KindSuperseded, string(c.Intent))
	}
	w.refused(Complete{Now: w.now}, KindInvalid, "intent's id")
	w.fail(in, "too slow")
	res := w.refused(w.complete(in, nil), KindSuperseded, "int-create-sbx-1 is failed")
	require.Equal(t, IntentFailed, res.Intent.State, "the owner sees how its intent was closed")
	_, ok := w.s.Sandbox("sbx-1")
	require.False(t, ok, "a late completion brings nothing back")
}

func TestCompletionOfAnEarlierIntent(t *testing.T) {
	w := newWorld(t)
	w.running("sbx-1")
	first := w.ok(w.snap("sbx-1", "snap-1", "one")).Intent
	w.fail(first, "no")
	second := w.ok(w.snap("sbx-1", "snap-2", "one")).Intent
	w.refused(w.complete(first, &testManifest), KindSuperseded, "is failed")
	require.Equal(t, SnapshotCreating, w.snapshot("snap-2").State)
	w.done(second, &testManifest)
}

func TestLongErrorsAreCut(t *testing.T) {
	w := newWorld(t)
	in := w.ok(w.create("sbx-1")).Intent
	closed := w.fail(in, strings.Repeat("x", 20_000))
	require.Len(t, closed.Error.Message, maxErrorBytes)
}

func TestCausesStayInTheProcess(t *testing.T) {
	w := newWorld(t)
	in := w.ok(w.create("sbx-1")).Intent
	c := w.complete(in, nil)
	c.Error = Wrap(KindInternal, Errorf(KindInternal, "secret"), "message")
	next, res := w.s.Apply(c) // not through the log: the cause is still there
	require.Nil(t, res.Err)
	require.Nil(t, res.Intent.Error.Unwrap())
	require.Equal(t, "message", res.Intent.Error.Error())
	require.NoError(t, next.Check())
}

func TestTimeouts(t *testing.T) {
	w := newWorld(t)
	sb := w.running("sbx-1")
	w.running("sbx-2")
	busy := w.ok(w.snap("sbx-2", "snap-1", "base")).Intent

	w.now = sb.TimeoutAt - 1
	n, due := w.s.Due(w.now)
	require.Zero(t, n)
	require.False(t, due)
	w.now = sb.TimeoutAt
	n, due = w.s.Due(w.now)
	require.Equal(t, 1, n, "a sandbox with an intent open is not deleted under it")
	require.True(t, due)

	w.ok(Tick{Now: w.now})
	require.Equal(t, SandboxRunning, w.sandbox("sbx-1").State, "without an id the deletion waits")
	w.ok(Tick{Now: w.now, IntentIDs: []IntentID{"", busy.ID, "int-t"}})
	in, ok := w.s.Intent("int-t")
	require.True(t, ok, "ids that are no good are passed over")
	require.Equal(t, SandboxID("sbx-1"), in.Sandbox)
	require.Equal(t, SandboxDeleting, w.sandbox("sbx-1").State)
	_, due = w.s.Due(w.now)
	require.False(t, due)

	w.fail(in, "busy")
	n, _ = w.s.Due(w.now.Add(DeleteRetry) - 1)
	require.Zero(t, n, "a failed deletion is not repeated at once")
	n, _ = w.s.Due(w.now.Add(DeleteRetry))
	require.Equal(t, 1, n)

	w.done(busy, &testManifest)
	w.pass(DeleteRetry)
	w.ok(Tick{Now: w.now, IntentIDs: []IntentID{"int-t1"}})
	require.Equal(t, SandboxDeleting, w.sandbox("sbx-1").State, "ids go to sandboxes in their order")
	require.Equal(t, SandboxRunning, w.sandbox("sbx-2").State)
	w.ok(Tick{Now: w.now, IntentIDs: []IntentID{"int-t2", "int-t3"}})
	require.Equal(t, SandboxDeleting, w.sandbox("sbx-2").State)
	_, ok = w.s.Intent("int-t3")
	require.False(t, ok)
	w.refused(Tick{}, KindInvalid, "time")
}

func TestClosedIntentsAreForgotten(t *testing.T) {
	w := newWorld(t)
	in := w.ok(w.create("sbx-1")).Intent
	w.pass(time.Hour)
	w.ok(Tick{Now: w.now})
	_, ok := w.s.Intent(in.ID)
	require.True(t, ok, "an open intent stays, however old")
	w.done(in, nil)
	w.pass(IntentRetention - 1)
	w.ok(Tick{Now: w.now})
	_, ok = w.s.Intent(in.ID)
	require.True(t, ok)
	w.pass(1)
	w.ok(Tick{Now: w.now})
	_, ok = w.s.Intent(in.ID)
	require.False(t, ok)
	w.refused(w.complete(in, nil), KindSuperseded, "is gone")
}

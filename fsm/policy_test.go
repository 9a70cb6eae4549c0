package fsm

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestSetNetworkPolicy(t *testing.T) {
	w := newWorld(t)
	c := w.create("sbx-1")
	c.NetworkPolicy = &NetworkPolicy{Mode: PolicyDenyAll}
	before := *w.done(w.ok(c).Intent, nil).ResultSandbox
	w.pass(time.Second)
	in := w.ok(w.setPolicy("sbx-1", "int-p")).Intent
	require.Equal(t, IntentSetPolicy, in.Kind)
	require.Equal(t, "sealed-a", in.NetworkPolicy.Transforms[0].InjectHeaders["x-a"], "the owner finds what to do")
	require.Equal(t, []Intent{in}, w.s.OpenIntents("node-1"))

	sb := w.sandbox("sbx-1")
	require.Equal(t, SandboxRunning, sb.State)
	require.Equal(t, in.ID, sb.Intent)
	require.Equal(t, before.Epoch+1, sb.Epoch)
	require.Equal(t, PolicyDenyAll, sb.NetworkPolicy.Mode, "not before it is in force")
	require.Equal(t, before.StateAt, sb.StateAt)

	closed := w.done(in, nil)
	sb = w.sandbox("sbx-1")
	require.Empty(t, sb.Intent)
	require.Equal(t, w.setPolicy("", "").Policy, *sb.NetworkPolicy, "with what is sealed")
	require.Equal(t, SandboxRunning, closed.ResultSandbox.State)
	require.Equal(t, map[string]string{"x-a": "", "x-b": ""},
		closed.ResultSandbox.NetworkPolicy.Transforms[0].InjectHeaders)
	kept, ok := w.s.Intent("int-p")
	require.True(t, ok)
	require.Equal(t, closed.State, kept.State)
	require.Empty(t, kept.NetworkPolicy.Transforms[0].InjectHeaders["x-a"], "what is closed holds no secrets")
}

func TestSetNetworkPolicyRefusals(t *testing.T) {
	w := newWorld(t)
	w.running("sbx-1")
	w.refused(SetNetworkPolicy{Now: w.now, Org: "org-a", Sandbox: "sbx-1", Policy: NetworkPolicy{Mode: PolicyDenyAll}},
		KindInvalid, "intent's id")
	bad := w.setPolicy("sbx-1", "int-p")
	bad.Policy.Mode = "off"
	w.refused(bad, KindInvalid, "mode")
	w.refused(w.setPolicy("sbx-x", "int-p"), KindNotFound, "sbx-x")
	other := w.setPolicy("sbx-1", "int-p")
	other.Org = "org-b"
	w.refused(other, KindNotFound, "sbx-1 not found")
	w.refused(w.setPolicy("sbx-1", "int-create-sbx-1"), KindConflict, "already exists")

	starting := w.ok(w.create("sbx-2")).Intent
	w.refused(w.setPolicy("sbx-2", "int-p"), KindConflict, "is starting")
	w.done(starting, nil)
	snapshotting := w.ok(w.snap("sbx-2", "snap-1", "base")).Intent
	w.refused(w.setPolicy("sbx-2", "int-p"), KindConflict, "is snapshotting")
	w.done(snapshotting, &testManifest)
	sb := w.sandbox("sbx-2")
	w.ok(ReportStopped{Now: w.now, Sandbox: sb.ID, Owner: sb.Owner, Epoch: sb.Epoch, Reason: "gone"})
	w.refused(w.setPolicy("sbx-2", "int-p"), KindConflict, "is stopped")
}

// What would have to wait for the policy is a conflict that says so, and works afterwards.
func TestConflictsWhileAPolicyIsReplaced(t *testing.T) {
	w := newWorld(t)
	sb := w.running("sbx-1")
	in := w.ok(w.setPolicy("sbx-1", "int-p")).Intent
	for _, cmd := range []Command{
		w.setPolicy("sbx-1", "int-p2"), w.snap("sbx-1", "snap-1", "base"),
		DeleteSandbox{Now: w.now, Intent: "int-d", Org: "org-a", Sandbox: "sbx-1"},
	} {
		w.refused(cmd, KindConflict, "network policy of sandbox sbx-1 is being replaced")
	}
	_, taken := w.s.SnapshotByName("org-a", "base")
	require.False(t, taken, "a refused snapshot takes no name")

	// It is not deleted at its timeout either, but as soon as the policy is settled.
	w.now = sb.TimeoutAt
	n, due := w.s.Due(w.now)
	require.Zero(t, n)
	require.False(t, due)
	w.ok(Tick{Now: w.now, IntentIDs: []IntentID{"int-t"}})
	require.Equal(t, SandboxRunning, w.sandbox("sbx-1").State)
	w.done(in, nil)
	n, _ = w.s.Due(w.now)
	require.Equal(t, 1, n)
	w.ok(Tick{Now: w.now, IntentIDs: []IntentID{"int-t"}})
	require.Equal(t, SandboxDeleting, w.sandbox("sbx-1").State)
}

func TestSetNetworkPolicyFails(t *testing.T) {
	w := newWorld(t)
	w.running("sbx-1")
	w.done(w.ok(w.setPolicy("sbx-1", "int-p1")).Intent, nil)
	before := w.sandbox("sbx-1").NetworkPolicy

	w.fail(w.ok(w.setPolicy("sbx-1", "int-p2")).Intent, "no rules")
	sb := w.sandbox("sbx-1")
	require.Equal(t, before, sb.NetworkPolicy, "the one before stands")
	require.Empty(t, sb.PolicyNote)

	in := w.ok(w.setPolicy("sbx-1", "int-p3")).Intent
	c := w.complete(in, nil)
	c.PolicyFellBack = true
	w.refused(c, KindInvalid, "fallen back")
	c.Error = Errorf(KindInternal, "rules went bad")
	w.ok(c)
	sb = w.sandbox("sbx-1")
	require.Equal(t, &NetworkPolicy{Mode: PolicyDenyAll}, sb.NetworkPolicy, "GET tells the truth")
	require.Contains(t, sb.PolicyNote, "rules went bad")
	require.Equal(t, SandboxRunning, sb.State)
	// A snapshot keeps what is in force at its instant.
	require.Equal(t, PolicyDenyAll, w.ready("sbx-1", "snap-1", "base").NetworkPolicy.Mode)

	w.done(w.ok(w.setPolicy("sbx-1", "int-p4")).Intent, nil)
	sb = w.sandbox("sbx-1")
	require.Equal(t, PolicyCustom, sb.NetworkPolicy.Mode)
	require.Empty(t, sb.PolicyNote)

	fell := w.complete(w.ok(w.snap("sbx-1", "snap-2", "other")).Intent, nil)
	fell.Error, fell.PolicyFellBack = Errorf(KindInternal, "no"), true
	w.refused(fell, KindInvalid, "fallen back")
}

// A VM that is lost under a replacement is reported by the owner in either way, and the replacement ends with it.
func TestStoppedUnderANewPolicy(t *testing.T) {
	for name, report := range map[string]func(w *world, in Intent, sb Sandbox) Command{
		"report": func(w *world, _ Intent, sb Sandbox) Command {
			return ReportStopped{Now: w.now, Sandbox: sb.ID, Owner: sb.Owner, Epoch: sb.Epoch, Reason: "the VM ended"}
		},
		"failed": func(w *world, in Intent, _ Sandbox) Command {
			c := w.complete(in, nil)
			c.Error, c.SandboxStopped = Errorf(KindConflict, "the VM ended"), "the VM ended"
			return c
		},
		"done": func(w *world, in Intent, _ Sandbox) Command {
			c := w.complete(in, nil)
			c.SandboxStopped = "the VM ended"
			return c
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			before := w.running("sbx-1")
			rq := w.setPolicy("sbx-1", "int-p")
			rq.Request = Request{Key: "k"}
			in := w.ok(rq).Intent
			old := before
			w.refused(ReportStopped{Now: w.now, Sandbox: old.ID, Owner: old.Owner, Epoch: old.Epoch, Reason: "x"},
				KindSuperseded, "at epoch")
			w.ok(report(w, in, w.sandbox("sbx-1")))
			sb := w.sandbox("sbx-1")
			require.Equal(t, SandboxStopped, sb.State)
			require.Equal(t, "the VM ended", sb.StateReason)
			require.Empty(t, sb.Intent)
			require.Empty(t, w.s.OpenIntents("node-1"))
			closed, ok := w.s.Intent("int-p")
			require.True(t, ok)
			require.Equal(t, SandboxStopped, closed.ResultSandbox.State)
			require.Equal(t, name == "done", closed.State == IntentDone)
			require.Equal(t, name == "done", sb.NetworkPolicy != nil)
			w.refused(w.complete(in, nil), KindSuperseded, "int-p is")
			res := w.apply(rq)
			require.True(t, res.Replayed)
			require.Equal(t, closed.State, res.Intent.State)
			w.ok(DeleteSandbox{Now: w.now, Intent: "int-d", Org: "org-a", Sandbox: "sbx-1"})
		})
	}
}

func TestCAFollowsSnapshots(t *testing.T) {
	w := newWorld(t)
	c := w.create("sbx-1")
	c.CA = bytes.Repeat([]byte("x"), maxSealedCABytes+1)
	w.refused(c, KindInvalid, "sealed CA")
	c.CA = []byte("sealed-1")
	require.Nil(t, w.done(w.ok(c).Intent, nil).ResultSandbox.CA, "results hold no secrets")
	require.Equal(t, []byte("sealed-1"), w.sandbox("sbx-1").CA)
	w.ready("sbx-1", "snap-1", "base")
	require.Equal(t, []byte("sealed-1"), w.snapshot("snap-1").CA)

	r := w.restore("base", "sbx-2")
	r.CA = bytes.Repeat([]byte("x"), maxSealedCABytes+1)
	w.refused(r, KindInvalid, "sealed CA")
	r.CA = []byte("fresh")
	w.done(w.ok(r).Intent, nil)
	require.Equal(t, []byte("sealed-1"), w.sandbox("sbx-2").CA, "a restored process goes on trusting its own")

	w.done(w.ok(DeleteSandbox{Now: w.now, Intent: "int-d", Org: "org-a", Sandbox: "sbx-2"}).Intent, nil)
	w.running("sbx-3") // as an older version made it
	w.ready("sbx-3", "snap-2", "old")
	r = w.restore("old", "sbx-4")
	r.CA = []byte("fresh")
	w.done(w.ok(r).Intent, nil)
	require.Equal(t, []byte("fresh"), w.sandbox("sbx-4").CA)
}

func TestReseal(t *testing.T) {
	w := newWorld(t)
	c, policy := w.create("sbx-1"), w.setPolicy("", "").Policy
	c.CA, c.NetworkPolicy = []byte("ca-1"), &policy
	w.done(w.ok(c).Intent, nil)
	w.ready("sbx-1", "snap-1", "base")
	w.running("sbx-2")
	in := w.ok(w.setPolicy("sbx-2", "int-p")).Intent
	w.running("sbx-3") // has nothing sealed

	sealed := w.s.Sealed()
	require.Len(t, sealed, 3)
	require.Equal(t, SandboxID("sbx-1"), sealed[0].Sandbox)
	require.Equal(t, SnapshotID("snap-1"), sealed[1].Snapshot)
	require.Equal(t, IntentID("int-p"), sealed[2].Intent)

	header := []SealSwap{{Was: "sealed-a", Is: "sealed-a2"}}
	ca := &SealSwapCA{Was: []byte("ca-1"), Is: []byte("ca-2")}
	w.refused(Reseal{Now: w.now, Headers: header}, KindInvalid, "must be named")
	w.refused(Reseal{Now: w.now, Sandbox: "sbx-1", Snapshot: "snap-1", Headers: header}, KindInvalid, "must be named")
	w.refused(Reseal{Now: w.now, Sandbox: "sbx-x", Headers: header}, KindConflict, "changed meanwhile")
	w.refused(Reseal{Now: w.now, Sandbox: "sbx-3", Headers: header}, KindConflict, "changed meanwhile")
	w.refused(Reseal{Now: w.now, Intent: "int-p", Headers: header, CA: ca}, KindConflict, "changed meanwhile")
	w.refused(Reseal{Now: w.now, Intent: "int-create-sbx-1", Headers: header}, KindConflict, "changed meanwhile")
	w.refused(Reseal{Now: w.now, Sandbox: "sbx-1", CA: &SealSwapCA{Was: []byte("ca-1")}}, KindInvalid, "empty")

	for _, one := range []Reseal{
		{Now: w.now, Sandbox: "sbx-1", Headers: header, CA: ca}, {Now: w.now, Snapshot: "snap-1", Headers: header, CA: ca},
		{Now: w.now, Intent: "int-p", Headers: header},
	} {
		half := one
		half.Headers = append([]SealSwap{{Was: "not there", Is: "x"}}, header...)
		w.refused(half, KindConflict, "changed meanwhile")
		w.ok(one)
		w.refused(one, KindConflict, "changed meanwhile")
	}
	for _, v := range w.s.Sealed() {
		require.Equal(t, map[string]string{"x-a": "sealed-a2", "x-b": "sealed-b"}, v.Policy.Transforms[0].InjectHeaders)
		require.Equal(t, v.Intent == "", string(v.CA) == "ca-2")
	}
	require.Equal(t, "sealed-a", c.NetworkPolicy.Transforms[0].InjectHeaders["x-a"], "what was proposed is not written")

	w.done(in, nil)
	require.Equal(t, "sealed-a2", w.sandbox("sbx-2").NetworkPolicy.Transforms[0].InjectHeaders["x-a"])
	w.refused(Reseal{Now: w.now, Intent: "int-p", Headers: header}, KindConflict, "changed meanwhile")
	w.refused(Reseal{Sandbox: "sbx-1"}, KindInvalid, "time")
}

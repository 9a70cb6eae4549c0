package fsm

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestIdempotencyOfIntents(t *testing.T) {
	w := newWorld(t)
	key := Request{Key: "k1", BodyHash: [32]byte{7}}
	c := w.create("sbx-1")
	c.Request = key
	first := w.ok(c)
	require.False(t, first.Replayed)

	retry := w.create("sbx-2") // a retry brings new ids
	retry.Request = key
	res := w.ok(retry)
	require.True(t, res.Replayed)
	require.Equal(t, first.Intent, res.Intent)
	require.Equal(t, first.Request, res.Request)
	_, ok := w.s.Sandbox("sbx-2")
	require.False(t, ok)

	other := retry
	other.Request.BodyHash = [32]byte{8}
	w.refused(other, KindConflict, `Idempotency-Key "k1" was used for another request`)
	snap := w.snap("sbx-1", "snap-1", "base")
	snap.Request = Request{Key: "k1", BodyHash: [32]byte{9}}
	w.refused(snap, KindConflict, `"k1"`)
	foreign := retry
	foreign.Org = "org-b"
	require.False(t, w.ok(foreign).Replayed, "keys are an organization's own")

	closed := w.done(first.Intent, nil)
	w.pass(12 * time.Hour)
	w.ok(Tick{Now: w.now, IntentIDs: []IntentID{"int-t"}})
	in, _ := w.s.Intent("int-t")
	w.done(in, nil)
	res = w.ok(retry)
	require.True(t, res.Replayed)
	require.Equal(t, closed, res.Intent, "the answer stays, though the sandbox is gone")

	w.now = first.Request.ExpiresAt
	retry.Now, retry.Sandbox, retry.Intent = w.now, "sbx-3", "int-create-sbx-3"
	require.False(t, w.ok(retry).Replayed, "an expired record counts for nothing even before its Tick")
}

func TestIdempotencyOfRefusals(t *testing.T) {
	w := newWorld(t)
	w.running("sbx-1")
	w.ready("sbx-1", "snap-1", "base")
	conflict := w.snap("sbx-1", "snap-2", "base")
	conflict.Request = Request{Key: "k1", BodyHash: [32]byte{1}}
	first := w.refused(conflict, KindConflict, "already exists")
	require.False(t, first.Replayed)
	in := w.ok(DeleteSnapshot{Now: w.now, Intent: "int-d", Org: "org-a", Snapshot: "snap-1"}).Intent
	w.done(in, nil)
	again := w.refused(conflict, KindConflict, "already exists")
	require.True(t, again.Replayed, "the refusal is remembered, though the name is free now")
	require.Equal(t, first.Err, again.Err)

	full := w.create("sbx-2")
	full.VCPU, full.Request = 64, Request{Key: "k2", BodyHash: [32]byte{2}}
	w.refused(full, KindUnavailable, "64 vCPU")
	_, kept := w.s.Request("org-a", "k2")
	require.False(t, kept)
	w.ok(RegisterNode{Now: w.now, Node: Node{
		ID: "node-2", Capacity: Capacity{VCPU: 64, MemoryMiB: 1 << 20, DiskMiB: 1 << 20},
	}})
	require.False(t, w.ok(full).Replayed, "no capacity is no answer to keep")

	w.ok(PutOrg{Now: w.now, Org: Org{ID: "org-a", Name: "alpha", MaxSandboxes: 1}})
	limited := w.create("sbx-3")
	limited.Request = Request{Key: "k3"}
	w.refused(limited, KindLimit, "at most 1")
	w.ok(PutOrg{Now: w.now, Org: Org{ID: "org-a", Name: "alpha"}})
	require.False(t, w.ok(limited).Replayed)
}

func TestDataCalls(t *testing.T) {
	w := newWorld(t)
	begin := BeginRequest{Now: w.now, Org: "org-a", Request: Request{Key: "k", BodyHash: [32]byte{1}}}
	finish := FinishRequest{Now: w.now, Org: "org-a", Key: "k", Response: Response{
		Status: 200, ContentType: "application/json", Body: []byte(`{}`),
	}}
	w.refused(finish, KindNotFound, `"k"`)
	w.refused(BeginRequest{Now: w.now, Org: "org-a"}, KindInvalid, "Idempotency-Key is missing")
	w.refused(BeginRequest{Now: w.now, Org: "org-x", Request: begin.Request}, KindNotFound, "org-x")

	res := w.ok(begin)
	require.False(t, res.Replayed)
	require.Nil(t, res.Request.Response)
	res = w.ok(begin)
	require.True(t, res.Replayed)
	require.Nil(t, res.Request.Response, "under way, or its outcome unknown")

	big := finish
	big.Response.Body = make([]byte, MaxKeptBody+1)
	w.refused(big, KindTooLarge, "is not kept")
	require.False(t, w.ok(finish).Replayed)
	second := finish
	second.Response.Status = 500
	res = w.ok(second)
	require.True(t, res.Replayed)
	require.Equal(t, 200, res.Request.Response.Status, "the first answer stands")
	res = w.ok(begin)
	require.True(t, res.Replayed)
	require.Equal(t, &finish.Response, res.Request.Response)
	other := begin
	other.Request.BodyHash = [32]byte{2}
	w.refused(other, KindConflict, "another request")

	c := w.create("sbx-1")
	c.Request = Request{Key: "k-intent"}
	w.ok(c)
	w.refused(FinishRequest{Now: w.now, Org: "org-a", Key: "k-intent"}, KindNotFound, "no data call")
}

func TestRequestsExpire(t *testing.T) {
	w := newWorld(t)
	c := w.create("sbx-1")
	c.Request = Request{Key: "k"}
	first := w.ok(c)
	w.pass(RequestRetention - time.Minute)
	w.done(first.Intent, nil) // closed late: the waiting handler still finds it
	w.pass(time.Minute)
	_, due := w.s.Due(w.now)
	require.True(t, due)
	w.ok(Tick{Now: w.now})
	_, ok := w.s.Request("org-a", "k")
	require.False(t, ok)
	_, ok = w.s.Intent(first.Intent.ID)
	require.True(t, ok)
	w.pass(IntentRetention)
	w.ok(Tick{Now: w.now})
	_, ok = w.s.Intent(first.Intent.ID)
	require.False(t, ok)
}

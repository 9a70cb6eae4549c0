package httpd

import (
	"errors"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/fsm"
)

func TestWaitsEndWithTheStateOfThings(t *testing.T) {
	e := newEnv(t, func(c *Config) { c.Limits.Wait = 50 * time.Millisecond })
	running, restored := e.sandbox(), e.sandbox()
	snapshot := e.snapshot(restored, "ready")
	e.log.set(func() { e.log.outcome = func(fsm.Intent) *fsm.Complete { return nil } })

	for _, tc := range []struct {
		r         request
		id, state string
		words     string
	}{
		{
			request{method: "POST", path: create, body: `{"template_name":"system/busybox"}`},
			"sbx-", "starting", "still starting",
		},
		{request{method: "POST", path: restore, body: `{"snapshot_name":"ready"}`}, "sbx-", "starting", "still starting"},
		{
			request{method: "POST", path: "/v1/sandbox/" + running + "/snapshot/create", body: `{"name":"slow"}`},
			"snap-", "creating", `still being created; its name "slow" stays reserved`,
		},
		{request{method: "DELETE", path: "/v1/sandbox/" + restored}, restored, "deleting", "still being deleted"},
	} {
		tc.r.key = e.key
		resp := e.send(tc.r)
		require.Equal(t, 504, resp.status, "%s: %s", tc.r.path, resp.body)
		require.Contains(t, resp.message(t), tc.words)
		id := resp.text(t, "resource", "id")
		require.Contains(t, id, tc.id)
		require.Contains(t, resp.message(t), id)
		require.Equal(t, tc.state, resp.text(t, "resource", "state"))
	}
	// The clone that is starting keeps the snapshot in use, so its deletion is refused, not waited for.
	require.Equal(t, 409, e.do("DELETE", "/v1/snapshot/"+snapshot, nil).status)
	require.Equal(t, 409, e.do("DELETE", "/v1/sandbox/"+running, nil).status, "snapshotting is a transition")
	require.Equal(t, 409, e.do("POST", "/v1/sandbox/"+running+"/snapshot/create", `{"name":"other"}`).status)
	require.Equal(t, 409, e.do("POST", "/v1/sandbox/"+restored+"/snapshot/create", `{"name":"other"}`).status)
	require.Equal(t, 404, e.do("POST", restore, `{"snapshot_name":"slow"}`).status, "not ready yet")
	require.EqualValues(t, 1, e.do("GET", "/v1/snapshots", nil).object(t)["total_items"], "only ready ones are listed")

	// A retry under the same key waits for the same outcome.
	slow := e.keyed("POST", create, `{"template_name":"system/busybox"}`, "k")
	require.Equal(t, 504, slow.status)
	require.Contains(t, slow.message(t), "Idempotency-Key")
	e.log.closeOpen()
	again := e.keyed("POST", create, `{"template_name":"system/busybox"}`, "k")
	require.Equal(t, 201, again.status)
	require.Equal(t, slow.text(t, "resource", "id"), again.text(t, "id"))
}

func TestSlowSnapshotDeletion(t *testing.T) {
	e := newEnv(t, func(c *Config) { c.Limits.Wait = 50 * time.Millisecond })
	snapshot := e.snapshot(e.sandbox(), "s")
	e.log.set(func() { e.log.outcome = nil })
	resp := e.do("DELETE", "/v1/snapshot/"+snapshot, nil)
	require.Equal(t, 504, resp.status)
	require.Contains(t, resp.message(t), "still being deleted")
	require.EqualValues(t, 0, e.do("GET", "/v1/snapshots", nil).object(t)["total_items"])
	require.Equal(t, 409, e.do("DELETE", "/v1/snapshot/"+snapshot, nil).status)
	require.Equal(t, 404, e.do("POST", restore, `{"snapshot_name":"s"}`).status)
}

func TestFailedIntents(t *testing.T) {
	e := newEnv(t)
	source := e.sandbox()
	for kind, status := range map[fsm.Kind]int{
		fsm.KindInternal: 500, fsm.KindUnavailable: 503, fsm.KindTimeout: 504, fsm.KindConflict: 409,
	} {
		e.log.set(func() { e.log.outcome = failing(kind, "the guest did not boot") })
		resp := e.do("POST", create, `{"template_name":"system/busybox"}`)
		require.Equal(t, status, resp.status)
		require.Equal(t, "the guest did not boot", resp.message(t))
		require.Equal(t, status, e.do("POST", "/v1/sandbox/"+source+"/snapshot/create", `{"name":"s"}`).status)
	}
	e.log.set(func() { e.log.outcome = done })
	require.EqualValues(t, 1, e.do("GET", "/v1/sandboxes", nil).object(t)["total_items"])
	e.snapshot(source, "s")
}

func TestLimits(t *testing.T) {
	e := newEnv(t)
	org := e.org
	org.MaxSandboxes, org.MaxSnapshots = 2, 1
	e.log.must(t, fsm.PutOrg{Now: now(), Org: org})
	source := e.sandbox()
	e.snapshot(source, "s")
	require.Equal(t, 201, e.do("POST", restore, `{"snapshot_name":"s"}`).status)
	require.Equal(t, 429, e.do("POST", restore, `{"snapshot_name":"s"}`).status)
	require.Equal(t, 429, e.do("POST", create, `{"template_name":"system/busybox"}`).status)
	require.Equal(t, 429, e.do("POST", "/v1/sandbox/"+source+"/snapshot/create", nil).status)
}

func TestNoCapacity(t *testing.T) {
	e := newEnv(t)
	e.snapshot(e.sandbox(), "s")
	e.log.must(t, fsm.RegisterNode{Now: now(), Node: fsm.Node{ID: testNode, Capacity: fsm.Capacity{VCPU: 1}}})
	bodies := map[string]string{create: `{"template_name":"system/busybox"}`, restore: `{"snapshot_name":"s"}`}
	for path, body := range bodies {
		resp := e.do("POST", path, body)
		require.Equal(t, 503, resp.status)
		require.Equal(t, "1", resp.header.Get("Retry-After"))
	}
}

// Every kind of error has the status that its comment in package fsm gives it.
func TestKinds(t *testing.T) {
	want := map[fsm.Kind]int{
		fsm.KindInvalid: 400, fsm.KindUnauthorized: 401, fsm.KindNotFound: 404, fsm.KindConflict: 409, fsm.KindTooLarge: 413,
		fsm.KindLimit: 429, fsm.KindUnavailable: 503, fsm.KindUnknown: 503, fsm.KindTimeout: 504,
		fsm.KindNotSupported: 501, fsm.KindInternal: 500, fsm.KindSuperseded: 500, "new": 500,
	}
	for kind, status := range want {
		err := fsm.Wrap(kind, errors.New("a cause for the log"), "words")
		e := asAPIError(err)
		require.Equal(t, status, e.status(), kind)
		require.NotContains(t, e.message, "cause")
		require.ErrorContains(t, e, "cause")
		require.Equal(t, status == 503 || status == 429, e.retryAfter() != "")
	}
	e := asAPIError(errors.New("secret detail"))
	require.Equal(t, 500, e.status())
	require.Equal(t, "internal error", e.message)
}

func TestInternalErrorsStayInTheLog(t *testing.T) {
	e := newEnv(t)
	e.log.set(func() { e.log.refuse = func(fsm.Command) error { return errors.New("bolt: disk on fire") } })
	resp := e.do("POST", create, `{"template_name":"system/busybox"}`)
	require.Equal(t, 500, resp.status)
	require.NotContains(t, string(resp.body), "bolt")
	logs := e.logs.String()
	require.Contains(t, logs, "disk on fire")
	require.Contains(t, logs, resp.header.Get("X-Request-Id"))
}

func TestNoLeader(t *testing.T) {
	e := newEnv(t)
	sandbox := e.sandbox()
	for _, err := range []error{
		fsm.Errorf(fsm.KindUnavailable, "no leader"), fsm.Errorf(fsm.KindTimeout, "barrier"),
	} {
		e.log.set(func() {
			e.log.offline = err
			e.log.refuse = func(fsm.Command) error { return fsm.Errorf(fsm.KindUnavailable, "no leader") }
		})
		for _, r := range []request{
			{method: "GET", path: "/v1/sandboxes"}, {method: "GET", path: "/v1/snapshots"},
			{method: "GET", path: "/v1/templates"}, {method: "GET", path: "/v1/sandbox/" + sandbox},
			{method: "DELETE", path: "/v1/sandbox/" + sandbox},
			{method: "POST", path: create, body: `{"template_name":"system/busybox"}`},
			{method: "POST", path: "/v1/sandbox/" + sandbox + "/process/execute", body: `{"command":"x"}`},
		} {
			r.key = e.key
			resp := e.send(r)
			require.Equal(t, 503, resp.status, r.path)
			require.Equal(t, "1", resp.header.Get("Retry-After"))
		}
	}
}

func TestFiftyConcurrentCreationsOfAName(t *testing.T) {
	e := newEnv(t)
	const n = 50
	e.log.set(func() {
		e.log.outcome = func(in fsm.Intent) *fsm.Complete {
			if in.Kind == fsm.IntentSnapshot {
				time.Sleep(time.Millisecond)
			}
			return done(in)
		}
	})
	sandboxes := make([]string, n)
	for i := range sandboxes {
		sandboxes[i] = e.sandbox()
	}
	var mu sync.Mutex
	statuses := map[int]int{}
	start := make(chan struct{})
	var wg sync.WaitGroup
	for _, sandbox := range sandboxes {
		wg.Go(func() {
			<-start
			status := e.do("POST", "/v1/sandbox/"+sandbox+"/snapshot/create", map[string]any{"name": "the-one"}).status
			mu.Lock()
			defer mu.Unlock()
			statuses[status]++
		})
	}
	close(start)
	wg.Wait()
	require.Equal(t, map[int]int{http.StatusCreated: 1, http.StatusConflict: n - 1}, statuses)
	require.EqualValues(t, 1, e.do("GET", "/v1/snapshots", nil).object(t)["total_items"])
}

func TestFiftyConcurrentCreationsOnOneSandbox(t *testing.T) {
	e := newEnv(t)
	sandbox := e.sandbox()
	var mu sync.Mutex
	statuses := map[int]int{}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			status := e.do("POST", "/v1/sandbox/"+sandbox+"/snapshot/create", map[string]any{"name": "the-one"}).status
			mu.Lock()
			defer mu.Unlock()
			statuses[status]++
		})
	}
	wg.Wait()
	require.Equal(t, map[int]int{http.StatusCreated: 1, http.StatusConflict: 49}, statuses)
}

package httpd

import (
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/fsm"
)

func TestBuckets(t *testing.T) {
	r, at := newRates(), time.Unix(1000, 0)
	org := fsm.Org{ID: "org-a", MaxRequests: 30} // one every two seconds
	for range 30 {
		_, ok := r.take(org, at)
		require.True(t, ok)
	}
	wait, ok := r.take(org, at)
	require.False(t, ok)
	require.Equal(t, 2*time.Second, wait)
	_, ok = r.take(org, at.Add(-time.Hour))
	require.False(t, ok, "a clock that is set back gives nothing")
	at = at.Add(-time.Hour)
	wait, ok = r.take(org, at.Add(500*time.Millisecond))
	require.False(t, ok)
	require.InDelta(t, 1.5, wait.Seconds(), 1e-6)
	_, ok = r.take(org, at.Add(2*time.Second))
	require.True(t, ok)
	_, ok = r.take(org, at.Add(2*time.Second))
	require.False(t, ok)

	_, ok = r.take(fsm.Org{ID: "org-b", MaxRequests: 1}, at)
	require.True(t, ok, "another organization has its own")
	admitted := 0
	for range 100 {
		if _, ok := r.take(org, at.Add(time.Hour)); ok {
			admitted++
		}
	}
	require.Equal(t, 30, admitted, "an hour's rest is worth a minute")

	org.MaxRequests = 0
	for range 1000 {
		_, ok = r.take(org, at)
		require.True(t, ok)
	}
	require.Len(t, r.buckets, 1, "what has no bound is not remembered")
}

// Never more than the bound is admitted in one instant, however many ask at once.
func TestBucketsUnderConcurrency(t *testing.T) {
	r, at, org := newRates(), time.Unix(1000, 0), fsm.Org{ID: "org-a", MaxRequests: 50}
	var mu sync.Mutex
	var all sync.WaitGroup
	admitted := 0
	for range 8 {
		all.Go(func() {
			for range 20 {
				if _, ok := r.take(org, at); ok {
					mu.Lock()
					admitted++
					mu.Unlock()
				}
			}
		})
	}
	all.Wait()
	require.Equal(t, 50, admitted)
}

func TestRequestsAMinute(t *testing.T) {
	var mu sync.Mutex
	at := time.Now()
	e := newEnv(t, func(c *Config) {
		c.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return at }
	})
	_, _, otherKey := e.newOrg("two")
	resp := e.adm("PATCH", "/admin/v1/orgs/one", `{"max_requests_per_minute":3}`)
	require.Equal(t, 200, resp.status, "%s", resp.body)
	for range 3 {
		require.Equal(t, 200, e.do("GET", "/v1/sandboxes", nil).status)
	}
	for _, r := range []request{
		{method: "GET", path: "/v1/sandboxes"}, {method: "POST", path: create, body: `{"template_name":"system/busybox"}`},
		{method: "DELETE", path: "/v1/sandbox/sbx-x"}, {method: "GET", path: "/v1/cluster"},
	} {
		r.key = e.key
		resp := e.send(r)
		require.Equal(t, 429, resp.status, r.path)
		require.Equal(t, "20", resp.header.Get("Retry-After"))
		require.Contains(t, resp.message(t), "3 requests of this minute")
	}
	require.Equal(t, 200, e.send(request{method: "GET", path: "/v1/sandboxes", key: otherKey}).status)
	require.Equal(t, 401, e.send(request{method: "GET", path: "/v1/sandboxes", key: "sf_x"}).status,
		"who has no key learns nothing of it")
	require.Equal(t, 200, e.send(request{method: "GET", path: "/healthz"}).status)
	mu.Lock()
	at = at.Add(20 * time.Second)
	mu.Unlock()
	require.Equal(t, 200, e.do("GET", "/v1/sandboxes", nil).status)
	require.Equal(t, 429, e.do("GET", "/v1/sandboxes", nil).status)
	require.Equal(t, 200, e.adm("PATCH", "/admin/v1/orgs/one", `{"max_requests_per_minute":0}`).status)
	require.Equal(t, 200, e.do("GET", "/v1/sandboxes", nil).status, "a change counts from the next request on")
}

func TestSetLimits(t *testing.T) {
	e := newEnv(t)
	id := e.sandbox()
	e.snapshot(id, "a")
	org := e.adm("PATCH", "/admin/v1/orgs/"+string(e.org.ID), `{"max_sandboxes":1,"max_snapshots":1}`).object(t)
	require.EqualValues(t, 1, org["sandboxes"])
	require.EqualValues(t, 1, org["snapshots"])
	require.EqualValues(t, 1, org["max_sandboxes"])
	require.EqualValues(t, 0, org["max_requests_per_minute"])
	for path, what := range map[string]string{
		create: "sandboxes", "/v1/sandbox/" + id + "/snapshot/create": "snapshots", restore: "sandboxes",
	} {
		resp := e.do("POST", path, map[string]any{"template_name": "system/busybox", "snapshot_name": "a"})
		require.Equal(t, 429, resp.status, path)
		require.Contains(t, resp.message(t), "1 of at most 1 "+what)
		seconds, err := strconv.Atoi(resp.header.Get("Retry-After"))
		require.NoError(t, err)
		require.Positive(t, seconds)
	}
	org = e.adm("PATCH", "/admin/v1/orgs/one", `{"max_snapshots":2}`).object(t)
	require.EqualValues(t, 1, org["max_sandboxes"], "what is not given stays")
	require.EqualValues(t, 2, org["max_snapshots"])
	require.Equal(t, org, e.adm("PATCH", "/admin/v1/orgs/one", ``).object(t), "nothing given changes nothing")
	for _, name := range []string{"max_sandboxes", "max_snapshots", "max_requests_per_minute"} {
		for _, bad := range []string{"-1", `"1"`, "1.5", "99999999999"} {
			resp := e.adm("PATCH", "/admin/v1/orgs/one", fmt.Sprintf(`{"%s":%s}`, name, bad))
			require.Equal(t, 400, resp.status)
			require.Equal(t, []string{name}, resp.fields(t))
		}
	}
	require.Equal(t, 404, e.adm("PATCH", "/admin/v1/orgs/none", `{}`).status)
}

func TestResealRoute(t *testing.T) {
	e := newEnv(t)
	require.Equal(t, 501, e.adm("POST", "/admin/v1/reseal", "").status)
}

package httpd

import (
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/fsm"
)

// doStale makes a call with a wish for its consistency.
func (e *env) doStale(method, path, wish string) response {
	return e.send(request{method: method, path: path, key: e.key, header: map[string]string{headerConsistency: wish}})
}

// TestStaleReads cuts the node off: what it has is still answered to who asks for that, with its age, and nothing else.
func TestStaleReads(t *testing.T) {
	e := newEnv(t)
	id := e.sandbox()
	e.snapshot(id, "warm")
	asOf := time.Now().Add(-90 * time.Second)
	e.log.set(func() {
		e.log.offline = fsm.Errorf(fsm.KindUnavailable, "no leader")
		e.log.asOf, e.log.position = asOf, 42
	})
	for _, path := range []string{"/v1/sandboxes", "/v1/sandbox/" + id, "/v1/snapshots", "/v1/templates"} {
		for _, wish := range []string{"", linearizable} {
			resp := e.do("GET", path, nil)
			if wish != "" {
				resp = e.doStale("GET", path, wish)
			}
			require.Equal(t, http.StatusServiceUnavailable, resp.status, path)
			require.Empty(t, resp.header.Get(headerAge))
		}
		resp := e.doStale("GET", path, stale)
		require.Equal(t, http.StatusOK, resp.status, "%s: %s", path, resp.body)
		require.Equal(t, stale, resp.header.Get(headerConsistency))
		require.Equal(t, "42", resp.header.Get(headerPosition))
		age, err := strconv.Atoi(resp.header.Get(headerAge))
		require.NoError(t, err)
		require.GreaterOrEqual(t, age, 90_000)
	}
	require.Equal(t, id, e.doStale("GET", "/v1/sandbox/"+id, stale).text(t, "id"))
	require.Equal(t, 404, e.doStale("GET", "/v1/sandbox/sbx-other", stale).status)

	e.log.set(func() { e.log.asOf = time.Time{} })
	require.Equal(t, ageUnknown, e.doStale("GET", "/v1/sandboxes", stale).header.Get(headerAge))
}

// TestConsistencyIsValidated refuses a wish that is not known, or that a call cannot grant.
func TestConsistencyIsValidated(t *testing.T) {
	e := newEnv(t)
	id := e.sandbox()
	for _, wish := range []string{"", "Stale", "stale,linearizable", "eventual"} {
		resp := e.doStale("GET", "/v1/sandboxes", wish)
		require.Equal(t, 400, resp.status, "%q", wish)
		require.Equal(t, []string{headerConsistency}, resp.fields(t))
	}
	for method, path := range map[string]string{
		"DELETE": "/v1/sandbox/" + id, "POST": "/v1/sandbox/" + id + "/filesystem/ls",
	} {
		require.Equal(t, 400, e.doStale(method, path, stale).status)
	}
	require.Equal(t, 200, e.do("GET", "/v1/sandbox/"+id, nil).status, "it is still there")
	require.Equal(t, 204, e.doStale("DELETE", "/v1/sandbox/"+id, linearizable).status)
}

// TestAgeIsAnUpperBound sets clocks back and forth: the larger of what they say is told.
func TestAgeIsAnUpperBound(t *testing.T) {
	now := time.Now()
	require.Equal(t, "0", ageView(now, now))
	require.Equal(t, "2", ageView(now, now.Add(-1500*time.Microsecond)))
	require.Equal(t, "0", ageView(now, now.Add(time.Hour)), "never below zero")
	require.Equal(t, "60000", ageView(now.Round(0), now.Add(-time.Minute)))
	require.Equal(t, ageUnknown, ageView(now, time.Time{}))
}

func (l *memLog) StateAsOf() (*fsm.State, uint64, time.Time) {
	state := l.State()
	l.mu.Lock()
	defer l.mu.Unlock()
	return state, l.position, l.asOf
}

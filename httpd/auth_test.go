package httpd

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stillframe/fsm"
)

func TestAuthentication(t *testing.T) {
	e := newEnv(t)
	_, revoked, revokedKey := e.newOrg("revoked")
	e.log.must(t, fsm.RevokeKey{Now: now(), ID: revoked})
	good, unknown := e.key, NewKeySecret()

	for _, tc := range []struct {
		name   string
		header http.Header
		want   int
	}{
		{"none", http.Header{}, 401},
		{"bearer", http.Header{"Authorization": {"Bearer " + good}}, 200},
		{"bearer in other case", http.Header{"Authorization": {"bEARER " + good}}, 200},
		{"bearer and more space", http.Header{"Authorization": {"  Bearer   " + good + " "}}, 200},
		{"without bearer", http.Header{"Authorization": {good}}, 200},
		{"second header", http.Header{"Leap0-Authorization": {good}}, 200},
		{"second header with bearer", http.Header{"Leap0-Authorization": {"Bearer " + good}}, 200},
		{"second wins, good", http.Header{"Authorization": {unknown}, "Leap0-Authorization": {good}}, 200},
		{"second wins, bad", http.Header{"Authorization": {good}, "Leap0-Authorization": {unknown}}, 401},
		{"second wins, empty", http.Header{"Authorization": {good}, "Leap0-Authorization": {""}}, 401},
		{"unknown", http.Header{"Authorization": {"Bearer " + unknown}}, 401},
		{"revoked", http.Header{"Authorization": {"Bearer " + revokedKey}}, 401},
		{"empty", http.Header{"Authorization": {""}}, 401},
		{"only bearer", http.Header{"Authorization": {"Bearer"}}, 401},
		{"only bearer and space", http.Header{"Authorization": {"Bearer "}}, 401},
		{"basic", http.Header{"Authorization": {"Basic " + good}}, 401},
		{"twice bearer", http.Header{"Authorization": {"Bearer Bearer " + good}}, 401},
		{"twice the header", http.Header{"Authorization": {good, good}}, 401},
		{"key with a tail", http.Header{"Authorization": {good + "x"}}, 401},
		{"key cut short", http.Header{"Authorization": {good[:len(good)-1]}}, 401},
		{"other case", http.Header{"Authorization": {strings.ToUpper(good)}}, 401},
		{"long", http.Header{"Authorization": {strings.Repeat("x", 8000)}}, 401},
	} {
		t.Run(tc.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), "GET", e.base+"/v1/sandboxes", nil)
			require.NoError(t, err)
			req.Header = tc.header
			resp, err := http.DefaultClient.Do(req)
			require.NoError(t, err)
			body := readAll(t, resp)
			require.Equal(t, tc.want, resp.StatusCode)
			if tc.want == 401 {
				require.JSONEq(t, `{"message":"a valid API key is required, in the authorization header"}`, string(body))
				require.Equal(t, "Bearer", resp.Header.Get("WWW-Authenticate"))
			}
		})
	}
	logs := e.logs.String()
	for _, secret := range []string{good, unknown, revokedKey} {
		require.NotContains(t, logs, secret)
	}
}

// everyCall is a good request for every authenticated path.
func everyCall(sandbox, snapshot string) []request {
	sb := "/v1/sandbox/" + sandbox
	file := map[string]any{"path": "/f"}
	two := map[string]any{"src_path": "/a", "dst_path": "/b"}
	return []request{
		{method: "GET", path: "/v1/sandboxes"},
		{method: "GET", path: "/v1/snapshots"},
		{method: "GET", path: "/v1/templates"},
		{method: "GET", path: "/v1/node"},
		{method: "POST", path: "/v1/sandbox", body: map[string]any{"template_name": "system/busybox"}},
		{method: "POST", path: "/v1/snapshot/restore", body: map[string]any{"snapshot_name": "warm"}},
		{method: "POST", path: "/v1/template", body: map[string]any{"name": "x", "uri": "y"}},
		{method: "PATCH", path: "/v1/template/tpl-x", body: map[string]any{"name": "x"}},
		{method: "DELETE", path: "/v1/template/tpl-x"},
		{method: "GET", path: sb},
		{method: "POST", path: sb + "/snapshot/create"},
		{method: "POST", path: sb + "/process/execute", body: map[string]any{"command": "true"}},
		{method: "POST", path: sb + "/filesystem/read-file", body: file},
		{method: "POST", path: sb + "/filesystem/write-file?path=/f", body: "x"},
		{method: "POST", path: sb + "/filesystem/ls", body: file},
		{method: "POST", path: sb + "/filesystem/stat", body: file},
		{method: "POST", path: sb + "/filesystem/exists", body: file},
		{method: "POST", path: sb + "/filesystem/mkdir", body: file},
		{method: "POST", path: sb + "/filesystem/delete", body: file},
		{method: "POST", path: sb + "/filesystem/move", body: two},
		{method: "POST", path: sb + "/filesystem/copy", body: two},
		{method: "POST", path: sb + "/filesystem/grep", body: file},
		{method: "POST", path: sb + "/pause"},
		{method: "POST", path: sb + "/stop"},
		{method: "POST", path: sb + "/start"},
		{method: "POST", path: sb + "/mounts"},
		{method: "PATCH", path: sb + "/mounts/m"},
		{method: "DELETE", path: sb + "/mounts/m"},
		{method: "POST", path: sb + "/presigned-url"},
		{method: "DELETE", path: sb + "/presigned-url/p"},
		{method: "GET", path: sb + "/system/workdir"},
		{method: "POST", path: sb + "/git/clone"},
		{method: "POST", path: sb + "/lsp/start"},
		{method: "GET", path: sb + "/pty"},
		{method: "POST", path: sb + "/pty"},
		{method: "GET", path: sb + "/pty/s"},
		{method: "DELETE", path: sb + "/pty/s"},
		{method: "GET", path: sb + "/pty/s/connect"},
		{method: "POST", path: sb + "/pty/s/resize"},
		{method: "POST", path: sb + "/ssh/access"},
		{method: "DELETE", path: sb + "/ssh/s"},
		{method: "POST", path: sb + "/ssh/s/validate"},
		{method: "POST", path: sb + "/ssh/s/regen"},
		{method: "DELETE", path: sb},
		{method: "DELETE", path: "/v1/snapshot/" + snapshot},
	}
}

func TestEveryCallNeedsAKey(t *testing.T) {
	e := newEnv(t)
	for _, r := range everyCall("sbx-a", "snap-a") {
		require.Equal(t, 401, e.send(r).status, "%s %s", r.method, r.path)
	}
}

func TestOthersThingsDoNotExist(t *testing.T) {
	e := newEnv(t)
	sandbox := e.sandbox()
	snapshot := e.snapshot(sandbox, "warm")
	_, _, other := e.newOrg("other")
	for _, id := range []struct{ what, sandbox, snapshot, key string }{
		{"another organization's", sandbox, snapshot, other},
		{"unknown", NewID("sbx"), NewID("snap"), e.key},
		{"malformed", "..%2f%00", "a%20b", e.key},
		{"long", strings.Repeat("a", 3000), strings.Repeat("a", 3000), e.key},
	} {
		for _, r := range everyCall(id.sandbox, id.snapshot) {
			if !strings.Contains(r.path, id.sandbox) && !strings.Contains(r.path, id.snapshot) {
				continue
			}
			r.key = id.key
			require.Equal(t, 404, e.send(r).status, "%s: %s %s", id.what, r.method, r.path)
		}
	}
	named := request{method: "POST", path: restore, body: map[string]any{"snapshot_name": "warm"}, key: other}
	require.Equal(t, 404, e.send(named).status)
	for _, list := range []string{"/v1/sandboxes", "/v1/snapshots"} {
		resp := e.send(request{method: "GET", path: list, key: other}).object(t)
		require.EqualValues(t, 0, resp["total_items"])
		require.Equal(t, []any{}, resp["items"])
	}
	require.Zero(t, e.guests.count())
	require.Equal(t, 200, e.do("GET", "/v1/sandbox/"+sandbox, nil).status)
}

func TestNamesAreAnOrganizationsOwn(t *testing.T) {
	e := newEnv(t)
	e.snapshot(e.sandbox(), "warm")
	_, _, e.key = e.newOrg("other")
	e.snapshot(e.sandbox(), "warm")
}

func TestNotAvailable(t *testing.T) {
	e := newEnv(t)
	sandbox := e.sandbox()
	calls := 0
	for _, r := range everyCall(sandbox, "snap-a") {
		unavailable := strings.HasPrefix(r.path, "/v1/template/") || r.path == "/v1/template"
		for _, part := range []string{
			"/pause", "/stop", "/start", "/mounts", "/presigned-url", "/system/", "/git/", "/lsp/", "/pty", "/ssh/", "/grep",
		} {
			unavailable = unavailable || strings.Contains(r.path, part)
		}
		if unavailable {
			calls++
			r.key = e.key
			resp := e.send(r)
			require.Equal(t, 501, resp.status, "%s %s", r.method, r.path)
			require.Contains(t, resp.message(t), "not available")
		}
	}
	require.Equal(t, 25, calls)
}

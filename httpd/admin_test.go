package httpd

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// adm sends a request to the administration socket.
func (e *env) adm(method, path, body string) response {
	e.t.Helper()
	req, err := http.NewRequestWithContext(e.t.Context(), method, "http://admin"+path, strings.NewReader(body))
	require.NoError(e.t, err)
	resp, err := e.admin.Do(req)
	require.NoError(e.t, err)
	return response{resp.StatusCode, resp.Header, readAll(e.t, resp)}
}

func TestAdministration(t *testing.T) {
	e := newEnv(t)
	resp := e.adm("POST", "/admin/v1/orgs", `{"name":"acme","max_sandboxes":3}`)
	require.Equal(t, 201, resp.status, "%s", resp.body)
	org, orgID := resp.object(t), resp.text(t, "id")
	require.Regexp(t, `^org-[a-z2-7]{26}$`, org["id"])
	require.EqualValues(t, 3, org["max_sandboxes"])
	require.Equal(t, 409, e.adm("POST", "/admin/v1/orgs", `{"name":"acme"}`).status)
	orgs := e.adm("GET", "/admin/v1/orgs/", "").object(t)
	require.EqualValues(t, 2, orgs["total_items"])

	for _, ref := range []string{"acme", orgID} {
		resp = e.adm("POST", "/admin/v1/keys", `{"org":"`+ref+`","label":"laptop of Ä"}`)
		require.Equal(t, 201, resp.status, "%s", resp.body)
		key := resp.object(t)
		id := resp.text(t, "id")
		secret := resp.text(t, "key")
		require.Regexp(t, `^sf_[A-Za-z0-9_-]{43}$`, secret)
		require.Equal(t, org["id"], key["org"])
		require.Equal(t, "acme", key["org_name"])
		require.Equal(t, "laptop of Ä", key["label"])

		use := func() int { return e.send(request{method: "GET", path: "/v1/sandboxes", key: secret}).status }
		require.Equal(t, 200, use())
		for range 2 {
			require.Equal(t, 204, e.adm("DELETE", "/admin/v1/keys/"+id, "").status)
		}
		require.Equal(t, 401, use())
		require.NotContains(t, e.logs.String(), secret)
		require.NotContains(t, string(e.adm("GET", "/admin/v1/keys", "").body), secret)
	}
	keys := e.adm("GET", "/admin/v1/keys?org=acme", "")
	require.EqualValues(t, 2, keys.object(t)["total_items"])
	require.Contains(t, string(keys.body), "revoked_at")
	require.NotContains(t, string(keys.body), `"key"`)
	require.EqualValues(t, 3, e.adm("GET", "/admin/v1/keys", "").object(t)["total_items"])
}

func TestAdministrationRefuses(t *testing.T) {
	e := newEnv(t)
	for _, tc := range []struct {
		method, path, body string
		status             int
		fields             []string
	}{
		{"POST", "/admin/v1/orgs", `{}`, 400, []string{"name"}},
		{"POST", "/admin/v1/orgs", `{"name":"A B","max_sandboxes":-1,"max_snapshots":"x"}`, 400,
			[]string{"max_sandboxes", "max_snapshots", "name"}},
		{"POST", "/admin/v1/orgs", `{`, 400, nil},
		{"POST", "/admin/v1/keys", `{"label":1}`, 400, []string{"org", "label"}},
		{"POST", "/admin/v1/keys", `{"org":"one","label":"a\nb"}`, 400, []string{"label"}},
		{"POST", "/admin/v1/keys", `{"org":"nobody"}`, 404, nil},
		{"GET", "/admin/v1/keys?org=nobody", "", 404, nil},
		{"DELETE", "/admin/v1/keys/key-none", "", 404, nil},
		{"DELETE", "/admin/v1/keys/..%2f", "", 404, nil},
		{"PUT", "/admin/v1/orgs", "", 405, nil},
		{"GET", "/v1/sandboxes", "", 404, nil},
	} {
		resp := e.adm(tc.method, tc.path, tc.body)
		require.Equal(t, tc.status, resp.status, "%s %s %s: %s", tc.method, tc.path, tc.body, resp.body)
		require.Equal(t, tc.fields, resp.fields(t))
		require.NotEmpty(t, resp.message(t))
	}
	// The public address has no administration.
	require.Equal(t, 404, e.do("GET", "/admin/v1/orgs", nil).status)
	require.Equal(t, 404, e.do("POST", "/admin/v1/keys", json.RawMessage(`{"org":"one"}`)).status)
}

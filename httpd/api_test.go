package httpd

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSandboxLifecycle(t *testing.T) {
	e := newEnv(t)
	resp := e.do("POST", "/v1/sandbox/", map[string]any{
		"template_name": "system/debian:bookworm", "vcpu": 2, "memory": 2048, "timeout": 600, "auto_pause": false,
		"otel_export": false, "env_vars": map[string]string{"A": "b"},
	})
	require.Equal(t, 201, resp.status, "%s", resp.body)
	sb := resp.object(t)
	require.Equal(t, "running", sb["state"])
	require.Equal(t, "system/debian:bookworm", sb["template_name"])
	require.Equal(t, "tpl-debian", sb["template_id"])
	require.EqualValues(t, 2, sb["vcpu"])
	require.EqualValues(t, 2048, sb["memory"])
	require.EqualValues(t, 10240, sb["disk"])
	require.EqualValues(t, 600, sb["timeout"])
	require.Equal(t, false, sb["auto_pause"])
	require.Equal(t, "enforced", sb["network_status"])
	require.Equal(t, map[string]any{"A": "b"}, sb["env_vars"])
	require.NotContains(t, sb, "network_policy")
	require.NotContains(t, sb, "warnings")

	id := resp.text(t, "id")
	for _, path := range []string{"/v1/sandbox/" + id, "/v1/sandbox/" + id + "/"} {
		got := e.do("GET", path, nil)
		require.Equal(t, 200, got.status)
		require.Equal(t, sb, got.object(t))
	}
	require.Equal(t, 204, e.do("DELETE", "/v1/sandbox/"+id+"/", nil).status)
	require.Equal(t, 404, e.do("GET", "/v1/sandbox/"+id, nil).status)
	require.Equal(t, 404, e.do("DELETE", "/v1/sandbox/"+id, nil).status)
}

func TestSandboxDefaults(t *testing.T) {
	e := newEnv(t)
	sb := e.do("POST", "/v1/sandbox", `{"template_name":"system/busybox","vcpu":null,"env_vars":null}`).object(t)
	require.EqualValues(t, 1, sb["vcpu"])
	require.EqualValues(t, 1024, sb["memory"])
	require.EqualValues(t, 300, sb["timeout"])
}

func TestSnapshotAndRestore(t *testing.T) {
	e := newEnv(t)
	source := e.sandbox()
	resp := e.do("POST", "/v1/sandbox/"+source+"/snapshot/create", map[string]any{"name": "warm"})
	require.Equal(t, 201, resp.status, "%s", resp.body)
	sn, id := resp.object(t), resp.text(t, "id")
	require.Equal(t, "warm", sn["name"])
	require.Equal(t, source, sn["sandbox_id"])
	require.EqualValues(t, 12.345, sn["pause_ms"])
	require.NotContains(t, sn, "state", "clients would read it as a sandbox's")
	require.Equal(t, "running", e.do("GET", "/v1/sandbox/"+source, nil).object(t)["state"])

	require.Equal(t, 409, e.do("POST", "/v1/sandbox/"+source+"/snapshot/create", map[string]any{"name": "warm"}).status)

	resp = e.do("POST", "/v1/snapshot/restore", map[string]any{"snapshot_name": "warm", "timeout": 1800})
	require.Equal(t, 201, resp.status, "%s", resp.body)
	clone := resp.object(t)
	require.NotEqual(t, source, clone["id"])
	require.Equal(t, sn["id"], clone["snapshot_id"])
	require.EqualValues(t, 1800, clone["timeout"])

	require.Equal(t, 409, e.do("DELETE", "/v1/snapshot/"+id, nil).status, "in use by the clone")
	require.Equal(t, 204, e.do("DELETE", "/v1/sandbox/"+resp.text(t, "id"), nil).status)
	require.Equal(t, 204, e.do("DELETE", "/v1/snapshot/"+id+"/", nil).status)
	require.Equal(t, 404, e.do("DELETE", "/v1/snapshot/"+id, nil).status)
	require.Equal(t, 404, e.do("POST", "/v1/snapshot/restore", map[string]any{"snapshot_name": "warm"}).status)
	e.snapshot(source, "warm") // the name is free again
}

func TestSnapshotWithoutABody(t *testing.T) {
	e := newEnv(t)
	source := e.sandbox()
	names := map[any]bool{}
	for _, body := range []any{nil, "", "  \n", "{}", `{"name":null}`} {
		resp := e.do("POST", "/v1/sandbox/"+source+"/snapshot/create", body)
		require.Equal(t, 201, resp.status, "%s", resp.body)
		name := resp.text(t, "name")
		require.True(t, validSnapshotName(name), name)
		require.False(t, names[name])
		names[name] = true
	}
}

func TestGeneratedNamesNeverConflict(t *testing.T) {
	e := newEnv(t, func(c *Config) { c.NewSnapshotName = func() string { return "always-the-same" } })
	source := e.sandbox()
	for _, want := range []string{"always-the-same", "always-the-same-2", "always-the-same-3"} {
		resp := e.do("POST", "/v1/sandbox/"+source+"/snapshot/create", nil)
		require.Equal(t, 201, resp.status)
		require.Equal(t, want, resp.object(t)["name"])
	}
}

func TestKillSandboxAfter(t *testing.T) {
	e := newEnv(t)
	source := e.sandbox()
	resp := e.do("POST", "/v1/sandbox/"+source+"/snapshot/create", map[string]any{"kill_sandbox_after": true})
	require.Equal(t, 201, resp.status)
	e.log.closeOpen()
	require.Equal(t, 404, e.do("GET", "/v1/sandbox/"+source, nil).status)
}

func TestSystemPaths(t *testing.T) {
	e := newEnv(t)
	for _, path := range []string{"/healthz", "/readyz", "/metrics", "/openapi.yaml", "/healthz/"} {
		resp := e.send(request{method: "GET", path: path})
		require.Equal(t, 200, resp.status, path)
		require.NotEmpty(t, resp.body)
	}
	templates := e.do("GET", "/v1/templates", nil)
	require.EqualValues(t, 2, templates.object(t)["total_items"])
	require.Equal(t, "system/busybox", templates.items(t)[0]["name"])
	require.Equal(t, 501, e.do("GET", "/v1/node", nil).status)

	resp405 := e.do("PUT", "/v1/sandboxes", nil)
	require.Equal(t, 405, resp405.status)
	require.Equal(t, "GET, HEAD", resp405.header.Get("Allow"))
	require.Equal(t, 404, e.do("GET", "/v1/nowhere", nil).status)
	require.Equal(t, 404, e.do("GET", "/", nil).status)
	require.Equal(t, 501, e.do("BREW", "/v1/sandboxes", nil).status)

	head, err := http.Head(e.base + "/healthz")
	require.NoError(t, err)
	require.NoError(t, head.Body.Close())
	require.Equal(t, 200, head.StatusCode)
}

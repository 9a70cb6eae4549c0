package httpd

import (
	"testing"

	"github.com/stretchr/testify/require"

	"stillframe/fsm"
)

// TestSandboxOfALostNode says what is known, refuses what needs the node with its name, and deletes all the same.
func TestSandboxOfALostNode(t *testing.T) {
	e := newEnv(t)
	id, other := e.sandbox(), e.sandbox()
	snapshot := e.snapshot(id, "warm")
	require.NotContains(t, e.do("GET", "/v1/sandbox/"+id, nil).object(t), "node_unreachable")
	n, _ := e.log.State().Node(testNode)
	e.log.must(t, fsm.MarkNode{Now: now(), Node: testNode, Lost: true, Epoch: n.Epoch})

	got := e.do("GET", "/v1/sandbox/"+id, nil).object(t)
	require.Equal(t, "running", got["state"])
	require.Equal(t, true, got["node_unreachable"])
	require.Contains(t, got["state_reason"], "node one has not answered since")
	items := e.do("GET", "/v1/sandboxes", nil).items(t)
	require.Len(t, items, 2)
	require.Equal(t, true, items[0]["node_unreachable"])

	for path, body := range map[string]string{
		"/v1/sandbox/" + id + "/process/execute":      `{"command":"true"}`,
		"/v1/sandbox/" + id + "/filesystem/read-file": `{"path":"/etc/passwd"}`,
		"/v1/sandbox/" + id + "/snapshot/create":      `{"name":"cold"}`,
		restore:                                       `{"snapshot_name":"warm"}`,
	} {
		resp := e.do("POST", path, body)
		require.Equal(t, 503, resp.status, "%s: %s", path, resp.body)
		require.Contains(t, resp.message(t), "node one", path)
		require.Equal(t, "1", resp.header.Get("Retry-After"), path)
	}
	require.Zero(t, e.guests.count(), "no agent was asked")
	resp := e.do("POST", create, `{"template_name":"system/busybox"}`)
	require.Equal(t, 503, resp.status)
	require.Contains(t, resp.message(t), "1 lost")

	require.Equal(t, 204, e.do("DELETE", "/v1/sandbox/"+id, nil).status)
	require.Equal(t, 204, e.do("DELETE", "/v1/sandbox/"+other, nil).status)
	require.Equal(t, 204, e.do("DELETE", "/v1/snapshot/"+snapshot, nil).status)
	require.Equal(t, 404, e.do("GET", "/v1/sandbox/"+id, nil).status)
}

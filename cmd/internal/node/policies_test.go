package node

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/fsm"
	"stillframe/hypervisor"
)

// Questions about a policy reach the owner of the sandbox, whichever node is asked.
func TestPolicyQuestionsReachTheOwner(t *testing.T) {
	w := newWorld(t)
	_, sb := w.do(0, "POST", "/v1/sandbox", `{"template_name":"system/busybox"}`)
	id, _ := sb["id"].(string)
	require.Equal(t, "node-1", sb["pod_id"])
	owner := w.nodes[1].owner
	owner.set(func() {
		owner.decisions = []hypervisor.PolicyDecision{{
			At: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Action: "allow", Rule: "allow_domains[0]", Reason: "r",
			Protocol: "tls", Name: "a.example.com", Address: "192.0.2.1:443", Sent: 1, Received: 2,
		}}
	})
	for node := range w.nodes {
		status, answer := w.do(node, "GET", "/v1/sandbox/"+id+"/network-policy/log?limit=7", "")
		require.Equal(t, 200, status)
		require.Equal(t, []any{map[string]any{
			"time": "2026-01-02T03:04:05.000000006Z", "action": "allow", "rule": "allow_domains[0]", "reason": "r",
			"protocol": "tls", "name": "a.example.com", "address": "192.0.2.1:443", "bytes_sent": 1.0, "bytes_received": 2.0,
		}}, answer["items"])
		status, answer = w.do(node, "GET", "/v1/sandbox/"+id+"/network-policy/check?host=B.example.com&port=22", "")
		require.Equal(t, 200, status)
		require.Equal(t, "b.example.com", answer["name"])
	}
	owner.set(func() {
		require.Equal(t, []string{"log " + id + " 7", "check " + id + " b.example.com 22"}, owner.asked[:2])
		require.Equal(t, owner.asked[:2], owner.asked[2:])
		owner.decisions = nil
		owner.fail = fsm.Errorf(fsm.KindUnavailable, "no network policy is in force in it")
	})
	require.Empty(t, w.nodes[0].owner.asked)
	for node := range w.nodes {
		for _, question := range []string{"log", "check?host=a.example.com"} {
			status, answer := w.do(node, "GET", "/v1/sandbox/"+id+"/network-policy/"+question, "")
			require.Equal(t, 503, status)
			require.Equal(t, "no network policy is in force in it", answer["message"])
		}
	}
}

// An owner that cannot be reached is named, and nothing hangs.
func TestPolicyQuestionsOfALostOwner(t *testing.T) {
	w := newWorld(t)
	_, sb := w.do(0, "POST", "/v1/sandbox", `{"template_name":"system/busybox"}`)
	id := fsm.SandboxID(sb["id"].(string))
	p := policies{"node-0", func() *fsm.State { return w.nodes[0].log.State() }, w.nodes[0].owner, w.nodes[0].tunnels}
	_, err := p.Log(t.Context(), "sbx-none", 1)
	require.ErrorContains(t, err, "no such sandbox")
	_, err = p.Check(t.Context(), "sbx-none", "a.example.com", 1)
	require.ErrorContains(t, err, "no such sandbox")
	_, err = p.askOwner(t.Context(), "node-9", "/policy/"+string(id)+"/log?limit=1")
	var e *fsm.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, fsm.KindUnavailable, e.Kind)
	require.Contains(t, e.Message, "node-9")
	for _, bad := range []string{"log", "log?limit=0", "check?port=x", "check?port=70000"} {
		_, err := p.askOwner(t.Context(), "node-1", "/policy/"+string(id)+"/"+bad)
		require.ErrorContains(t, err, "malformed", bad)
	}
}

package httpd

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/fsm"
)

const custom = `{"mode":"custom","allow_domains":["A.example.com."],"transforms":[{"domain":"api.example.com",` +
	`"inject_headers":{"Authorization":"s3cret"},"strip_headers":["Cookie"]}]}`

func (e *env) setPolicy(id string, body any) response {
	e.t.Helper()
	return e.do("PUT", "/v1/sandbox/"+id+"/network-policy", body)
}

func TestSetPolicy(t *testing.T) {
	e := newEnv(t)
	id := e.sandbox()
	shown := map[string]any{
		"mode": "custom", "allow_domains": []any{"a.example.com"}, "transforms": []any{map[string]any{
			"domain": "api.example.com", "inject_headers": map[string]any{"Authorization": "[redacted]"},
			"strip_headers": []any{"Cookie"},
		}},
	}
	resp := e.setPolicy(id, custom)
	require.Equal(t, 200, resp.status, "%s", resp.body)
	require.Equal(t, shown, resp.object(t)["network_policy"])
	require.Equal(t, "running", resp.object(t)["state"])
	require.Equal(t, shown, e.do("GET", "/v1/sandbox/"+id, nil).object(t)["network_policy"])

	// What is in force travels with a snapshot, and is in force in what is restored unless it is overridden.
	e.snapshot(id, "s")
	clone := e.do("POST", restore, `{"snapshot_name":"s"}`)
	require.Equal(t, shown, clone.object(t)["network_policy"])
	source, _ := e.log.State().Sandbox(fsm.SandboxID(id))
	restored, _ := e.log.State().Sandbox(fsm.SandboxID(clone.text(t, "id")))
	require.NotEmpty(t, source.CA)
	require.Equal(t, source.CA, restored.CA, "a restored process goes on trusting")
	opened, err := e.secrets.OpenPolicy(e.org.ID, restored.NetworkPolicy)
	require.NoError(t, err)
	require.Equal(t, "s3cret", opened.Transforms[0].InjectHeaders["Authorization"], "the owner can open it")

	require.Equal(t, 200, e.setPolicy(id, `{"mode":"allow-all"}`).status)
	require.Equal(t, map[string]any{"mode": "allow-all"}, e.do("GET", "/v1/sandbox/"+id, nil).object(t)["network_policy"])
}

func TestSetPolicyRefusals(t *testing.T) {
	e := newEnv(t)
	id := e.sandbox()
	for body, want := range map[string]string{
		`{}`:                        "mode",
		``:                          "mode",
		`{"mode":"off"}`:            "mode",
		`{"mode":"deny-all","x":1}`: "",
		`{"mode":"allow-all","allow_cidrs":["10.0.0.0/8"]}`:    "allow_cidrs",
		`{"mode":"custom","allow_cidrs":["10.0.0.1/8"]}`:       "allow_cidrs[0]",
		`{"mode":"custom","allow_domains":["*"]}`:              "allow_domains[0]",
		strings.Replace(custom, "s3cret", "[redacted]", 1):     "transforms[0].inject_headers.Authorization",
		strings.Replace(custom, "Authorization", "Te", 1):      "transforms[0].inject_headers.Te",
		strings.Replace(custom, "Authorization", `a\u0007`, 1): `transforms[0].inject_headers["a\a"]`,
		strings.Replace(custom, `"Cookie"`, `"Cookie",5,""`, 1): "transforms[0].strip_headers[1] " +
			"transforms[0].strip_headers[2]",
	} {
		resp := e.setPolicy(id, body)
		if want == "" {
			require.Equal(t, 200, resp.status, "%s", body)
			continue
		}
		require.Equal(t, 400, resp.status, "%s", body)
		require.Equal(t, want, strings.Join(resp.fields(t), " "), "%s", body)
		require.NotContains(t, string(resp.body), "s3cret")
	}
	resp := e.setPolicy(id, strings.Replace(custom, "s3cret", "[redacted]", 1))
	require.Contains(t, string(resp.body), "placeholder", "it says why")
	require.Equal(t, 400, e.setPolicy(id, `null`).status)
	require.Equal(t, 404, e.setPolicy("sbx-other", custom).status)
	require.Equal(t, 401, e.send(request{method: "PUT", path: "/v1/sandbox/" + id + "/network-policy"}).status)
	_, _, e.key = e.newOrg("two")
	require.Equal(t, 404, e.setPolicy(id, custom).status, "another organization's sandbox")
}

// While a policy is being put in force, the sandbox runs under the one before, and what would have to wait says so.
func TestPolicyUnderWay(t *testing.T) {
	e := newEnv(t, func(c *Config) { c.Limits.Wait = 200 * time.Millisecond })
	id := e.sandbox()
	e.log.set(func() { e.log.outcome = nil })
	resp := e.keyed("PUT", "/v1/sandbox/"+id+"/network-policy", custom, "k")
	require.Equal(t, 504, resp.status)
	require.Contains(t, resp.message(t), "still being replaced")
	require.Equal(t, map[string]any{"id": id, "state": "running"}, resp.object(t)["resource"])

	sb := e.do("GET", "/v1/sandbox/"+id, nil).object(t)
	require.Equal(t, "running", sb["state"])
	require.Equal(t, "changing", sb["network_status"])
	require.NotContains(t, sb, "network_policy", "not before it is in force")
	for _, r := range []request{
		{method: "PUT", path: "/v1/sandbox/" + id + "/network-policy", body: `{"mode":"deny-all"}`},
		{method: "DELETE", path: "/v1/sandbox/" + id},
		{method: "POST", path: "/v1/sandbox/" + id + "/snapshot/create"},
	} {
		r.key = e.key
		resp := e.send(r)
		require.Equal(t, 409, resp.status, r.method)
		require.Contains(t, resp.message(t), "network policy", "it says why")
	}
	e.log.closeOpen()
	again := e.keyed("PUT", "/v1/sandbox/"+id+"/network-policy", custom, "k")
	require.Equal(t, 200, again.status)
	require.Equal(t, "true", again.header.Get(replayedHeader))
	require.Equal(t, "enforced", e.do("GET", "/v1/sandbox/"+id, nil).object(t)["network_status"])
}

// A replacement that failed leaves what GET then shows, also when that is nothing at all.
func TestPolicyFailures(t *testing.T) {
	e := newEnv(t)
	id := e.sandbox()
	require.Equal(t, 200, e.setPolicy(id, `{"mode":"custom","allow_domains":["a.example.com"]}`).status)
	before := e.do("GET", "/v1/sandbox/"+id, nil).object(t)["network_policy"]

	e.log.set(func() { e.log.outcome = failing(fsm.KindUnavailable, "no rules today") })
	resp := e.setPolicy(id, custom)
	require.Equal(t, 503, resp.status)
	require.Equal(t, "no rules today", resp.message(t))
	sb := e.do("GET", "/v1/sandbox/"+id, nil).object(t)
	require.Equal(t, before, sb["network_policy"])
	require.Equal(t, "enforced", sb["network_status"])

	e.log.set(func() {
		e.log.outcome = func(fsm.Intent) *fsm.Complete {
			return &fsm.Complete{Error: fsm.Errorf(fsm.KindInternal, "rules went bad"), PolicyFellBack: true}
		}
	})
	require.Equal(t, 500, e.setPolicy(id, custom).status)
	sb = e.do("GET", "/v1/sandbox/"+id, nil).object(t)
	require.Equal(t, map[string]any{"mode": "deny-all"}, sb["network_policy"])
	require.Equal(t, "denied", sb["network_status"])
	require.Contains(t, sb["network_note"], "rules went bad")

	e.log.set(func() { e.log.outcome = done })
	require.Equal(t, 200, e.setPolicy(id, custom).status)
	require.NotContains(t, e.do("GET", "/v1/sandbox/"+id, nil).object(t), "network_note")
}

// The same request under the same key is one replacement, although its secrets are sealed differently each time.
func TestIdempotentPolicy(t *testing.T) {
	e := newEnv(t)
	id := e.sandbox()
	path := "/v1/sandbox/" + id + "/network-policy"
	first := e.keyed("PUT", path, custom, "k")
	require.Equal(t, 200, first.status)
	sealed, _ := e.log.State().Sandbox(fsm.SandboxID(id))
	require.Equal(t, 200, e.setPolicy(id, `{"mode":"deny-all"}`).status)

	again := e.keyed("PUT", path, custom, "k")
	require.Equal(t, string(first.body), string(again.body))
	require.Equal(t, "true", again.header.Get(replayedHeader))
	now, _ := e.log.State().Sandbox(fsm.SandboxID(id))
	require.Equal(t, "deny-all", now.NetworkPolicy.Mode, "it is not done again")
	require.NotNil(t, sealed.NetworkPolicy)
	require.Equal(t, 409, e.keyed("PUT", path, strings.Replace(custom, "s3cret", "other", 1), "k").status)

	made := e.keyed("POST", create, `{"template_name":"system/busybox","network_policy":`+custom+`}`, "c")
	require.Equal(t, 201, made.status)
	again = e.keyed("POST", create, `{"template_name":"system/busybox","network_policy":`+custom+`}`, "c")
	require.Equal(t, string(made.body), string(again.body))
}

func TestPolicyLog(t *testing.T) {
	e := newEnv(t)
	id := e.sandbox()
	path := "/v1/sandbox/" + id + "/network-policy/log"
	require.Empty(t, e.do("GET", path, nil).items(t))
	e.policies.decisions = []PolicyDecision{{
		Time: "2026-01-02T03:04:05Z", Action: "transform", Rule: "transforms[0]", Protocol: "tls", Name: "a.example.com",
		Address: "192.0.2.1:443", Sent: 10, Received: 20,
	}}
	require.Equal(t, map[string]any{
		"time": "2026-01-02T03:04:05Z", "action": "transform", "rule": "transforms[0]", "protocol": "tls",
		"name": "a.example.com", "address": "192.0.2.1:443", "bytes_sent": 10.0, "bytes_received": 20.0,
	}, e.do("GET", path+"?limit=7", nil).items(t)[0])
	require.Equal(t, []string{"log " + id + " 100", "log " + id + " 7"}, e.policies.asked)
	for _, limit := range []string{"0", "1001", "x", "-1"} {
		require.Equal(t, []string{"limit"}, e.do("GET", path+"?limit="+limit, nil).fields(t))
	}
}

func TestPolicyCheck(t *testing.T) {
	e := newEnv(t)
	id := e.sandbox()
	path := "/v1/sandbox/" + id + "/network-policy/check"
	for asked, want := range map[string]string{
		"?host=A.Example.com.":          "a.example.com 443",
		"?host=a.example.com&port=8443": "a.example.com 8443",
		"?host=10.0.0.1&port=22":        "10.0.0.1 22",
		"?host=2001:DB8::1":             "2001:db8::1 443",
		"?host=::ffff:10.0.0.1":         "10.0.0.1 443",
	} {
		e.policies.asked = nil
		resp := e.do("GET", path+asked, nil)
		require.Equal(t, 200, resp.status, "%s", resp.body)
		require.Equal(t, "deny", resp.object(t)["action"])
		require.Equal(t, []string{"check " + id + " " + want}, e.policies.asked)
	}
	for asked, want := range map[string]string{
		"": "host", "?host=": "host", "?host=localhost": "host", "?host=a_b.example.com": "host", "?host=0x7f.1": "host",
		"?host=b%C3%BCcher.example": "host", "?host=fe80::1%25eth0": "host", "?host=a.example.com%00": "host",
		"?host=a.example.com&port=0": "port", "?host=a.example.com&port=65536": "port",
	} {
		resp := e.do("GET", path+asked, nil)
		require.Equal(t, 400, resp.status, asked)
		require.Equal(t, []string{want}, resp.fields(t), asked)
	}
}

func TestPolicyQuestionsThatCannotBeAnswered(t *testing.T) {
	e := newEnv(t)
	id := e.sandbox()
	for _, path := range []string{"/log", "/check?host=a.example.com"} {
		require.Equal(t, 404, e.do("GET", "/v1/sandbox/sbx-x/network-policy"+path, nil).status)
		e.policies.fail = fsm.Errorf(fsm.KindUnavailable, "node two cannot be reached")
		resp := e.do("GET", "/v1/sandbox/"+id+"/network-policy"+path, nil)
		require.Equal(t, 503, resp.status)
		require.Equal(t, "node two cannot be reached", resp.message(t))
		require.NotEmpty(t, resp.header.Get("Retry-After"))
	}
	sb, _ := e.log.State().Sandbox(fsm.SandboxID(id))
	e.log.must(t, fsm.ReportStopped{Now: now(), Sandbox: sb.ID, Owner: sb.Owner, Epoch: sb.Epoch, Reason: "gone"})
	require.Equal(t, http.StatusConflict, e.do("GET", "/v1/sandbox/"+id+"/network-policy/log", nil).status)
	require.Equal(t, http.StatusConflict, e.setPolicy(id, custom).status)
}

// While an older program is a member, nothing is proposed that it would stop at.
func TestNoCABesideOlderPrograms(t *testing.T) {
	e := newEnv(t)
	older := fsm.Node{ID: "node-old", Name: "old"}
	e.log.must(t, fsm.RegisterNode{Now: now(), Node: older})
	made := func() fsm.Sandbox {
		id := e.sandbox()
		sb, ok := e.log.State().Sandbox(fsm.SandboxID(id))
		require.True(t, ok)
		return sb
	}
	require.Empty(t, made().CA)
	older.Level = fsm.Level
	e.log.must(t, fsm.RegisterNode{Now: now(), Node: older})
	require.NotEmpty(t, made().CA)
}

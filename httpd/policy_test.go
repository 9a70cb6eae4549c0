package httpd

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stillframe/fsm"
	"stillframe/netpolicy/policy"
)

func TestTransforms(t *testing.T) {
	e := newEnv(t)
	body := func(transforms string) string {
		return `{"template_name":"system/busybox","network_policy":{"mode":"custom","transforms":` + transforms + `}}`
	}
	resp := e.do("POST", create, body(`[{"domain":"a.com","inject_headers":{"Host":"x","A":"[redacted]","B":"x\ny",`+
		`"C":"s3cret","c":"s3cret"},"strip_headers":["D","d","Connection"]},{"domain":"A.com"}]`))
	require.Equal(t, 400, resp.status)
	const first = "network_policy.transforms[0]."
	require.Equal(t, []string{
		first + "inject_headers.A", first + "inject_headers.B", first + "inject_headers.Host", first + "inject_headers.c",
		first + "strip_headers[1]", first + "strip_headers[2]", "network_policy.transforms[1].domain",
	}, resp.fields(t))
	require.NotContains(t, string(resp.body), `x\\ny`, "a value is a secret, also a bad one")
	require.Contains(t, string(resp.body), "placeholder", "says why")
	require.NotContains(t, string(resp.body), "s3cret")

	resp = e.do("POST", create, body(`[{"domain":"*.Example.com","inject_headers":{},"strip_headers":["X-A"]}]`))
	require.Equal(t, 201, resp.status, "%s", resp.body)
	require.Equal(t, map[string]any{"mode": "custom", "transforms": []any{
		map[string]any{"domain": "*.example.com", "strip_headers": []any{"X-A"}},
	}}, resp.object(t)["network_policy"])
}

func TestPolicyIsKeptAndInherited(t *testing.T) {
	e := newEnv(t)
	given := map[string]any{"mode": "custom", "allow_domains": []any{"a.com"}, "allow_cidrs": []any{"10.0.0.0/8"}}
	sb := e.do("POST", create, map[string]any{"template_name": "system/busybox", "network_policy": given})
	require.Equal(t, given, sb.object(t)["network_policy"])
	id := sb.text(t, "id")
	require.Equal(t, given, e.do("GET", "/v1/sandbox/"+id, nil).object(t)["network_policy"])
	sn := e.do("POST", "/v1/sandbox/"+id+"/snapshot/create", map[string]any{"name": "s"}).object(t)
	require.Equal(t, given, sn["network_policy"])

	for _, body := range []string{`{"snapshot_name":"s"}`, `{"snapshot_name":"s","network_policy":null}`} {
		require.Equal(t, given, e.do("POST", restore, body).object(t)["network_policy"])
	}
	clone := e.do("POST", restore, `{"snapshot_name":"s","network_policy":{"mode":"deny-all"}}`).object(t)
	require.Equal(t, map[string]any{"mode": "deny-all"}, clone["network_policy"])
}

// The restore of the public documentation's example.
func TestRestoreWithAutoPauseAndCustomPolicy(t *testing.T) {
	e := newEnv(t)
	e.snapshot(e.sandbox(), "warm")
	resp := e.do("POST", restore, map[string]any{
		"snapshot_name": "warm", "auto_pause": true, "timeout": 1800,
		"network_policy": map[string]any{"mode": "custom", "allow_cidrs": []string{"1.2.3.4/32"}},
	})
	require.Equal(t, 201, resp.status, "%s", resp.body)
	sb := resp.object(t)
	require.Equal(t, true, sb["auto_pause"])
	require.Equal(t, "enforced", sb["network_status"])
	require.Equal(t, []any{warnAutoPause}, sb["warnings"])
}

func TestRedaction(t *testing.T) {
	p := &fsm.NetworkPolicy{Mode: "custom", Transforms: []fsm.Transform{
		{Domain: "a.com", InjectHeaders: map[string]string{"Authorization": "s3cret", "X": "other s3cret"}},
		{Domain: "b.com", StripHeaders: []string{"Y"}},
	}}
	shown, err := json.Marshal(redactPolicy(p))
	require.NoError(t, err)
	require.JSONEq(t, `{"mode":"custom","transforms":[{"domain":"a.com","inject_headers":{"Authorization":"[redacted]",
		"X":"[redacted]"}},{"domain":"b.com","strip_headers":["Y"]}]}`, string(shown))
	require.Equal(t, "s3cret", p.Transforms[0].InjectHeaders["Authorization"], "the state is not touched")
	require.Nil(t, redactPolicy(nil))
}

// Whatever way a policy came into the log, no answer shows a header's value.
func TestAnswersAreRedacted(t *testing.T) {
	e := newEnv(t)
	res := e.log.must(t, fsm.CreateSandbox{
		Now: now(), Intent: "int-1", Org: e.org.ID, Sandbox: "sbx-1", TemplateName: "system/busybox", VCPU: 1,
		MemoryMiB: 512, DiskMiB: 1024, TimeoutSec: 300, NetworkPolicy: &fsm.NetworkPolicy{
			Mode:       "custom",
			Transforms: []fsm.Transform{{Domain: "a.com", InjectHeaders: map[string]string{"A": "s3cret"}}},
		},
	})
	_, err := e.log.WaitIntent(t.Context(), res.Intent.ID)
	require.NoError(t, err)
	for _, r := range []request{
		{method: "GET", path: "/v1/sandbox/sbx-1"},
		{method: "POST", path: "/v1/sandbox/sbx-1/snapshot/create", body: map[string]any{"name": "s"}},
		{method: "POST", path: restore, body: map[string]any{"snapshot_name": "s"}},
		{method: "GET", path: "/v1/snapshots"},
		{method: "GET", path: "/v1/sandboxes"},
	} {
		r.key = e.key
		resp := e.send(r)
		require.Less(t, resp.status, 300)
		require.NotContains(t, string(resp.body), "s3cret", r.path)
		require.Equal(t, r.path != "/v1/sandboxes", strings.Contains(string(resp.body), policy.Redacted), r.path)
	}
	require.NotContains(t, e.logs.String(), "s3cret")
}

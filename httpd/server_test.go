package httpd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"

	"stillframe/fsm"
)

// The document and the router have the same routes.
func TestDocumentIsComplete(t *testing.T) {
	e := newEnv(t)
	doc, err := openapi3.NewLoader().LoadFromData(openAPI)
	require.NoError(t, err)
	require.NoError(t, doc.Validate(t.Context()))
	documented := map[string]bool{}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			documented[method+" "+path] = true
			changes := method == "POST" || method == "PUT"
			require.Equal(t, changes && !contains(op.Tags, "unavailable"), hasParameter(op, "IdempotencyKey"),
				"%s %s: Idempotency-Key", method, path)
		}
	}
	routed := map[string]bool{}
	parameter := regexp.MustCompile(`:([a-z_]+)`)
	for _, stack := range e.server.api.Stack() {
		for _, r := range stack {
			if r.Method != http.MethodHead {
				routed[r.Method+" "+parameter.ReplaceAllString(r.Path, "{$1}")] = true
			}
		}
	}
	require.Equal(t, routed, documented)
	served := e.send(request{method: "GET", path: "/openapi.yaml"})
	require.Equal(t, string(openAPI), string(served.body))
}

func contains(list []string, s string) bool { return strings.Contains(strings.Join(list, " "), s) }

func hasParameter(op *openapi3.Operation, name string) bool {
	for _, p := range op.Parameters {
		if strings.HasSuffix(p.Ref, "/"+name) {
			return true
		}
	}
	return false
}

// The lines of the public contract: each is served, with its method, under its path.
func TestContractRoutes(t *testing.T) {
	e := newEnv(t)
	routed := map[string]bool{}
	for _, r := range e.server.apiRoutes() {
		routed[r.method+" "+pathParameter.ReplaceAllString(r.path, "*")] = true
	}
	for _, line := range []string{
		"POST /v1/sandbox/*/snapshot/create", "POST /v1/snapshot/restore", "GET /v1/snapshots", "DELETE /v1/snapshot/*",
		"POST /v1/sandbox", "GET /v1/sandbox/*", "DELETE /v1/sandbox/*", "POST /v1/sandbox/*/pause",
		"POST /v1/sandbox/*/stop", "POST /v1/sandbox/*/start", "GET /v1/sandboxes", "POST /v1/template",
		"PATCH /v1/template/*", "DELETE /v1/template/*", "POST /v1/sandbox/*/process/execute",
		"POST /v1/sandbox/*/filesystem/read-file", "POST /v1/sandbox/*/filesystem/write-file",
		"POST /v1/sandbox/*/filesystem/ls", "POST /v1/sandbox/*/filesystem/stat", "POST /v1/sandbox/*/filesystem/mkdir",
		"POST /v1/sandbox/*/filesystem/delete", "POST /v1/sandbox/*/filesystem/exists",
		"POST /v1/sandbox/*/filesystem/move", "POST /v1/sandbox/*/filesystem/copy",
	} {
		require.True(t, routed[line], line)
	}
}

// Fiber reuses its buffers from request to request. What the log and the guests were given must not change with them.
func TestNothingOutlivesItsRequest(t *testing.T) {
	e := newEnv(t)
	conn := e.dial()
	r := bufio.NewReader(conn)
	send := func(method, path, key, body string) int {
		_, err := fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: x\r\nAuthorization: %s\r\nIdempotency-Key: %s\r\n"+
			"Content-Length: %d\r\n\r\n%s", method, path, e.key, key, len(body), body)
		require.NoError(t, err)
		resp, err := http.ReadResponse(r, nil)
		require.NoError(t, err)
		readAll(t, resp)
		return resp.StatusCode
	}
	const n = 20
	for i := range n {
		body := fmt.Sprintf(`{"template_name":"system/busybox","env_vars":{"NAME-%02d":"value-%02d"},`+
			`"network_policy":{"mode":"custom","allow_domains":["host-%02d.example"]}}`, i, i, i)
		require.Equal(t, 201, send("POST", create, fmt.Sprintf("create-%02d", i), body))
	}
	i := 0
	for sb := range e.log.State().Sandboxes(e.org.ID) {
		require.Equal(t, map[string]string{fmt.Sprintf("NAME-%02d", i): fmt.Sprintf("value-%02d", i)}, sb.EnvVars)
		require.Equal(t, []string{fmt.Sprintf("host-%02d.example", i)}, sb.NetworkPolicy.AllowDomains)
		path := "/v1/sandbox/" + string(sb.ID)
		require.Equal(t, 201, send("POST", path+"/snapshot/create", fmt.Sprintf("snap-%02d", i),
			fmt.Sprintf(`{"name":"n-%02d"}`, i)))
		require.Equal(t, 204, send("POST", path+"/filesystem/write-file?path="+fmt.Sprintf("/file-%02d", i),
			fmt.Sprintf("write-%02d", i), fmt.Sprintf("contents-%02d", i)))
		require.Equal(t, 200, send("POST", path+"/process/execute", fmt.Sprintf("exec-%02d", i),
			fmt.Sprintf(`{"command":"cmd-%02d"}`, i)))
		i++
	}
	require.Equal(t, n, i)
	state := e.log.State()
	for i := range n {
		_, ok := state.SnapshotByName(e.org.ID, fmt.Sprintf("n-%02d", i))
		require.True(t, ok)
		require.Equal(t, fmt.Sprintf("contents-%02d", i), string(e.guests.files[fmt.Sprintf("/file-%02d", i)]))
		require.Equal(t, fmt.Sprintf("cmd-%02d", i), e.guests.execs[i].Command)
		for _, kind := range []string{"create", "snap", "write", "exec"} {
			rec, ok := state.Request(e.org.ID, fmt.Sprintf("%s-%02d", kind, i))
			require.True(t, ok)
			require.Equal(t, fmt.Sprintf("%s-%02d", kind, i), rec.Key)
		}
	}
}

func TestRequestIDs(t *testing.T) {
	e := newEnv(t)
	for given, kept := range map[string]bool{
		"abc-123": true, "A.b_c:d": true, strings.Repeat("x", 128): true,
		"": false, "a b": false, "-a": false, strings.Repeat("x", 129): false, "a\"b": false, "é": false,
	} {
		resp := e.send(request{
			method: "GET", path: "/v1/sandboxes", key: e.key, header: map[string]string{"X-Request-Id": given},
		})
		got := resp.header.Get("X-Request-Id")
		if kept {
			require.Equal(t, given, got)
		} else {
			require.Regexp(t, `^req-[a-z2-7]{26}$`, got)
		}
		require.Contains(t, e.logs.String(), `"request_id":"`+got+`"`)
	}
}

func TestAccessLogAndMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	extra := prometheus.NewCounter(prometheus.CounterOpts{Name: "stillframe_extra_total", Help: "Of another room."})
	require.NoError(t, reg.Register(extra))
	e := newEnv(t, func(c *Config) { c.Registry = reg })
	sandbox := e.sandbox()
	e.do("GET", "/v1/sandbox/"+sandbox+"?token=s3cret", nil)
	e.do("GET", "/v1/nowhere/"+strings.Repeat("x", 1000), nil)
	e.do("PUT", "/v1/sandboxes", nil)
	e.do("BREW", "/v1/sandboxes", nil)

	logs := e.logs.String()
	require.Equal(t, 5, strings.Count(logs, `"msg":"request"`), "a line for each request")
	require.NotContains(t, logs, "s3cret")
	require.NotContains(t, logs, e.key)
	require.NotContains(t, logs, strings.Repeat("x", 500))
	require.Contains(t, logs, `"path":"/v1/sandbox/`+sandbox+`"`)
	require.Contains(t, logs, `"org":"`+string(e.org.ID)+`"`)

	shown := e.send(request{method: "GET", path: "/metrics"})
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(string(shown.body)))
	require.NoError(t, err)
	require.Contains(t, families, "stillframe_extra_total")
	require.EqualValues(t, 1, families["stillframe_http_requests_in_flight"].GetMetric()[0].GetGauge().GetValue())
	counts := map[string]float64{}
	for _, m := range families["stillframe_http_requests_total"].GetMetric() {
		labels := map[string]string{}
		for _, l := range m.GetLabel() {
			labels[l.GetName()] = l.GetValue()
		}
		counts[labels["method"]+" "+labels["route"]+" "+labels["code"]] = m.GetCounter().GetValue()
	}
	require.Equal(t, map[string]float64{
		"POST /v1/sandbox 201": 1, "GET /v1/sandbox/{sandbox_id} 200": 1, "GET none 404": 1, "PUT none 405": 1,
		"GET none 501": 1,
	}, counts)
	require.NotContains(t, string(shown.body), sandbox)
	require.Contains(t, families, "stillframe_http_request_duration_seconds")
}

func TestPanicIsOneRequestsError(t *testing.T) {
	e := newEnv(t)
	sandbox := e.sandbox()
	e.guests.run = func(context.Context, ExecRequest) (ExecResult, error) { panic("a bug with a s3cret") }
	resp := e.do("POST", "/v1/sandbox/"+sandbox+"/process/execute", `{"command":"x"}`)
	require.Equal(t, 500, resp.status)
	require.Equal(t, "internal error", resp.message(t))
	require.Contains(t, e.logs.String(), "server_test.go", "the stack is in the log")
	require.Equal(t, 200, e.do("GET", "/v1/sandboxes", nil).status)
}

func TestReadiness(t *testing.T) {
	e := newEnv(t, func(c *Config) { c.Ready = func() error { return errors.New("no leader yet") } })
	resp := e.send(request{method: "GET", path: "/readyz"})
	require.Equal(t, 503, resp.status)
	require.Equal(t, "not ready: no leader yet", resp.message(t))
	require.Equal(t, "1", resp.header.Get("Retry-After"))
	require.Equal(t, 200, e.send(request{method: "GET", path: "/healthz"}).status)
}

func TestNodeStatus(t *testing.T) {
	want := NodeStatus{
		ID: "n", Name: "host", Version: "1.0", CloneMethod: "copy",
		VMM:    VMMStatus{"stillframe-devvmm", "/usr/bin/x", "v1", "no KVM here"},
		Egress: EgressStatus{false, "no iptables", "100.126.0.0/16"},
	}
	e := newEnv(t, func(c *Config) { c.NodeStatus = func() NodeStatus { return want } })
	resp := e.do("GET", "/v1/node", nil)
	require.Equal(t, 200, resp.status)
	require.JSONEq(t, `{"id":"n","name":"host","version":"1.0","clone_method":"copy",
		"egress":{"enforced":false,"reason":"no iptables","pool":"100.126.0.0/16"},"vmm":{"kind":"stillframe-devvmm",
		"binary":"/usr/bin/x","version":"v1","reason":"no KVM here"}}`, string(resp.body))
}

func TestClusterStatus(t *testing.T) {
	var digests []bool
	e := newEnv(t, func(c *Config) {
		c.ClusterStatus = func(_ context.Context, digest bool) ClusterStatus {
			digests = append(digests, digest)
			ms := int64(7)
			return ClusterStatus{Node: "n-1", Leader: "n-1", Nodes: []ClusterNode{
				{ID: "n-1", Name: "a", Leader: true, Voter: true, Reachable: true, LastContactMS: &ms, Role: "leader", Term: 2},
				{ID: "n-2", Name: "b", Voter: true},
			}}
		}
	})
	resp := e.do("GET", "/v1/cluster", nil)
	require.Equal(t, 200, resp.status)
	nodes := resp.object(t)["nodes"].([]any)
	require.EqualValues(t, 7, nodes[0].(map[string]any)["last_contact_ms"])
	require.Nil(t, nodes[1].(map[string]any)["last_contact_ms"])
	require.NotContains(t, nodes[1], "role", "what it has not said")
	require.Equal(t, 200, e.do("GET", "/v1/cluster?digest=true", nil).status)
	require.Equal(t, 400, e.do("GET", "/v1/cluster?digest=yes", nil).status)
	require.Equal(t, []bool{false, true}, digests)
	require.Equal(t, 401, e.send(request{method: "GET", path: "/v1/cluster"}).status)
	require.Equal(t, 501, newEnv(t).do("GET", "/v1/cluster", nil).status)
}

func TestSlowClients(t *testing.T) {
	e := newEnv(t, func(c *Config) {
		c.Limits.HeaderTimeout, c.Limits.BodyTimeout = 100*time.Millisecond, 100*time.Millisecond
	})
	for name, start := range map[string]string{
		"headers": "GET /v1/sandboxes HTTP/1.1\r\nHost: x\r\n",
		"body":    "POST /v1/sandbox HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
	} {
		conn := e.dial()
		_, err := io.WriteString(conn, start)
		require.NoError(t, err)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		require.NoError(t, err, name)
		require.Equal(t, 408, resp.StatusCode, name)
		require.Contains(t, string(readAll(t, resp)), `"message"`)
	}
	// A slow body that moves within its own time is not cut off by the time for headers.
	e2 := newEnv(t, func(c *Config) { c.Limits.HeaderTimeout = 100 * time.Millisecond })
	conn := e2.dial()
	_, err := fmt.Fprintf(conn, "POST /v1/sandbox HTTP/1.1\r\nHost: x\r\nAuthorization: %s\r\n"+
		"Content-Length: 2\r\n\r\n{", e2.key)
	require.NoError(t, err)
	time.Sleep(250 * time.Millisecond)
	_, err = io.WriteString(conn, "}")
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	require.Equal(t, 400, resp.StatusCode)
	readAll(t, resp)
}

func TestNotHTTP(t *testing.T) {
	e := newEnv(t)
	for _, garbage := range []string{"\x16\x03\x01\x02\x00\x01\r\n\r\n", "GET\r\n\r\n", "hello\r\n\r\n"} {
		conn := e.dial()
		_, err := io.WriteString(conn, garbage)
		require.NoError(t, err)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		require.NoError(t, err)
		require.Equal(t, 400, resp.StatusCode)
		require.JSONEq(t, `{"message":"the request is not valid HTTP"}`, string(readAll(t, resp)))
	}
}

func TestShutdownAnswersWhatWaits(t *testing.T) {
	e := newEnv(t)
	e.log.set(func() { e.log.outcome = nil })
	answered := make(chan response, 1)
	go func() { answered <- e.do("POST", create, `{"template_name":"system/busybox"}`) }()
	open := func() bool { return len(e.log.State().OpenIntents(testNode)) == 1 }
	require.Eventually(t, open, 5*time.Second, time.Millisecond)

	e.dial() // and never say a word
	ctx, cancel := context.WithTimeout(t.Context(), answerTime+time.Second)
	defer cancel()
	require.NoError(t, e.server.Shutdown(ctx))
	resp := <-answered
	require.Equal(t, 504, resp.status)
	require.Contains(t, resp.message(t), "still starting")
	_, err := net.Dial("tcp", e.server.Addr())
	require.Error(t, err)
}

func TestListenFailures(t *testing.T) {
	e := newEnv(t)
	again, err := New(Config{
		Addr: e.server.Addr(), Log: e.log, Guests: e.guests, Policies: e.policies, Secrets: e.secrets,
	})
	require.NoError(t, err)
	require.Error(t, again.Listen(t.Context()), "the address is in use")
	_, err = New(Config{})
	require.Error(t, err)
}

func TestAdminSocketFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "admin.sock")

	ln, err := listenUnix(t.Context(), path)
	require.NoError(t, err)
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.ModeSocket|0o600, st.Mode())
	_, err = listenUnix(t.Context(), path)
	require.ErrorContains(t, err, "another process")
	require.NoError(t, ln.Close())
	_, err = os.Stat(path)
	require.ErrorIs(t, err, os.ErrNotExist)

	// A socket that a killed process left behind.
	addr := &net.UnixAddr{Name: path, Net: "unix"}
	stale, err := net.ListenUnix("unix", addr)
	require.NoError(t, err)
	stale.SetUnlinkOnClose(false)
	require.NoError(t, stale.Close())
	ln, err = listenUnix(t.Context(), path)
	require.NoError(t, err)
	require.NoError(t, ln.Close())

	require.NoError(t, os.WriteFile(path, []byte("mine"), 0o600))
	_, err = listenUnix(t.Context(), path)
	require.ErrorContains(t, err, "no socket")
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 1)
}

func TestIDs(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		id := NewID("sbx")
		require.Regexp(t, `^sbx-[a-z2-7]{26}$`, id)
		require.False(t, seen[id])
		seen[id] = true
		require.True(t, validSnapshotName(NewSnapshotName()))
		require.Regexp(t, `^sf_[A-Za-z0-9_-]{43}$`, NewKeySecret())
	}
	require.Empty(t, timeView(0))
	require.Equal(t, "1970-01-01T00:00:01.000000Z", timeView(fsm.Time(1e9)))
}

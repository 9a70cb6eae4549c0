package httpd

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/valyala/fasthttp"
)

func readAll(t *testing.T, resp *http.Response) []byte {
	t.Helper()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	return body
}

// long makes the elements of a JSON array of n equal strings.
func long(n int, element string) string {
	return strings.TrimSuffix(strings.Repeat(`"`+element+`",`, n), ",")
}

const create, restore = "/v1/sandbox", "/v1/snapshot/restore"

func TestValidation(t *testing.T) {
	e := newEnv(t)
	sb := "/v1/sandbox/" + e.sandbox()
	snap, exec, files := sb+"/snapshot/create", sb+"/process/execute", sb+"/filesystem/"
	for _, tc := range []struct {
		path, body string
		fields     string // separated by blanks, in order
	}{
		{create, ``, "template_name"},
		{create, `{}`, "template_name"},
		{create, `{"template_name":null}`, "template_name"},
		{create, `{"template_name":""}`, "template_name"},
		{create, `{"template_name":" x"}`, "template_name"},
		{create, `{"template_name":"` + strings.Repeat("x", 65) + `"}`, "template_name"},
		{create, `{"template_name":"system/none"}`, "template_name"},
		{create, `{"template_name":1,"vcpu":"1","memory":1.5,"timeout":"x","auto_pause":"true","env_vars":[],` +
			`"network_policy":"allow-all","mounts":{}}`,
			"template_name vcpu memory timeout auto_pause env_vars network_policy mounts"},
		{create, `{"template_name":[],"vcpu":{},"memory":true,"timeout":[],"auto_pause":1,"env_vars":"A=b",` +
			`"network_policy":[]}`, "template_name vcpu memory timeout auto_pause env_vars network_policy"},
		{create, `{"template_name":"a","vcpu":0,"memory":511,"timeout":0}`, "vcpu memory timeout"},
		{create, `{"template_name":"a","vcpu":9,"memory":8194,"timeout":28801}`, "vcpu memory timeout"},
		{create, `{"template_name":"a","vcpu":1e0,"memory":1024.0,"timeout":-1}`, "vcpu memory timeout"},
		{create, `{"template_name":"a","vcpu":99999999999999999999,"memory":-99999999999999999999}`, "vcpu memory"},
		{create, `{"template_name":"a","memory":1023}`, "memory"},
		{create, `{"template_name":"a","env_vars":{"A":1,"":"x","B=":"y","C":"z\u0000","D":"fine"}}`,
			`env_vars[""] env_vars.A env_vars["B="] env_vars.C`},
		{create, `{"template_name":"a","env_vars":{"A":"` + strings.Repeat("x", 32<<10) + `"}}`, "env_vars"},
		{create, `{"template_name":"a","template_name":"b"}`, "template_name"},
		{create, `{"template_name":"a","network_policy":{}}`, "network_policy.mode"},
		{create, `{"template_name":"a","network_policy":{"mode":"off"}}`, "network_policy.mode"},
		{create, `{"template_name":"a","network_policy":{"mode":1,"allow_domains":"x","allow_cidrs":{},"transforms":1}}`,
			"network_policy.mode network_policy.allow_domains network_policy.allow_cidrs network_policy.transforms"},
		{create, `{"template_name":"a","network_policy":{"mode":"custom","allow_domains":["ok.com",1,null,"b"],` +
			`"allow_cidrs":["10.0.0.0/8",7,"10.0.0.1/8"],"transforms":[{},1,{"domain":"a.com","inject_headers":{"A":1},` +
			`"strip_headers":[2]}]}}`,
			"network_policy.allow_domains[1] network_policy.allow_domains[2] network_policy.allow_cidrs[1] " +
				"network_policy.transforms[1] network_policy.transforms[0].domain " +
				"network_policy.transforms[2].inject_headers.A network_policy.transforms[2].strip_headers[0] " +
				"network_policy.allow_domains[3] network_policy.allow_cidrs[2]"},
		{create, `{"template_name":"a","network_policy":{"mode":"allow-all","allow_domains":["a.com"],` +
			`"allow_cidrs":["10.0.0.0/8"]}}`, "network_policy.allow_domains network_policy.allow_cidrs"},
		{create, `{"template_name":"a","network_policy":{"mode":"custom","allow_domains":[` + long(51, "a.com") +
			`],"allow_cidrs":[` + long(11, "10.0.0.0/8") + `],"transforms":[` + long(21, "x") + `]}}`,
			"network_policy.allow_domains network_policy.allow_cidrs network_policy.transforms"},

		{restore, `{}`, "snapshot_name"},
		{restore, `{"snapshot_name":5,"timeout":"300","auto_pause":"no","network_policy":7}`,
			"timeout auto_pause network_policy snapshot_name"},
		{restore, `{"snapshot_name":"a/b"}`, "snapshot_name"},
		{restore, `{"snapshot_name":"` + strings.Repeat("x", 65) + `"}`, "snapshot_name"},
		{restore, `{"snapshot_name":"a","timeout":0}`, "timeout"},
		{restore, `{"snapshot_name":"a","network_policy":{"mode":"deny-all","transforms":[{"domain":"a.com"}]}}`,
			"network_policy.transforms"},

		{snap, `{"name":"a/b"}`, "name"},
		{snap, `{"name":""}`, "name"},
		{snap, `{"name":"-a"}`, "name"},
		{snap, `{"name":".a"}`, "name"},
		{snap, `{"name":"a\n"}`, "name"},
		{snap, `{"name":"ä"}`, "name"},
		{snap, `{"name":"` + strings.Repeat("x", 65) + `"}`, "name"},
		{snap, `{"name":7,"kill_sandbox_after":"yes"}`, "kill_sandbox_after name"},
		{snap, `{"kill_sandbox_after":0}`, "kill_sandbox_after"},

		{exec, `{}`, "command"},
		{exec, `{"command":""}`, "command"},
		{exec, `{"command":["ls"],"cwd":1,"envs":[],"timeout":1.5}`, "command cwd envs timeout"},
		{exec, `{"command":"a\u0000b","cwd":"relative","timeout":0}`, "command cwd timeout"},
		{exec, `{"command":"a","timeout":28801}`, "timeout"},
		{exec, `{"command":"` + strings.Repeat("x", 128<<10) + `"}`, "command"},

		{files + "read-file", `{}`, "path"},
		{files + "read-file", `{"path":"relative"}`, "path"},
		{files + "read-file", `{"path":"/a","offset":-1,"limit":"1","head":1.5,"tail":true}`,
			"offset limit head tail tail offset"},
		{files + "read-file", `{"path":"/a","head":1,"tail":1}`, "tail"},
		{files + "read-file", `{"path":"/a","head":1,"limit":1}`, "offset"},
		{files + "write-file", "", "path"},
		{files + "write-file?path=a", "", "path"},
		{files + "write-file?path=/a&permissions=9", "", "permissions"},
		{files + "write-file?path=/a&permissions=4755", "", "permissions"},
		{files + "write-file?path=/a%00", "", "path"},
		{files + "ls", `{"path":1,"recursive":"x","exclude":["a",1]}`, "path recursive exclude[1]"},
		{files + "ls", `{"path":"/","exclude":[` + long(101, "x") + `]}`, "exclude"},
		{files + "stat", `{"path":true}`, "path"},
		{files + "exists", `{"path":"/` + strings.Repeat("x", 4096) + `"}`, "path"},
		{files + "mkdir", `{"path":"/a","recursive":1,"permissions":"rwx"}`, "recursive permissions"},
		{files + "mkdir", `{"path":"/a","permissions":755}`, "permissions"},
		{files + "delete", `{"path":"/a\u0000","recursive":"no"}`, "path recursive"},
		{files + "move", `{}`, "src_path dst_path"},
		{files + "copy", `{"src_path":1,"dst_path":"b","recursive":0,"overwrite":0}`,
			"src_path dst_path recursive overwrite"},
	} {
		resp := e.do("POST", tc.path, tc.body)
		require.Equal(t, 400, resp.status, "%s %s: %s", tc.path, tc.body, resp.body)
		require.Equal(t, tc.fields, strings.Join(resp.fields(t), " "), "%s %.200s", tc.path, tc.body)
	}
	require.Zero(t, e.guests.count())
}

func TestGoodNames(t *testing.T) {
	e := newEnv(t)
	source := e.sandbox()
	for _, name := range []string{"a", "7", "A.b_c-d", strings.Repeat("x", 64), "a..", "0-"} {
		e.snapshot(source, name)
	}
}

func TestMalformedBodies(t *testing.T) {
	e := newEnv(t)
	deep := strings.Repeat("[", 20000)
	for _, body := range []string{
		"{", "null", "[]", "1", `"x"`, `{"a"}`, `{"a":1}{"b":2}`, `{"a":1} x`, "{'a':1}", "\xff\xfe",
		`{"a":"` + "\xff" + `"}`,
		`{"a":NaN}`, "template_name=x", deep, `{"x":` + deep, `{"x":` + deep + strings.Repeat("]", 20000) + `}`, "\x00",
	} {
		resp := e.do("POST", create, body)
		require.Equal(t, 400, resp.status, "%.80q", body)
		require.Contains(t, resp.message(t), "JSON")
	}
	// Within bounds, what is not known is ignored.
	body := `{"template_name":"system/busybox","x":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `}`
	require.Equal(t, 201, e.do("POST", create, body).status)
	// The type of the content does not matter, only that it is JSON.
	resp := e.send(request{
		method: "POST", path: create, body: `{"template_name":"system/busybox"}`, key: e.key,
		header: map[string]string{"X-Note": "curl -d sends another type"},
	})
	require.Equal(t, 201, resp.status)
}

func TestContentEncodingIsRefused(t *testing.T) {
	e := newEnv(t)
	resp := e.send(request{
		method: "POST", path: create, body: "{}", key: e.key, header: map[string]string{"Content-Encoding": "gzip"},
	})
	require.Equal(t, 400, resp.status)
	require.Contains(t, resp.message(t), "Content-Encoding")
}

func TestLargeBodies(t *testing.T) {
	e := newEnv(t)
	file := "/v1/sandbox/" + e.sandbox() + "/filesystem/write-file?path=/f"
	size := 10 << 20
	require.Equal(t, 204, e.do("POST", file, bytes.Repeat([]byte("x"), size)).status)
	require.Len(t, e.guests.files["/f"], size)

	for _, n := range []int{size + 1, size + 1<<20, 5 * size} {
		resp := e.do("POST", file, bytes.Repeat([]byte("x"), n))
		require.Equal(t, 413, resp.status, "%d bytes", n)
		require.Equal(t, 413, e.do("POST", create, bytes.Repeat([]byte("x"), n)).status)
	}
	resp := e.do("POST", create, `{"template_name":"`+strings.Repeat("x", 1<<20)+`"}`)
	require.Equal(t, 413, resp.status)
	require.Contains(t, resp.message(t), "1048576")

	// Without a Content-Length the server learns the size as it comes.
	req, err := http.NewRequestWithContext(t.Context(), "POST", e.base+file, io.LimitReader(zeros{}, int64(size)+1))
	require.NoError(t, err)
	req.Header.Set("Authorization", e.key)
	chunked, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	require.Equal(t, 413, chunked.StatusCode, "%s", readAll(t, chunked))
	require.Len(t, e.guests.files["/f"], size, "what is there stays")
}

func TestStrangersSendLittle(t *testing.T) {
	e := newEnv(t)
	for size, status := range map[int]int{100: 401, 64 << 10: 401, 64<<10 + 1: 401, 11 << 20: 401} {
		resp := e.send(request{method: "POST", path: create, body: make([]byte, size)})
		require.Equal(t, status, resp.status)
	}
	bound := e.server.beforeBody(&fasthttp.RequestHeader{})
	require.Equal(t, 64<<10, bound.MaxRequestBodySize)
	// The administration socket has no keys; what it takes is small.
	require.Equal(t, 413, e.adm("POST", "/admin/v1/orgs", strings.Repeat(" ", 64<<10+1)).status)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestLargeHeaders(t *testing.T) {
	e := newEnv(t)
	resp := e.send(request{
		method: "GET", path: "/v1/sandboxes", key: e.key, header: map[string]string{"X-Large": strings.Repeat("x", 20<<10)},
	})
	require.Equal(t, 431, resp.status)
}

func TestCommandsTooLargeForTheLog(t *testing.T) {
	e := newEnv(t)
	var strip []string
	for i := range 50 {
		strip = append(strip, fmt.Sprintf("%s-%d", strings.Repeat("x", 100), i))
	}
	var transforms []any
	for i := range 20 {
		transforms = append(transforms, map[string]any{"domain": fmt.Sprintf("a%d.example.com", i), "strip_headers": strip})
	}
	resp := e.do("POST", create, map[string]any{
		"template_name":  "system/busybox",
		"network_policy": map[string]any{"mode": "custom", "transforms": transforms},
	})
	require.Equal(t, 413, resp.status, "%s", resp.body)
}

package cli_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/cmd/stillframe/cli"
)

const secret = "sf_the-secret-of-this-test"

// now is the time of all tests here.
var now = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// world is a command line without a process: its variables, what it wrote, and a node that answers as told.
type world struct {
	t        *testing.T
	vars     map[string]string
	in       io.Reader
	out, err bytes.Buffer
	terminal bool
	node     *httptest.Server
	mu       sync.Mutex
	answers  map[string]reply
	asked    []request
}

type reply struct {
	status int
	body   string
}

type request struct {
	line, body, idempotency string
}

// newWorld starts a node that knows nothing yet: what has no answer is 404.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, in: strings.NewReader(""), answers: map[string]reply{}}
	w.node = httptest.NewServer(w)
	t.Cleanup(w.node.Close)
	w.vars = map[string]string{"LEAP0_BASE_URL": w.node.URL, "LEAP0_API_KEY": secret}
	return w
}

func (w *world) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	line := r.Method + " " + r.URL.RequestURI()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, request{line, string(body), r.Header.Get("Idempotency-Key")})
	if r.Header.Get("Authorization") != "Bearer "+secret {
		rw.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(rw, `{"message":"the API key is missing or not valid"}`)
		return
	}
	a, ok := w.answers[line]
	if !ok {
		if a, ok = w.answers[r.Method+" "+r.URL.Path]; !ok {
			a = reply{http.StatusNotFound, `{"message":"no such thing"}`}
		}
	}
	rw.WriteHeader(a.status)
	_, _ = io.WriteString(rw, a.body)
}

func (w *world) answer(line string, status int, body string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answers[line] = reply{status, body}
}

func (w *world) requests() []request {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]request(nil), w.asked...)
}

func (w *world) env() cli.Env {
	return cli.Env{
		In: w.in, Out: &w.out, Err: &w.err,
		Getenv:   func(name string) string { return w.vars[name] },
		Now:      func() time.Time { return now },
		Terminal: func(io.Writer) bool { return w.terminal },
		Version:  cli.Version{Version: "v1.2.3", Commit: "abcdef", Go: "go1.26"},
	}
}

// run runs one command line, gives its exit code, and sees to it that the key is nowhere in what it wrote.
func (w *world) run(args ...string) int {
	w.t.Helper()
	w.out.Reset()
	w.err.Reset()
	code := cli.Run(w.t.Context(), w.env(), args)
	require.NotContains(w.t, w.out.String(), secret)
	require.NotContains(w.t, w.err.String(), secret)
	return code
}

// does runs a command line that has to succeed and gives what it wrote to standard output.
func (w *world) does(args ...string) string {
	w.t.Helper()
	require.Equal(w.t, cli.ExitOK, w.run(args...), "%q wrote: %s", args, &w.err)
	return w.out.String()
}

const sandboxJSON = `{"id":"sbx-aaaa","template_id":"tpl-1","template_name":"system/busybox","vcpu":2,"memory":1536,` +
	`"disk":10240,"timeout":1800,"state":"running","auto_pause":false,"network_policy":{"mode":"deny-all"},` +
	`"network_status":"isolated","pod_id":"node-1","created_at":"2026-01-02T11:57:00.000000Z", "unknown": [1,  2]}`

const snapshotJSON = `{"id":"snap-aaaa","name":"warm","template_id":"tpl-1","template_name":"system/busybox",` +
	`"sandbox_id":"sbx-aaaa","vcpu":2,"memory":1024,"disk":10240,"stored_bytes":1610612736,"pause_ms":41.25,` +
	`"clone_method":"reflink","created_at":"2026-01-01T12:00:00.000000Z"}`

func TestSandboxCreate(t *testing.T) {
	w := newWorld(t)
	w.vars["TOKEN"] = "from-here"
	w.answer("POST /v1/sandbox", http.StatusCreated, sandboxJSON)

	require.Equal(t, ""+
		"ID         sbx-aaaa\n"+
		"State      running\n"+
		"Template   system/busybox\n"+
		"vCPU       2\n"+
		"Memory     1536 MiB\n"+
		"Disk       10 GiB\n"+
		"Timeout    30m0s\n"+
		"Network    deny-all\n"+
		"Reaches    isolated\n"+
		"Node       node-1\n"+
		"Age        3m\n",
		w.does("sandbox", "create", "--template", "system/busybox", "--vcpu", "2", "--memory", "5GiB",
			"--timeout", "30m", "--env", "A=1=2", "--env", "TOKEN", "--network", "deny-all"))
	require.Equal(t, sandboxJSON+"\n", w.does("sandbox", "create", "-o", "json"), "the node's JSON, unchanged")
	require.Equal(t, "sbx-aaaa\n", w.does("sandbox", "create", "-q", "--idempotency-key", "again"))

	reqs := w.requests()
	require.JSONEq(t, `{"template_name":"system/busybox","vcpu":2,"memory":5120,"timeout":1800,`+
		`"env_vars":{"A":"1=2","TOKEN":"from-here"},"network_policy":{"mode":"deny-all"}}`, reqs[0].body)
	require.JSONEq(t, `{"template_name":"system/debian:bookworm"}`, reqs[1].body, "the rest is the node's choice")
	require.NotEmpty(t, reqs[1].idempotency)
	require.Equal(t, "again", reqs[2].idempotency)
}

func TestSandboxWarningsAreShown(t *testing.T) {
	w := newWorld(t)
	w.answer("GET /v1/sandbox/sbx-a", http.StatusOK, `{"id":"sbx-a","state":"running","warnings":["not \u001b[31mdone"]}`)
	w.does("sandbox", "get", "sbx-a")
	require.Equal(t, "stillframe: warning: not  [31mdone\n", w.err.String(), "without the escape")
}

func TestSandboxList(t *testing.T) {
	w := newWorld(t)
	items := `{"id":"sbx-b","template_id":"tpl-1","template_name":"system/busybox","pod_id":"node-1","state":"running",` +
		`"timeout_at":` + fmt.Sprint(now.Add(4*time.Minute).Unix()) + `,"created_at":"2026-01-02T11:59:01Z"},` +
		`{"id":"sbx-a","template_id":"tpl-2","pod_id":"","state":"starting","created_at":"2025-12-01T00:00:00Z"}`
	w.answer("GET /v1/sandboxes?order-by=asc&page=1&page-size=100&sort=state&state=running", http.StatusOK,
		`{"items":[`+items+`],"total_items":2}`)
	list := []string{"sandbox", "list", "--state", "running", "--sort", "state", "--order", "asc"}
	require.Equal(t, ""+
		"ID      STATE      TEMPLATE         NODE     AGE   ENDS IN\n"+
		"sbx-b   running    system/busybox   node-1   59s   4m\n"+
		"sbx-a   starting   tpl-2            -        32d   -\n", trimLines(w.does(list...)))
	require.Equal(t, `{"items":[`+items+`],"total_items":2}`+"\n", w.does(append(list, "-o", "json")...))
	require.Equal(t, "sbx-b\nsbx-a\n", w.does(append(list, "-q")...))

	w.answer("GET /v1/sandboxes", http.StatusOK, `{"items":[],"total_items":0}`)
	require.Equal(t, `{"items":[],"total_items":0}`+"\n", w.does("sandbox", "list", "-o", "json"))
	require.Empty(t, w.does("sandbox", "list", "-q"))
}

func trimLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return strings.Join(lines, "\n")
}

func TestDeleteGoesOnAfterAFailure(t *testing.T) {
	w := newWorld(t)
	w.answer("DELETE /v1/sandbox/sbx-b", http.StatusNoContent, "")
	w.answer("DELETE /v1/sandbox/sbx-c", http.StatusConflict, `{"message":"it is being snapshotted"}`)
	require.Equal(t, cli.ExitNotFound, w.run("sandbox", "delete", "sbx-a", "sbx-b", "sbx-c"))
	require.Equal(t, "sbx-b deleted\n", w.out.String())
	require.Contains(t, w.err.String(), "sbx-a: no such thing\n")
	require.Contains(t, w.err.String(), "sbx-c: it is being snapshotted\n")
}

func TestSnapshots(t *testing.T) {
	w := newWorld(t)
	w.answer("POST /v1/sandbox/sbx-aaaa/snapshot/create", http.StatusCreated, snapshotJSON)
	require.Contains(t, w.does("snapshot", "create", "sbx-aaaa", "--name", "warm"), "Stored          1.5 GiB\n")
	require.JSONEq(t, `{"name":"warm"}`, w.requests()[0].body)
	w.does("snapshot", "create", "sbx-aaaa", "--kill-sandbox-after")
	require.JSONEq(t, `{"kill_sandbox_after":true}`, w.requests()[1].body)

	w.answer("GET /v1/snapshots", http.StatusOK, `{"items":[`+snapshotJSON+`],"total_items":1}`)
	require.Equal(t, ""+
		"NAME   ID          TEMPLATE         VCPU   MEMORY   STORED    AGE\n"+
		"warm   snap-aaaa   system/busybox   2      1 GiB    1.5 GiB   24h\n", w.does("snapshot", "list", "--query", "warm"))

	w.answer("POST /v1/snapshot/restore", http.StatusCreated, sandboxJSON)
	require.Equal(t, sandboxJSON+"\n", w.does("snapshot", "restore", "warm", "-o", "json", "--timeout", "90",
		"--auto-pause=false"))
	reqs := w.requests()
	require.JSONEq(t, `{"snapshot_name":"warm","timeout":90,"auto_pause":false}`, reqs[len(reqs)-1].body)
}

func TestSnapshotsAreDeletedByNameOrID(t *testing.T) {
	id := "snap-" + strings.Repeat("a2", 13)
	w := newWorld(t)
	w.answer("GET /v1/snapshots", http.StatusOK,
		`{"items":[{"id":"snap-x","name":"warmer"},`+snapshotJSON+`],"total_items":2}`)
	w.answer("DELETE /v1/snapshot/snap-aaaa", http.StatusNoContent, "")
	w.answer("DELETE /v1/snapshot/"+id, http.StatusNoContent, "")
	require.Equal(t, "warm deleted\n", w.does("snapshot", "delete", "warm"))
	require.Equal(t, id+"\n", w.does("snapshot", "delete", "-q", id))
	require.Equal(t, cli.ExitNotFound, w.run("snapshot", "delete", "war"), "part of a name is not a name")
	for _, r := range w.requests() {
		require.NotEqual(t, "DELETE /v1/snapshot/snap-x", r.line)
	}
}

func TestExec(t *testing.T) {
	w := newWorld(t)
	const path = "POST /v1/sandbox/sbx-a/process/execute"
	result := `{"exit_code":42,"stdout":"out\n","stderr":"err\n"}`
	w.answer(path, http.StatusOK, result)
	require.Equal(t, 42,
		w.run("exec", "--cwd", "/tmp", "--env", "A=1", "--timeout", "2m", "sbx-a", "--", "ls", "-l", "a b"))
	require.Equal(t, "out\n", w.out.String())
	require.Equal(t, "err\n", w.err.String(), "nothing but what the command wrote")
	require.JSONEq(t, `{"command":"ls -l 'a b'","cwd":"/tmp","envs":{"A":"1"},"timeout":120}`, w.requests()[0].body)

	require.Equal(t, 42, w.run("exec", "-o", "json", "sbx-a", "ls"))
	require.Equal(t, result+"\n", w.out.String())
	require.Equal(t, 42, w.run("exec", "--shell", "sbx-a", "echo $HOME |", "wc"))
	require.JSONEq(t, `{"command":"echo $HOME | wc"}`, w.requests()[2].body)

	w.answer(path, http.StatusOK, `{"exit_code":124,"stdout":"","stderr":"","timed_out":true,"stdout_truncated":true}`)
	require.Equal(t, 124, w.run("exec", "sbx-a", "sleep", "100"))
	require.Contains(t, w.err.String(), "its timeout ended the command")
	require.Contains(t, w.err.String(), "only the first part")

	require.Equal(t, cli.ExitExec, w.run("exec", "sbx-b", "ls"), "its own failures are not a command's exit code")
	require.Contains(t, w.err.String(), "stillframe sandbox list")
	w.answer(path, http.StatusBadRequest, `{"message":"bad"}`)
	require.Equal(t, cli.ExitExec, w.run("exec", "sbx-a", "ls"))
	for _, wrong := range [][]string{{"exec"}, {"exec", "sbx-a"}, {"exec", "sbx-a", "--"}, {"exec", "sbx-a", ""}} {
		require.Equal(t, cli.ExitUsage, w.run(wrong...), "%q", wrong)
	}
}

func TestExecSaysThatInputIsNotPassedOn(t *testing.T) {
	w := newWorld(t)
	w.answer("POST /v1/sandbox/sbx-a/process/execute", http.StatusOK, `{"exit_code":0,"stdout":"","stderr":""}`)
	r, pipe, err := os.Pipe()
	require.NoError(t, err)
	defer func() { require.NoError(t, r.Close()) }()
	w.in = r
	w.does("exec", "sbx-a", "true")
	require.Empty(t, w.err.String(), "nothing waits to be read")
	_, err = pipe.WriteString("data")
	require.NoError(t, err)
	require.NoError(t, pipe.Close())
	w.does("exec", "sbx-a", "cat")
	require.Contains(t, w.err.String(), "standard input is not passed on")
}

func TestCopyIn(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	script := filepath.Join(dir, "run.sh")
	require.NoError(t, os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755))
	w.answer("POST /v1/sandbox/sbx-a/filesystem/write-file", http.StatusNoContent, "")
	w.does("cp", script, "sbx-a:/opt/")
	w.in = strings.NewReader("piped")
	w.does("cp", "-", "sbx-a:/tmp/x")
	w.in = strings.NewReader("written")
	w.does("file", "write", "sbx-a", "/tmp/y", "--permissions", "0600")
	reqs := w.requests()
	require.Equal(t, "POST /v1/sandbox/sbx-a/filesystem/write-file?path=%2Fopt%2Frun.sh&permissions=0755", reqs[0].line)
	require.Equal(t, "#!/bin/sh\n", reqs[0].body)
	require.Equal(t, "piped", reqs[1].body)
	require.Equal(t, "POST /v1/sandbox/sbx-a/filesystem/write-file?path=%2Ftmp%2Fy&permissions=0600", reqs[2].line)
	require.Equal(t, cli.ExitUsage, w.run("cp", dir, "sbx-a:/x"), "a folder")
	require.Equal(t, cli.ExitFailure, w.run("cp", filepath.Join(dir, "none"), "sbx-a:/x"))
	require.Equal(t, cli.ExitUsage, w.run("cp", "sbx-a:/x", "sbx-b:/x"))
	require.Equal(t, cli.ExitUsage, w.run("cp", script, "./a:b"), "a colon behind a slash is of this host")
	require.Len(t, w.requests(), 3)
}

func TestCopyOut(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	const read = "POST /v1/sandbox/sbx-a/filesystem/read-file"
	w.answer(read, http.StatusOK, "content\n")
	w.does("cp", "sbx-a:/etc/hostname", dir)
	got, err := os.ReadFile(filepath.Join(dir, "hostname"))
	require.NoError(t, err)
	require.Equal(t, "content\n", string(got))
	require.Equal(t, "content\n", w.does("cp", "sbx-a:/etc/hostname", "-"))
	require.Equal(t, "content\n", w.does("file", "read", "sbx-a", "/etc/hostname"))

	w.answer(read, http.StatusNotFound, `{"message":"in the sandbox: no such file"}`)
	require.Equal(t, cli.ExitNotFound, w.run("cp", "sbx-a:/none", filepath.Join(dir, "none")))
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1, "a failed copy leaves nothing")
}

func TestFileList(t *testing.T) {
	w := newWorld(t)
	body := `{"items":[` +
		`{"name":"d","path":"/x/d","is_dir":true,"size":4096,"mode":"755","mtime":1767355140,"owner":"root",` +
		`"group":"root"},` +
		`{"name":"l","path":"/x/l","size":1,"mode":"777","mtime":1767355140,"owner":"root","group":"root",` +
		`"is_symlink":true,"link_target":"f"},` +
		`{"name":"f","path":"/x/f","size":1536,"mode":"644","mtime":1767355140,"owner":"root","group":"root"}]}`
	w.answer("POST /v1/sandbox/sbx-a/filesystem/ls", http.StatusOK, body)
	require.Equal(t, ""+
		"MODE   OWNER       SIZE      AGE   PATH\n"+
		"755    root:root   -         60s   /x/d/\n"+
		"777    root:root   1 B       60s   /x/l -> f\n"+
		"644    root:root   1.5 KiB   60s   /x/f\n", w.does("file", "list", "sbx-a", "/x"))
	require.Equal(t, body+"\n", w.does("file", "list", "sbx-a", "/x", "-o", "json"))
}

func TestNodeTemplateVersion(t *testing.T) {
	w := newWorld(t)
	w.answer("GET /v1/node", http.StatusOK, `{"id":"n-1","name":"host","version":"v1","vmm":{"kind":"stillframe-devvmm",`+
		`"binary":"/opt/devvmm","version":"7.2","reason":"KVM is not usable"},"clone_method":"copy",`+
		`"egress":{"enforced":true,"pool":"100.126.0.0/16"}}`)
	require.Contains(t, w.does("node", "status"), "Why this VMM   KVM is not usable\n")
	require.Contains(t, w.does("node", "status"), "Policies       enforced\n")
	w.answer("GET /v1/templates", http.StatusOK, `{"items":[{"id":"tpl-1","name":"system/busybox",`+
		`"digest":"sha256:0123456789abcdef","created_at":"2026-01-02T11:00:00Z"}],"total_items":1}`)
	require.Equal(t, ""+
		"NAME             ID      DIGEST                AGE\n"+
		"system/busybox   tpl-1   sha256:0123456789ab   60m\n", w.does("template", "list"))
	require.Equal(t, "stillframe v1.2.3, commit abcdef, go1.26\n", w.does("version"))
	require.Equal(t, `{"version":"v1.2.3","commit":"abcdef","go":"go1.26"}`+"\n", w.does("version", "-o", "json"))
}

func TestClusterStatus(t *testing.T) {
	w := newWorld(t)
	body := `{"node":"n-1","leader":"n-1","nodes":[` +
		`{"id":"n-1","name":"a","voter":true,"leader":true,"reachable":true,"last_contact_ms":0,"role":"leader",` +
		`"version":"v9",` +
		`"applied_index":42,"sandboxes":2,"total":{"vcpu":8,"memory":2048,"disk":4096},` +
		`"free":{"vcpu":6,"memory":0,"disk":2048},"vmm":"cloud-hypervisor","vmm_version":"v51"},` +
		`{"id":"n-2","name":"b","voter":false,"reachable":false,"last_contact_ms":65000,"vmm_version":"v51",` +
		`"total":{"vcpu":8,"memory":1024,"disk":1024},"free":{"vcpu":8,"memory":1024,"disk":1024}},` +
		`{"id":"n-3","name":"c","voter":true,"reachable":false,"lost":true,"drained":true,"last_contact_ms":null},` +
		`{"id":"n-4","name":"d","reachable":true,"role":"follower","last_contact_ms":0,"skew_ms":-1500.04,"trip_ms":0.3}]}`
	w.answer("GET /v1/cluster", http.StatusOK, body)
	var table [][]string
	for line := range strings.Lines(w.does("cluster", "status")) {
		table = append(table, regexp.MustCompile(` {3,}`).Split(strings.TrimSpace(line), -1))
	}
	require.Equal(t, [][]string{
		{"NAME", "ID", "ROLE", "VOTER", "APPLIED", "SANDBOXES", "VCPU FREE", "MEMORY FREE", "DISK FREE", "VMM",
			"VERSION", "CONTACT", "SKEW"},
		{"a", "n-1", "leader", "yes", "42", "2", "6 of 8", "0 of 2 GiB", "2 GiB of 4 GiB", "v51", "v9", "0s ago", "-"},
		{"b", "n-2", "unreachable", "no", "-", "0", "8 of 8", "1 GiB of 1 GiB", "1 GiB of 1 GiB", "v51", "-",
			"65s ago", "-"},
		{"c", "n-3", "unreachable, lost, drained", "yes", "-", "0", "0 of 0", "0 of 0", "0 of 0", "-", "-", "never", "-"},
		{"d", "n-4", "follower", "no", "-", "0", "0 of 0", "0 of 0", "0 of 0", "-", "-", "0s ago", "-1500.0 ms"},
	}, table)
	require.Equal(t, body+"\n", w.does("cluster", "status", "-o", "json"))
	require.Equal(t, "n-1\nn-2\nn-3\nn-4\n", w.does("cluster", "status", "-q"))
}

func TestInterrupted(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.Equal(t, cli.ExitInterrupted, cli.Run(ctx, w.env(), []string{"sandbox", "create"}))
	require.Contains(t, w.err.String(), "--idempotency-key ")
	require.Equal(t, cli.ExitInterrupted, cli.Run(ctx, w.env(), []string{"exec", "sbx-a", "ls"}))
}

func TestProgressIsForTerminalsAndLeavesNothing(t *testing.T) {
	w := newWorld(t)
	w.answer("POST /v1/sandbox", http.StatusCreated, sandboxJSON)
	w.does("sandbox", "create")
	require.Empty(t, w.err.String())
	w.terminal = true
	w.does("sandbox", "create", "-q")
	require.Contains(t, w.err.String(), "making a sandbox from system/debian:bookworm… 0.0s")
	require.True(t, strings.HasSuffix(w.err.String(), "\r\033[K"), "the line is erased")
	require.Equal(t, "sbx-aaaa\n", w.out.String())
}

package httpd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/fsm"
)

func TestExecute(t *testing.T) {
	e := newEnv(t)
	path := "/v1/sandbox/" + e.sandbox() + "/process/execute/"
	e.guests.run = func(context.Context, ExecRequest) (ExecResult, error) {
		return ExecResult{ExitCode: 3, Stdout: []byte("a<b>&\"\n\x00\u2028"), Stderr: []byte("\xff\xfeé\xc3")}, nil
	}
	resp := e.do("POST", path, `{"command":"ls","cwd":"/tmp","envs":{"A":"b"},"timeout":7,"unknown":1}`)
	require.Equal(t, 200, resp.status)
	require.Equal(t, map[string]any{
		"exit_code": 3.0, "stdout": "a<b>&\"\n\x00\u2028", "stderr": "\uFFFDé\uFFFD",
	}, resp.object(t))
	require.Equal(t, ExecRequest{
		Command: "ls", Cwd: "/tmp", Env: map[string]string{"A": "b"}, Timeout: 7 * time.Second, MaxOutput: 4 << 20,
	}, e.guests.execs[0])

	e.do("POST", path, `{"command":"ls","cwd":null,"envs":null,"timeout":null}`)
	require.Equal(t, ExecRequest{Command: "ls", Timeout: 30 * time.Second, MaxOutput: 4 << 20}, e.guests.execs[1])

	e.guests.run = func(context.Context, ExecRequest) (ExecResult, error) {
		return ExecResult{
			ExitCode: 137, TimedOut: true, Stdout: []byte("so far"), StdoutTruncated: true, StderrTruncated: true,
		}, nil
	}
	require.Equal(t, map[string]any{
		"exit_code": 124.0, "stdout": "so far", "stderr": "", "timed_out": true, "stdout_truncated": true,
		"stderr_truncated": true,
	}, e.do("POST", path, `{"command":"sleep 100"}`).object(t))
	require.NotContains(t, e.logs.String(), "sleep 100", "a command line may hold secrets")
}

func TestExecuteEndsWithItsDeadline(t *testing.T) {
	e := newEnv(t, func(c *Config) { c.Limits.ExecMargin = 20 * time.Millisecond })
	path := "/v1/sandbox/" + e.sandbox() + "/process/execute"
	e.guests.run = func(ctx context.Context, _ ExecRequest) (ExecResult, error) {
		<-ctx.Done()
		return ExecResult{}, fmt.Errorf("exec: %w", ctx.Err())
	}
	resp := e.do("POST", path, `{"command":"x","timeout":1}`)
	require.Equal(t, 504, resp.status)
	require.Contains(t, resp.message(t), "may or may not")
}

func TestStatesThatTakeCommands(t *testing.T) {
	e := newEnv(t, func(c *Config) { c.Limits.Wait = 20 * time.Millisecond })
	snapshotting, stopped := e.sandbox(), e.sandbox()
	sb, _ := e.log.State().Sandbox(fsm.SandboxID(stopped))
	e.log.must(t, fsm.ReportStopped{Now: now(), Sandbox: sb.ID, Owner: sb.Owner, Epoch: sb.Epoch, Reason: "gone"})
	e.log.set(func() { e.log.outcome = nil })
	require.Equal(t, 504, e.do("POST", "/v1/sandbox/"+snapshotting+"/snapshot/create", nil).status)
	starting := e.do("POST", create, `{"template_name":"system/busybox"}`).text(t, "resource", "id")

	for id, status := range map[string]int{snapshotting: 200, stopped: 409, starting: 409} {
		sb := "/v1/sandbox/" + id
		require.Equal(t, status, e.do("POST", sb+"/process/execute", `{"command":"x"}`).status, id)
		require.Equal(t, status, e.do("POST", sb+"/filesystem/exists", `{"path":"/"}`).status, id)
	}
	require.Equal(t, 1, e.guests.count())
}

func TestFiles(t *testing.T) {
	e := newEnv(t)
	sb := "/v1/sandbox/" + e.sandbox() + "/filesystem/"
	contents := []byte("\x00\xff any bytes\n")
	require.Equal(t, 204, e.do("POST", sb+"write-file/?path=/a%20b&permissions=0755", contents).status)
	require.Equal(t, contents, e.guests.files["/a b"])
	require.Equal(t, fs.FileMode(0o755), e.guests.perms["/a b"])
	require.Equal(t, 204, e.do("POST", sb+"write-file?path=/empty", nil).status)
	require.Empty(t, e.guests.files["/empty"])
	require.Zero(t, e.guests.perms["/empty"])

	resp := e.do("POST", sb+"read-file", `{"path":"/a b"}`)
	require.Equal(t, 200, resp.status)
	require.Equal(t, "application/octet-stream", resp.header.Get("Content-Type"))
	require.Equal(t, contents, resp.body)
	require.Equal(t, 404, e.do("POST", sb+"read-file", `{"path":"/none"}`).status)
	e.do("POST", sb+"read-file", `{"path":"/a b","offset":1,"limit":0}`)
	one, zero := uint64(1), uint64(0)
	require.Equal(t, ReadFileRequest{Path: "/a b", Offset: &one, Limit: &zero}, e.guests.last)
	e.do("POST", sb+"read-file", `{"path":"/a b","tail":1}`)
	require.Equal(t, ReadFileRequest{Path: "/a b", Tail: &one}, e.guests.last)

	require.Equal(t, map[string]any{"exists": true}, e.do("POST", sb+"exists", `{"path":"/a b"}`).object(t))
	require.Equal(t, map[string]any{"exists": false}, e.do("POST", sb+"exists", `{"path":"/none"}`).object(t))
	require.EqualValues(t, len(contents), e.do("POST", sb+"stat", `{"path":"/a b"}`).object(t)["size"])
	require.JSONEq(t, `{"items":[]}`, string(e.do("POST", sb+"ls", `{"path":"/"}`).body))

	for _, tc := range []struct {
		call, body string
		want       any
	}{
		{"ls", `{"path":"/d","recursive":true,"exclude":[".git"]}`, LsRequest{"/d", true, []string{".git"}}},
		{"mkdir", `{"path":"/d","recursive":true,"permissions":"700"}`, MkdirRequest{"/d", true, "700"}},
		{"mkdir", `{"path":"/d","permissions":null}`, MkdirRequest{Path: "/d"}},
		{"delete", `{"path":"/d","recursive":true}`, DeleteRequest{"/d", true}},
		{"move", `{"src_path":"/a","dst_path":"/b","overwrite":true}`, TransferRequest{"/a", "/b", false, true}},
		{"copy", `{"src_path":"/a","dst_path":"/b","recursive":true}`, TransferRequest{"/a", "/b", true, false}},
	} {
		resp := e.do("POST", sb+tc.call, tc.body)
		require.Less(t, resp.status, 300, tc.call)
		require.Equal(t, tc.want, e.guests.last)
	}
	require.NotContains(t, e.logs.String(), "a b", "paths may be private")
}

func TestLargeFileIsReadInParts(t *testing.T) {
	e := newEnv(t, func(c *Config) { c.Limits.Body = 1000 })
	sb := "/v1/sandbox/" + e.sandbox() + "/filesystem/"
	e.guests.files["/f"] = make([]byte, 1001)
	resp := e.do("POST", sb+"read-file", `{"path":"/f"}`)
	require.Equal(t, 413, resp.status)
	require.Contains(t, resp.message(t), "offset and limit")
	e.guests.files["/f"] = make([]byte, 1000)
	require.Equal(t, 200, e.do("POST", sb+"read-file", `{"path":"/f"}`).status)
}

func TestGuestErrors(t *testing.T) {
	e := newEnv(t)
	sb := "/v1/sandbox/" + e.sandbox() + "/"
	bodies := map[string]string{
		"process/execute": `{"command":"x"}`, "filesystem/read-file": `{"path":"/f"}`, "filesystem/write-file?path=/f": `x`,
		"filesystem/ls": `{"path":"/f"}`, "filesystem/stat": `{"path":"/f"}`, "filesystem/exists": `{"path":"/f"}`,
		"filesystem/mkdir": `{"path":"/f"}`, "filesystem/delete": `{"path":"/f"}`,
		"filesystem/move": `{"src_path":"/a","dst_path":"/b"}`, "filesystem/copy": `{"src_path":"/a","dst_path":"/b"}`,
	}
	for _, tc := range []struct {
		err    error
		status int
	}{
		{&GuestError{GuestNotFound, "w"}, 404},
		{&GuestError{GuestIsDirectory, "w"}, 409},
		{&GuestError{GuestNotDirectory, "w"}, 409},
		{&GuestError{GuestPermission, "w"}, 403},
		{&GuestError{GuestExists, "w"}, 409},
		{&GuestError{GuestInvalid, "w"}, 400},
		{&GuestError{GuestTimeout, "w"}, 504},
		{&GuestError{GuestInternal, "no space left on device"}, 500},
		{&GuestError{"new", "w"}, 500},
		{fmt.Errorf("dial: %w", ErrGuestUnreachable), 503},
		{fmt.Errorf("wrapped: %w", fsm.Errorf(fsm.KindConflict, "the sandbox is stopped")), 409},
		{fmt.Errorf("call: %w", context.DeadlineExceeded), 504},
		{errors.New("a bug"), 500},
	} {
		for call, body := range bodies {
			e.guests.fail = tc.err
			resp := e.do("POST", sb+call, body)
			require.Equal(t, tc.status, resp.status, "%s: %v", call, tc.err)
			var guest *GuestError
			if errors.As(tc.err, &guest) {
				require.Contains(t, resp.message(t), guest.Message)
			}
			require.NotContains(t, resp.message(t), "a bug")
		}
	}
}

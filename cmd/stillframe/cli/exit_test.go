package cli_test

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/cmd/stillframe/cli"
)

func TestEveryStatusHasItsExitCode(t *testing.T) {
	for status, code := range map[int]int{
		400: cli.ExitUsage, 401: cli.ExitKey, 403: cli.ExitFailure, 404: cli.ExitNotFound, 409: cli.ExitConflict,
		413: cli.ExitFailure, 429: cli.ExitUnavailable, 500: cli.ExitFailure, 501: cli.ExitFailure,
		503: cli.ExitUnavailable, 504: cli.ExitTimeout,
	} {
		w := newWorld(t)
		w.answer("POST /v1/sandbox", status, `{"message":"the node's words"}`)
		require.Equal(t, code, w.run("sandbox", "create"), status)
		require.Contains(t, w.err.String(), "stillframe: the node's words\n")
		require.Empty(t, w.out.String())
	}
}

func TestExitCodesAreDocumented(t *testing.T) {
	w := newWorld(t)
	documented := map[int]bool{}
	lines := bufio.NewScanner(strings.NewReader(w.does("help", "exit-codes")))
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 1 && strings.HasPrefix(lines.Text(), "  ") {
			code, err := strconv.Atoi(fields[0])
			require.NoError(t, err, lines.Text())
			documented[code] = true
		}
	}
	require.Equal(t, map[int]bool{
		cli.ExitOK: true, cli.ExitFailure: true, cli.ExitUsage: true, cli.ExitNotFound: true, cli.ExitConflict: true,
		cli.ExitKey: true, cli.ExitUnavailable: true, cli.ExitTimeout: true, cli.ExitInterrupted: true,
	}, documented)
	require.Contains(t, w.out.String(), fmt.Sprintf("with %d\nwhen there is no exit code to tell", cli.ExitExec))
}

func TestBadFieldsAreListed(t *testing.T) {
	w := newWorld(t)
	w.answer("POST /v1/sandbox", http.StatusBadRequest, `{"message":"the request is not valid","errors":[`+
		`{"field":"vcpu","error":"must be 1 to 8"},{"field":"env_vars.A B","error":"is no name"}]}`)
	require.Equal(t, cli.ExitUsage, w.run("sandbox", "create", "--vcpu", "9"))
	require.Equal(t, "stillframe: the request is not valid\n  vcpu: must be 1 to 8\n  env_vars.A B: is no name\n",
		w.err.String())
}

func TestWhatHasBegunIsTold(t *testing.T) {
	w := newWorld(t)
	w.answer("POST /v1/sandbox", http.StatusGatewayTimeout,
		`{"message":"it has not started in time","resource":{"id":"sbx-zzzz","state":"starting"}}`)
	require.Equal(t, cli.ExitTimeout, w.run("sandbox", "create", "--idempotency-key", "mine"))
	require.Contains(t, w.err.String(), "sbx-zzzz, now starting")
	require.Contains(t, w.err.String(), "--idempotency-key mine\n")
}

func TestWrongCommandLines(t *testing.T) {
	w := newWorld(t)
	for _, tc := range []struct{ line, says string }{
		{"sandbx", `did you mean sandbox?`},
		{"sandbox lst", `did you mean get or list?`},
		{"sandbox frobnicate", `"frobnicate" is not a command of "stillframe sandbox"`},
		{"help sandbox frobnicate", `there is no command "sandbox frobnicate"`},
		{"sandbox get", "SANDBOX is missing"},
		{"sandbox get a b", `unexpected argument "b"`},
		{"sandbox create --frob", "unknown flag: --frob"},
		{"sandbox create --memory much", "want MiB"},
		{"sandbox create --timeout -5s", "want seconds"},
		{"sandbox create --env =x", "want NAME=VALUE"},
		{"sandbox create --env UNSET", "no such variable"},
		{"sandbox create --network custom", "want one of allow-all, deny-all"},
		{"sandbox create --network deny-all --policy-file f", "exclude each other"},
		{"sandbox create --policy-file /does/not/exist", "no such file"},
		{"sandbox list --state asleep", "want one of starting, running"},
		{"sandbox list -q -o json", "exclude each other"},
		{"sandbox list --wait 0s", "--wait must be more than zero"},
		{"sandbox list --url localhost:80", "want http://HOST:PORT"},
		{"sandbox list --key-file /does/not/exist", "no such file"},
		{"key create", "--org is missing"},
		{"version extra", `unexpected argument "extra"`},
	} {
		require.Equal(t, cli.ExitUsage, w.run(strings.Fields(tc.line)...), tc.line)
		require.Contains(t, w.err.String(), tc.says, tc.line)
		require.Empty(t, w.out.String(), tc.line)
	}
	require.Empty(t, w.requests(), "nothing was sent")
}

func TestNoNode(t *testing.T) {
	w := newWorld(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	free := "http://" + listener.Addr().String()
	require.NoError(t, listener.Close())
	require.Equal(t, cli.ExitUnavailable, w.run("sandbox", "list", "--url", free))
	require.Contains(t, w.err.String(), "connection refused")
	require.Contains(t, w.err.String(), "stillframe dev --data")

	w.vars["LEAP0_BASE_URL"] = ""
	require.Equal(t, cli.ExitUsage, w.run("sandbox", "list"))
	require.Contains(t, w.err.String(), "set LEAP0_BASE_URL")
}

func TestNoAnswerInTime(t *testing.T) {
	w := newWorld(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, never answers
	require.NoError(t, err)
	defer func() { require.NoError(t, listener.Close()) }()
	start := time.Now()
	code := w.run("sandbox", "create", "--url", "http://"+listener.Addr().String(), "--wait", "200ms")
	require.Equal(t, cli.ExitTimeout, code)
	require.GreaterOrEqual(t, time.Since(start), 200*time.Millisecond)
	require.Contains(t, w.err.String(), "--idempotency-key ")
}

func TestWhereTheKeyComesFrom(t *testing.T) {
	w := newWorld(t)
	w.answer("GET /v1/sandboxes", http.StatusOK, `{"items":[],"total_items":0}`)
	list := []string{"sandbox", "list", "-q"}
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(content), mode))
		return path
	}

	w.vars["LEAP0_API_KEY"] = ""
	require.Equal(t, cli.ExitKey, w.run(list...))
	require.Contains(t, w.err.String(), "no API key is given")
	w.vars["LEAP0_API_KEY"] = "sf_wrong"
	require.Equal(t, cli.ExitKey, w.run(list...))
	require.Contains(t, w.err.String(), "the API key is missing or not valid")
	require.NotContains(t, w.err.String(), "sf_wrong")
	w.vars["STILLFRAME_API_KEY"] = secret
	w.does(list...)
	w.vars["STILLFRAME_API_KEY"] = "sf_wrong"

	w.does(append(list, "--key-file", write("key", secret+"\n", 0o600))...)
	require.Empty(t, w.err.String())
	w.does(append(list, "--key-file", write("open", secret, 0o644))...)
	require.Contains(t, w.err.String(), "other users can read the key")
	require.Equal(t, cli.ExitUsage, w.run(append(list, "--key-file", write("two", secret+" "+secret, 0o600))...))

	env := "# written by a node\nexport LEAP0_API_KEY='" + secret + "'\nLEAP0_BASE_URL=" + w.node.URL + "\n\n"
	w.vars = map[string]string{"LEAP0_API_KEY": "sf_wrong", "LEAP0_BASE_URL": "http://127.0.0.1:1"}
	w.does(append(list, "--env-file", write("dev.env", env, 0o600))...)
	require.Equal(t, cli.ExitUsage, w.run(append(list, "--env-file", write("bad.env", secret, 0o600))...))
}

package agent

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/hypervisor/guest"
)

// wait bounds what must not hang; no test measures a time.
const wait = 30 * time.Second

func runHere(t *testing.T, c *guest.Client, req guest.ExecRequest) guest.ExecResult {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	res, err := c.Exec(ctx, req)
	require.NoError(t, err)
	return res
}

func TestExecResults(t *testing.T) {
	c := startAgentHere(t)
	dir := t.TempDir()
	for name, tc := range map[string]struct {
		req            guest.ExecRequest
		code           int
		stdout, stderr string
	}{
		"shell":       {guest.ExecRequest{Command: "echo out; echo err >&2; exit 3"}, 3, "out\n", "err\n"},
		"argv":        {guest.ExecRequest{Argv: []string{"printf", "%s|", "a b", "$HOME", ""}}, 0, "a b|$HOME||", ""},
		"cwd":         {guest.ExecRequest{Command: "pwd", Cwd: dir}, 0, dir + "\n", ""},
		"env":         {guest.ExecRequest{Command: "echo $A", Env: map[string]string{"A": "b=c"}}, 0, "b=c\n", ""},
		"home":        {guest.ExecRequest{Command: "echo $HOME"}, 0, "/root\n", ""},
		"signal":      {guest.ExecRequest{Command: "kill -TERM $$"}, 128 + 15, "", ""},
		"stdin":       {guest.ExecRequest{Command: "cat"}, 0, "", ""},
		"not utf-8":   {guest.ExecRequest{Command: `printf '\377\000x'`}, 0, "\xff\x00x", ""},
		"own session": {guest.ExecRequest{Command: "cut -d' ' -f6 /proc/$$/stat | grep -cx $$"}, 0, "1\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			res := runHere(t, c, tc.req)
			require.Equal(t, tc.code, res.ExitCode)
			require.Equal(t, tc.stdout, string(res.Stdout))
			require.Equal(t, tc.stderr, string(res.Stderr))
			require.False(t, res.TimedOut || res.Killed || res.StdoutTruncated || res.StderrTruncated)
		})
	}
}

// Nothing of the agent's own environment reaches a command.
func TestExecEnvironmentIsBuiltFromNothing(t *testing.T) {
	t.Setenv("AGENT_SECRET", "do-not-tell")
	c := startAgentHere(t)
	res := runHere(t, c, guest.ExecRequest{Argv: []string{"env"}})
	require.NotContains(t, string(res.Stdout), "do-not-tell")
	require.Contains(t, string(res.Stdout), "PATH=/usr/local/sbin:")
}

func TestExecRefusals(t *testing.T) {
	c := startAgentHere(t)
	dir := t.TempDir()
	script := filepath.Join(dir, "script")
	require.NoError(t, os.WriteFile(script, []byte("no program"), 0o600))
	garbage := filepath.Join(dir, "garbage")
	require.NoError(t, os.WriteFile(garbage, []byte("\x01\x02\x03"), 0o700))
	for name, tc := range map[string]struct {
		req  guest.ExecRequest
		code guest.Code
	}{
		"nothing":           {guest.ExecRequest{}, guest.CodeInvalid},
		"both":              {guest.ExecRequest{Command: "true", Argv: []string{"true"}}, guest.CodeInvalid},
		"no such program":   {guest.ExecRequest{Argv: []string{"no-such-program"}}, guest.CodeNotFound},
		"no such path":      {guest.ExecRequest{Argv: []string{"/no/such/program"}}, guest.CodeNotFound},
		"not executable":    {guest.ExecRequest{Argv: []string{script}}, guest.CodePermission},
		"not a program":     {guest.ExecRequest{Argv: []string{garbage}}, guest.CodeInvalid},
		"a directory":       {guest.ExecRequest{Argv: []string{dir}}, guest.CodeIsDirectory},
		"no such cwd":       {guest.ExecRequest{Command: "true", Cwd: "/no/such"}, guest.CodeNotFound},
		"cwd is a file":     {guest.ExecRequest{Command: "true", Cwd: script}, guest.CodeNotDirectory},
		"relative cwd":      {guest.ExecRequest{Command: "true", Cwd: "tmp"}, guest.CodeInvalid},
		"bad variable":      {guest.ExecRequest{Command: "true", Env: map[string]string{"A=B": "c"}}, guest.CodeInvalid},
		"negative timeout":  {guest.ExecRequest{Command: "true", Timeout: -1}, guest.CodeInvalid},
		"too long a run":    {guest.ExecRequest{Command: "true", Timeout: guest.MaxExecTimeout + 1}, guest.CodeInvalid},
		"too much to store": {guest.ExecRequest{Command: "true", MaxOutput: guest.MaxOutputLimit + 1}, guest.CodeInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.Exec(t.Context(), tc.req)
			require.Equal(t, tc.code, guest.CodeOf(err), "%v", err)
			_, err = c.ExecStream(t.Context(), tc.req, io.Discard, io.Discard)
			require.Equal(t, tc.code, guest.CodeOf(err), "streamed: %v", err)
		})
	}
}

func alive(pid string) bool {
	n, err := strconv.Atoi(strings.TrimSpace(pid))
	return err == nil && syscall.Kill(n, 0) == nil
}

func TestExecTimeoutKillsTheGroupAndKeepsTheOutput(t *testing.T) {
	c := startAgentHere(t)
	file := filepath.Join(t.TempDir(), "child")
	res := runHere(t, c, guest.ExecRequest{
		Command: "sleep 300 & echo $! > " + file + "; echo so far; wait", Timeout: 500 * time.Millisecond,
	})
	require.True(t, res.TimedOut)
	require.Equal(t, 128+9, res.ExitCode)
	require.Equal(t, "so far\n", string(res.Stdout))
	child, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return !alive(string(child)) || zombie(string(child)) }, wait, time.Millisecond)
}

// zombie: on this machine process 1 may take its time to reap.
func zombie(pid string) bool {
	stat, err := os.ReadFile("/proc/" + strings.TrimSpace(pid) + "/stat")
	return err == nil && strings.Contains(string(stat), ") Z ")
}

// A child that is left behind keeps the pipe open, and must neither hold the answer nor die when it writes.
func TestExecDoesNotWaitForTheBackground(t *testing.T) {
	c := startAgentHere(t)
	file := filepath.Join(t.TempDir(), "alive")
	release := filepath.Join(t.TempDir(), "go")
	res := runHere(t, c, guest.ExecRequest{
		// The child writes far more than a pipe holds once it is told to, then says that it lived through it.
		Command: "(while [ ! -e " + release + " ]; do sleep 0.01; done; head -c 1000000 /dev/zero; echo yes > " + file +
			") & echo started",
		Timeout: 10 * time.Minute, // far longer than the test may take
	})
	require.Zero(t, res.ExitCode)
	require.Equal(t, "started\n", string(res.Stdout))
	require.NoError(t, os.WriteFile(release, nil, 0o600))
	require.Eventually(t, func() bool { _, err := os.Stat(file); return err == nil }, wait, time.Millisecond)
}

// What the main process wrote before it ended is in the answer whole, also when a child keeps the pipe open.
func TestExecLosesNothingThatWasWritten(t *testing.T) {
	c := startAgentHere(t)
	for range 10 {
		res := runHere(t, c, guest.ExecRequest{Command: "sleep 1 & head -c 300000 /dev/zero"})
		require.Len(t, res.Stdout, 300000)
	}
}

func TestExecBoundsItsOutput(t *testing.T) {
	c := startAgentHere(t)
	res := runHere(t, c, guest.ExecRequest{Command: "head -c 3000000 /dev/zero; echo no >&2; exit 4", MaxOutput: 1000})
	require.Equal(t, 4, res.ExitCode, "the command was not held up")
	require.Len(t, res.Stdout, 1000)
	require.True(t, res.StdoutTruncated)
	require.False(t, res.StderrTruncated)
	res = runHere(t, c, guest.ExecRequest{Command: "head -c 20000000 /dev/zero >&2"})
	require.Len(t, res.Stderr, guest.DefaultMaxOutput)
	require.True(t, res.StderrTruncated)
}

func TestExecStream(t *testing.T) {
	c := startAgentHere(t)
	release := filepath.Join(t.TempDir(), "release")
	pr, pw := io.Pipe()
	first := make(chan string, 1)
	var rest bytes.Buffer
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 6)
		_, _ = io.ReadFull(pr, b)
		first <- string(b)
		_, _ = io.Copy(&rest, pr)
	}()
	var stderr bytes.Buffer
	result := make(chan guest.ExecResult, 1)
	go func() {
		// It goes on only when told, so its first line can only have come while it ran.
		res, err := c.ExecStream(t.Context(), guest.ExecRequest{
			Command: "echo first; while [ ! -e " + release + " ]; do sleep 0.01; done; seq 100000; echo e >&2; exit 7",
		}, pw, &stderr)
		_ = pw.CloseWithError(err)
		result <- res
	}()
	require.Equal(t, "first\n", <-first)
	require.NoError(t, os.WriteFile(release, nil, 0o600))
	<-done
	res := <-result
	require.Equal(t, 7, res.ExitCode)
	require.Empty(t, res.Stdout)
	require.Equal(t, 588895, rest.Len())
	require.Equal(t, "e\n", stderr.String())
}

func TestExecStreamBoundsItsOutput(t *testing.T) {
	c := startAgentHere(t)
	var out bytes.Buffer
	res, err := c.ExecStream(t.Context(), guest.ExecRequest{Command: "seq 100000", MaxOutput: 100}, &out, io.Discard)
	require.NoError(t, err)
	require.True(t, res.StdoutTruncated)
	require.Equal(t, 100, out.Len())
}

// A caller that goes away kills its command; a connection that just breaks does not.
func TestExecAndItsCaller(t *testing.T) {
	c := startAgentHere(t)
	file := filepath.Join(t.TempDir(), "pid")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for ctx.Err() == nil {
			if b, err := os.ReadFile(file); err == nil && len(b) > 0 {
				cancel()
			}
			time.Sleep(time.Millisecond)
		}
	}()
	_, err := c.Exec(ctx, guest.ExecRequest{Command: "echo $$ > " + file + "; sleep 300", Timeout: time.Hour})
	require.ErrorIs(t, err, context.Canceled)
	pid, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return !alive(string(pid)) }, wait, time.Millisecond)
}

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/httpd/client"
	"stillframe/netpolicy"
)

// patience bounds waits for things that happen; a test that is right never comes near it.
const patience = 2 * time.Minute

// node is one data folder and the daemon processes that use it one after the other.
type node struct {
	t     *testing.T
	dir   string // the data folder
	order string // the file that orders faults; beside the data folder
	log   string // the daemon's output, of all its lives
	addr  string
	args  []string
	env   []string // added to the daemon's environment
	// netns is the network namespace that the daemon runs in, and cluster its identity folder: both are empty for a
	// development node of its own.
	netns, cluster string

	cmd    *exec.Cmd
	exited chan struct{} // of the process now running
	key    string
	api    *client.Client
}

// newNode makes a node on the filesystem with reflinks and starts it.
func newNode(t *testing.T, args ...string) *node { return newNodeIn(t, dataDir, args...) }

// newNodeIn makes a node with its data folder in parent. When the test ends, everything of it is removed.
func newNodeIn(t *testing.T, parent string, args ...string) *node {
	t.Helper()
	return newNodeWith(t, parent, nil, args...)
}

func newNodeWith(t *testing.T, parent string, env []string, args ...string) *node {
	t.Helper()
	dir, err := os.MkdirTemp(parent, "n")
	require.NoError(t, err)
	out, err := os.MkdirTemp(workDir, "log")
	require.NoError(t, err)
	n := &node{
		t: t, dir: dir, order: filepath.Join(out, "fault"), log: filepath.Join(out, "log"), addr: freeAddr(t), args: args,
		env: env,
	}
	t.Cleanup(n.remove)
	n.start()
	written, err := os.ReadFile(filepath.Join(dir, "dev.env"))
	require.NoError(t, err)
	for line := range strings.Lines(string(written)) {
		if key, ok := strings.CutPrefix(strings.TrimSpace(line), "LEAP0_API_KEY="); ok {
			n.key = key
		}
	}
	require.NotEmpty(t, n.key)
	n.api = n.client(n.key)
	return n
}

// freeAddr gives an address that stays the node's over its restarts.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return l.Addr().String()
}

// client makes a client that sends every request once: what a retry does is for the test to see.
func (n *node) client(key string) *client.Client {
	n.t.Helper()
	c, err := client.New(client.Config{BaseURL: "http://" + n.addr, Key: key, Attempts: 1})
	require.NoError(n.t, err)
	n.t.Cleanup(c.Close)
	return c
}

// admin makes a client for the administration socket.
func (n *node) admin() *client.Client {
	n.t.Helper()
	c, err := client.New(client.Config{Socket: filepath.Join(n.dir, "admin.sock"), Attempts: 1})
	require.NoError(n.t, err)
	n.t.Cleanup(c.Close)
	return c
}

// start runs the daemon and returns once it is ready.
func (n *node) start() {
	n.t.Helper()
	n.launch()
	n.awaitReady()
}

// awaitReady waits until a daemon that was launched serves.
func (n *node) awaitReady() {
	n.t.Helper()
	deadline := time.Now().Add(patience)
	for !n.ready() {
		select {
		case <-n.exited:
			n.t.Fatalf("the daemon did not start: %s\n%s", n.cmd.ProcessState, n.output())
		case <-time.After(20 * time.Millisecond):
		}
		require.True(n.t, time.Now().Before(deadline), "the daemon is not ready in time\n%s", n.output())
	}
}

// launch runs the daemon without waiting for anything.
func (n *node) launch() {
	n.t.Helper()
	out, err := os.OpenFile(n.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	require.NoError(n.t, err)
	defer func() { require.NoError(n.t, out.Close()) }()
	args := []string{program, "dev"}
	if n.cluster != "" {
		netns := "--net=" + filepath.Join(netpolicy.Dir, n.netns)
		args = []string{"nsenter", netns, program, "server", "--cluster", n.cluster}
	}
	args = append(args, "--data", n.dir, "--listen", n.addr, "--images", images, "--log-level", "debug",
		"--overcommit-disk", "1000")
	args = append(args, n.args...)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append(append(os.Environ(), "STILLFRAME_FAULT=@"+n.order, "GORACE=halt_on_error=0"), n.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	require.NoError(n.t, cmd.Start())
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended is in ProcessState
		close(exited)
	}()
	n.cmd, n.exited = cmd, exited
}

// ready tells whether the API serves and, at the first start, the key is there.
func (n *node) ready() bool {
	if _, err := os.Stat(filepath.Join(n.dir, "dev.env")); err != nil && n.cluster == "" {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.addr+"/readyz", nil)
	require.NoError(n.t, err)
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return false
	}
	require.NoError(n.t, resp.Body.Close())
	return resp.StatusCode == http.StatusOK
}

// kill ends the daemon by SIGKILL.
func (n *node) kill() { n.signal(syscall.SIGKILL) }

// stop ends the daemon as an operator does.
func (n *node) stop() {
	n.t.Helper()
	n.signal(syscall.SIGTERM)
	require.True(n.t, n.cmd.ProcessState.Success(), "after SIGTERM: %s\n%s", n.cmd.ProcessState, n.output())
}

func (n *node) signal(sig syscall.Signal) {
	n.t.Helper()
	select {
	case <-n.exited:
		return
	default:
	}
	// Not reaped before exited is closed, so the pid is still its own, if only a zombie's.
	_ = n.cmd.Process.Signal(sig)
	n.awaitExit()
}

func (n *node) awaitExit() {
	n.t.Helper()
	select {
	case <-n.exited:
	case <-time.After(patience):
		n.t.Fatalf("the daemon does not end\n%s", n.output())
	}
}

// output is the end of what the daemon has written.
func (n *node) output() string {
	raw, err := os.ReadFile(n.log)
	if err != nil {
		return err.Error()
	}
	const enough = 6000
	return string(raw[max(0, len(raw)-enough):])
}

// orderFault tells the daemon what to do at a named place, e.g. "kill:create/network/before".
func (n *node) orderFault(what string) {
	n.t.Helper()
	require.NoError(n.t, os.WriteFile(n.order+".tmp", []byte(what), 0o600))
	require.NoError(n.t, os.Rename(n.order+".tmp", n.order))
}

// withdrawFault takes the order back; a gate opens.
func (n *node) withdrawFault() {
	n.t.Helper()
	if err := os.Remove(n.order); err != nil && !errors.Is(err, os.ErrNotExist) {
		require.NoError(n.t, err)
	}
}

// dieAt does a call while the daemon dies by SIGKILL at a place, and gives what the client saw of it. The daemon is not
// started again.
func (n *node) dieAt(place string, call func() error) error {
	n.t.Helper()
	n.orderFault("kill:" + place)
	result := make(chan error, 1)
	go func() { result <- call() }()
	n.awaitExit()
	n.withdrawFault()
	status, ok := n.cmd.ProcessState.Sys().(syscall.WaitStatus)
	require.True(n.t, ok && status.Signaled() && status.Signal() == syscall.SIGKILL, "the daemon ended by itself: %s\n%s",
		n.cmd.ProcessState, n.output())
	select {
	case err := <-result:
		return err
	case <-time.After(patience):
		n.t.Fatal("the client still waits for a daemon that is dead")
		return nil
	}
}

// gate is a call that stands still at a named place.
type gate struct {
	n      *node
	result chan error
}

// holdAt does a call in the background and returns once it stands at the place.
func (n *node) holdAt(place string, call func() error) *gate {
	n.t.Helper()
	reached := n.order + ".reached"
	_ = os.Remove(reached)
	n.orderFault("gate:" + place)
	g := &gate{n: n, result: make(chan error, 1)}
	go func() { g.result <- call() }()
	deadline := time.Now().Add(patience)
	for {
		if _, err := os.Stat(reached); err == nil {
			return g
		}
		select {
		case err := <-g.result:
			n.t.Fatalf("the call ended (%v) before it reached %s\n%s", err, place, n.output())
		case <-n.exited:
			n.t.Fatalf("the daemon ended before it reached %s\n%s", place, n.output())
		case <-time.After(5 * time.Millisecond):
		}
		require.True(n.t, time.Now().Before(deadline), "%s is not reached\n%s", place, n.output())
	}
}

// open lets the call go on and gives its outcome.
func (g *gate) open() error {
	g.n.t.Helper()
	g.n.withdrawFault()
	return g.outcome()
}

func (g *gate) outcome() error {
	g.n.t.Helper()
	select {
	case err := <-g.result:
		return err
	case <-time.After(patience):
		g.n.t.Fatalf("the call does not end\n%s", g.n.output())
		return nil
	}
}

// remove ends everything of the node and looks at its log for what must never be there.
func (n *node) remove() {
	if n.cmd != nil {
		n.kill()
	}
	if n.t.Failed() {
		n.t.Logf("--- end of the log of %s\n%s", n.dir, n.output())
	}
	raw, err := os.ReadFile(n.log)
	require.NoError(n.t, err)
	if n.key != "" {
		require.False(n.t, bytes.Contains(raw, []byte(n.key)), "the API key is in the log")
	}
	require.False(n.t, bytes.Contains(raw, []byte("WARNING: DATA RACE")), "the daemon has a data race; see %s\n%s",
		n.log, excerpt(raw, "WARNING: DATA RACE"))
	require.False(n.t, bytes.Contains(raw, []byte("\npanic: ")), "the daemon panicked\n%s", excerpt(raw, "\npanic: "))
	n.removeVMs()
	require.NoError(n.t, os.RemoveAll(n.dir))
}

func excerpt(raw []byte, word string) string {
	at := bytes.Index(raw, []byte(word))
	if at < 0 {
		return ""
	}
	return string(raw[at:min(len(raw), at+4000)])
}

// within gives a context that ends with the test or after patience.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// place names a fault point.
func place(kind, step any, when string) string { return fmt.Sprintf("%v/%v/%s", kind, step, when) }

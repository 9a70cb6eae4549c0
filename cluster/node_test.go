package cluster

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/fsm"
)

// testConfig is a sole voter on a real disk and a real loopback socket, with a library that loses no time.
func testConfig(t *testing.T, dir string) Config {
	return Config{
		ID: "node-a", Dir: dir, Addr: "127.0.0.1:0", Voters: []Server{{ID: "node-a"}},
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
}

// start opens a node that leads when start returns, and that the test's end shuts down.
func start(t *testing.T, cfg Config) *Node {
	t.Helper()
	n, err := Open(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { stop(t, n) })
	require.NoError(t, n.WaitLeader(deadline(t)))
	return n
}

func stop(t *testing.T, n *Node) {
	t.Helper()
	require.NoError(t, n.Shutdown(context.WithoutCancel(deadline(t))))
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func putOrg(name string) fsm.PutOrg {
	return fsm.PutOrg{Now: fsm.At(time.Now()), Org: fsm.Org{ID: fsm.OrgID("org-" + name), Name: name}}
}

func TestRestartKeepsState(t *testing.T) {
	dir := t.TempDir()
	n := start(t, testConfig(t, dir))
	for _, name := range []string{"one", "two", "three"} {
		_, err := n.Apply(deadline(t), putOrg(name))
		require.NoError(t, err)
	}
	before := n.State().Digest()
	stop(t, n)

	n = start(t, testConfig(t, dir))
	require.Equal(t, before, n.State().Digest())
	require.Len(t, n.State().Orgs(), 3)
}

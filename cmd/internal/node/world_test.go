package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/cluster"
	"stillframe/cluster/seal"
	"stillframe/fsm"
	"stillframe/httpd"
	"stillframe/hypervisor"
)

// world is two nodes with real logs, keys, calls between them and APIs. Only their owners are not real: they have no
// virtual machines, and close what is opened for them.
type world struct {
	t     *testing.T
	dir   string // the cluster's files
	nodes []*half
	logs  *lockedBuffer
	key   string
	seen  [][]byte // the answers so far
}

// half is a node without a hypervisor.
type half struct {
	Node
	owner *fakeOwner
	data  string
	base  string
}

// fakeOwner closes the intents of its node and answers for the policies of its sandboxes.
type fakeOwner struct {
	mu        sync.Mutex
	decisions []hypervisor.PolicyDecision
	fail      error
	asked     []string
	hold      bool // leave what is opened open
}

func (o *fakeOwner) PolicyLog(_ context.Context, id fsm.SandboxID, limit int) ([]hypervisor.PolicyDecision, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked = append(o.asked, fmt.Sprint("log ", id, " ", limit))
	return o.decisions, o.fail
}

func (o *fakeOwner) PolicyCheck(_ context.Context, id fsm.SandboxID, host string, port uint16) (
	hypervisor.PolicyDecision, error,
) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked = append(o.asked, fmt.Sprint("check ", id, " ", host, " ", port))
	return hypervisor.PolicyDecision{Action: "deny", Rule: "default", Name: host}, o.fail
}

func (o *fakeOwner) set(change func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	change()
}

func (o *fakeOwner) run(ctx context.Context, log *cluster.Node) {
	for {
		changed := log.Changed()
		for _, in := range log.State().OpenIntents(log.ID()) {
			o.mu.Lock()
			hold := o.hold
			o.mu.Unlock()
			if hold {
				continue
			}
			c := fsm.Complete{Now: fsm.At(time.Now()), Intent: in.ID, Owner: in.Owner, Epoch: in.Epoch}
			if in.Kind == fsm.IntentSnapshot {
				c.Manifest = &fsm.Manifest{Version: 1}
			}
			_, _ = log.Apply(ctx, c) // refused where it was closed already
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.b.Bytes())
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, dir: filepath.Join(t.TempDir(), "cluster"), logs: &lockedBuffer{}}
	var members []cluster.Member
	var listeners []net.Listener
	for i := range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		listeners = append(listeners, l) // both are open at once, so that they get different ports
		members = append(members, cluster.Member{
			ID: fsm.NodeID(fmt.Sprint("node-", i)), Name: fmt.Sprint("n", i), Addr: l.Addr().String(),
		})
	}
	for _, l := range listeners {
		require.NoError(t, l.Close())
	}
	require.NoError(t, cluster.Init(w.dir, members))
	for _, m := range members {
		w.nodes = append(w.nodes, w.open(m))
	}
	w.furnish()
	for _, n := range w.nodes {
		w.serve(n)
	}
	return w
}

func (w *world) open(m cluster.Member) *half {
	logger := slog.New(slog.NewJSONHandler(w.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	n := &half{owner: &fakeOwner{}, data: w.t.TempDir()}
	var err error
	n.identity, err = cluster.OpenIdentity(filepath.Join(w.dir, m.Name), logger)
	require.NoError(w.t, err)
	n.id, n.cfg = m.ID, Config{DataDir: n.data, Logger: logger}
	n.secrets, err = n.openSecrets()
	require.NoError(w.t, err)
	n.log, err = cluster.Open(cluster.Config{
		Identity: n.identity, Voters: n.identity.Voters(), Dir: filepath.Join(n.data, "raft"), Logger: logger,
		HeartbeatTimeout: time.Second, ElectionTimeout: time.Second, LeaseTimeout: 500 * time.Millisecond,
		SnapshotInterval: 20 * time.Millisecond, SnapshotThreshold: 4, TrailingLogs: 1000,
	})
	require.NoError(w.t, err)
	n.tunnels = newTunnels(n.log)
	run, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { n.owner.run(run, n.log) })
	w.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if n.api != nil {
			require.NoError(w.t, n.api.Shutdown(ctx))
		}
		n.tunnels.stop()
		stop()
		running.Wait()
		require.NoError(w.t, n.log.Shutdown(ctx))
	})
	return n
}

// furnish gives the cluster an organization with a key, and a template. Sandboxes are placed on the second node.
func (w *world) furnish() {
	secret := httpd.NewKeySecret()
	now := fsm.At(time.Now())
	w.key = secret
	small := fsm.Capacity{VCPU: 100, MemoryMiB: 1 << 10, DiskMiB: 1 << 30}
	for _, cmd := range []fsm.Command{
		fsm.PutOrg{Now: now, Org: fsm.Org{ID: "org-a", Name: "a"}},
		fsm.PutKey{Now: now, Key: fsm.APIKey{ID: "key-a", Org: "org-a", Hash: sha256.Sum256([]byte(secret))}},
		fsm.RegisterNode{Now: now, Node: fsm.Node{ID: "node-0", Name: "n0", Level: fsm.Level, Capacity: small}},
		fsm.RegisterNode{Now: now, Node: fsm.Node{ID: "node-1", Name: "n1", Level: fsm.Level, Capacity: fsm.Capacity{
			VCPU: 100, MemoryMiB: 1 << 20, DiskMiB: 1 << 30,
		}}},
		fsm.PutTemplate{Now: now, Template: fsm.Template{ID: "tpl-1", Name: "system/busybox", Digest: "sha256:1"}},
	} {
		require.Eventually(w.t, func() bool {
			_, err := w.nodes[0].log.Apply(w.t.Context(), cmd)
			return err == nil
		}, time.Minute, 20*time.Millisecond)
	}
}

func (w *world) serve(n *half) {
	policies := policies{n.id, n.log.State, n.owner, n.tunnels}
	policies.serve()
	n.serveKeys()
	var err error
	n.api, err = httpd.New(httpd.Config{
		Addr: "127.0.0.1:0", AdminSocket: filepath.Join(n.data, "admin.sock"), Log: n.log, Logger: n.cfg.Logger,
		Guests: guests{self: n.id, state: n.log.State, tunnels: n.tunnels}, Policies: policies, Secrets: n.secrets,
		Reseal: n.Reseal, Limits: httpd.Limits{Wait: 20 * time.Second},
	})
	require.NoError(w.t, err)
	require.NoError(w.t, n.api.Listen(context.Background()))
	n.base = "http://" + n.api.Addr()
}

// do sends a request to a node and keeps the answer.
func (w *world) do(node int, method, path, body string, header ...string) (int, map[string]any) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.nodes[node].base+path, strings.NewReader(body))
	require.NoError(w.t, err)
	req.Header.Set("Authorization", "Bearer "+w.key)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	require.NoError(w.t, err)
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	require.NoError(w.t, err)
	w.seen = append(w.seen, raw)
	var v map[string]any
	if len(raw) > 0 {
		require.NoError(w.t, json.Unmarshal(raw, &v), "%s", raw)
	}
	return resp.StatusCode, v
}

// files gives the content of every file of the nodes' data folders, and how many of them are snapshots of the state.
func (w *world) files() (contents map[string][]byte, snapshots int) {
	contents = map[string][]byte{}
	for _, n := range w.nodes {
		require.NoError(w.t, filepath.WalkDir(n.data, func(path string, d os.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) || (err == nil && !d.Type().IsRegular()) {
				return nil // gone: a snapshot that has just been replaced
			}
			if err != nil {
				return err
			}
			raw, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			contents[path] = raw
			if d.Name() == "state.bin" && len(raw) > 0 {
				snapshots++
			}
			return nil
		}))
	}
	return contents, snapshots
}

// rotate adds a key that is in use at once, to the folders of the nodes named only.
func (w *world) rotate(names ...string) string {
	w.t.Helper()
	var folders []string
	for _, name := range names {
		folders = append(folders, filepath.Join(w.dir, name))
	}
	id, _, err := seal.Rotate(w.dir, folders, time.Now().Add(-time.Minute))
	require.NoError(w.t, err)
	return id
}

package httpd

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/fsm"
)

// fakeOperations notes what it is asked for.
type fakeOperations struct {
	leader, to, removed fsm.NodeID
	force               bool
	err                 error
}

func (o *fakeOperations) Leader() fsm.NodeID { return o.leader }

func (o *fakeOperations) Transfer(_ context.Context, to fsm.NodeID) (fsm.NodeID, error) {
	o.to = to
	return "node-2", o.err
}

func (o *fakeOperations) Remove(_ context.Context, node fsm.NodeID, force bool) error {
	o.removed, o.force = node, force
	return o.err
}

func newOperator(t *testing.T) (*env, *fakeOperations) {
	ops := &fakeOperations{leader: testNode}
	e := newEnv(t, func(c *Config) { c.Operations = ops })
	e.log.must(t, fsm.RegisterNode{Now: now(), Node: fsm.Node{ID: "node-2", Name: "two"}})
	return e, ops
}

func TestTransferAndRemove(t *testing.T) {
	e, ops := newOperator(t)
	resp := e.adm("POST", "/admin/v1/cluster/transfer", `{"node":"two"}`)
	require.Equal(t, 200, resp.status, "%s", resp.body)
	require.Equal(t, fsm.NodeID("node-2"), ops.to)
	require.Equal(t, "two", resp.text(t, "name"))
	require.Equal(t, 200, e.adm("POST", "/admin/v1/cluster/transfer", "").status)
	require.Empty(t, ops.to)
	require.Equal(t, 404, e.adm("POST", "/admin/v1/cluster/transfer", `{"node":"three"}`).status)

	require.Equal(t, 200, e.adm("POST", "/admin/v1/cluster/remove", `{"node":"node-2","force":true}`).status)
	require.Equal(t, fsm.NodeID("node-2"), ops.removed)
	require.True(t, ops.force)
	require.Equal(t, 400, e.adm("POST", "/admin/v1/cluster/remove", `{}`).status)
	ops.err = fsm.Errorf(fsm.KindConflict, "node two holds things")
	require.Equal(t, 409, e.adm("POST", "/admin/v1/cluster/remove", `{"node":"two"}`).status)

	e.log.must(t, fsm.RegisterNode{Now: now(), Node: fsm.Node{ID: "node-3", Name: "two"}})
	resp = e.adm("POST", "/admin/v1/cluster/remove", `{"node":"two"}`)
	require.Equal(t, 409, resp.status)
	require.Contains(t, resp.message(t), "2 nodes are named")
	require.Equal(t, 404, e.do("POST", "/admin/v1/cluster/remove", `{"node":"node-2"}`).status, "not on the API's port")
}

func TestDrainLeaves(t *testing.T) {
	e, ops := newOperator(t)
	id := e.sandbox()
	resp := e.adm("POST", "/admin/v1/cluster/drain", `{"node":"one"}`)
	require.Equal(t, 200, resp.status, "%s", resp.body)
	got := resp.object(t)
	require.Equal(t, true, got["drained"])
	require.Equal(t, "node-2", got["leader"], "the leadership is handed over")
	require.EqualValues(t, 1, got["sandboxes"])
	require.Equal(t, "running", e.do("GET", "/v1/sandbox/"+id, nil).text(t, "state"))
	resp = e.do("POST", create, `{"template_name":"system/busybox"}`)
	require.Equal(t, 503, resp.status)
	require.Contains(t, resp.message(t), "1 drained")

	ops.leader = "node-2"
	require.Equal(t, 400, e.adm("POST", "/admin/v1/cluster/drain", `{"node":"one","undo":true,"snapshot":true}`).status)
	got = e.adm("POST", "/admin/v1/cluster/drain", `{"node":"one","undo":true}`).object(t)
	require.Equal(t, false, got["drained"])
	require.NotContains(t, got, "leader")
	e.sandbox()
}

// deleter closes the delete intents that outcomes open, as an owner would.
func (e *env) deleter() (stop func()) {
	ended := make(chan struct{})
	var working sync.WaitGroup
	working.Go(func() {
		for {
			for _, in := range e.log.State().OpenIntents(testNode) {
				if in.Kind == fsm.IntentDelete {
					e.log.close(in, fsm.Complete{})
				}
			}
			select {
			case <-ended:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	})
	return func() { close(ended); working.Wait() }
}

// TestDrainSnapshots keeps what runs, each in its own organization, and says of which it could not.
func TestDrainSnapshots(t *testing.T) {
	e, _ := newOperator(t)
	first, second := e.sandbox(), e.sandbox()
	e.log.set(func() {
		e.log.outcome = func(in fsm.Intent) *fsm.Complete {
			if in.Kind == fsm.IntentSnapshot && in.Sandbox == fsm.SandboxID(second) {
				return &fsm.Complete{Error: fsm.Errorf(fsm.KindUnavailable, "the node's disk is full")}
			}
			return done(in)
		}
	})
	stop := e.deleter()
	defer stop()
	got := e.adm("POST", "/admin/v1/cluster/drain", `{"node":"one","snapshot":true}`).object(t)
	snapshots, ok := got["snapshots"].([]any)
	require.True(t, ok)
	require.Len(t, snapshots, 2)
	require.Equal(t, 404, e.do("GET", "/v1/sandbox/"+first, nil).status)
	items := e.do("GET", "/v1/snapshots", nil).items(t)
	require.Len(t, items, 1)
	require.Equal(t, "drained-"+first, items[0]["name"])
	again := e.adm("POST", "/admin/v1/cluster/drain", `{"node":"one","snapshot":true}`)
	require.Contains(t, string(again.body), "disk is full")
	require.Equal(t, "running", e.do("GET", "/v1/sandbox/"+second, nil).text(t, "state"))

	e.log.set(func() { e.log.outcome = done })
	got = e.adm("POST", "/admin/v1/cluster/drain", `{"node":"one","snapshot":true}`).object(t)
	require.EqualValues(t, 0, got["sandboxes"], "to repeat it goes on with what is left")
}

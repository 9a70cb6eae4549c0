package cluster

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/fsm"
)

// register has every node register itself, with room.
func (c *several) register() {
	c.t.Helper()
	leader := c.nodes[c.leader()]
	for _, n := range c.nodes {
		if n != nil {
			apply(c.t, leader, fsm.RegisterNode{Now: now(), Node: fsm.Node{
				ID: n.ID(), Name: string(n.ID()), Level: fsm.Level,
				Capacity: fsm.Capacity{VCPU: 100, MemoryMiB: 1 << 20, DiskMiB: 1 << 30},
			}})
		}
	}
}

func (c *several) furnish() {
	c.t.Helper()
	c.register()
	apply(c.t, c.nodes[c.leader()], putOrg("a"),
		fsm.PutTemplate{Now: now(), Template: fsm.Template{ID: NewTemplateID(), Name: "system/busybox", Digest: "d"}})
}

// openOn makes sandboxes until one is placed on a node, and gives its open intent.
func (c *several) openOn(node fsm.NodeID) fsm.Intent {
	c.t.Helper()
	for range 2 * len(c.nodes) {
		in := apply(c.t, c.nodes[c.leader()], fsm.CreateSandbox{
			Now: now(), Intent: NewIntentID(), Org: "org-a", Sandbox: NewSandboxID(), TemplateName: "system/busybox",
			VCPU: 1, MemoryMiB: 512, DiskMiB: 1024, TimeoutSec: 3600,
		}).Intent
		if in.Owner == node {
			return in
		}
	}
	c.t.Fatalf("no sandbox is placed on %s", node)
	return fsm.Intent{}
}

func shortLease(cfg *Config) { cfg.NodeLease = 1500 * time.Millisecond }

func (c *several) eventually(what string, holds func() bool) {
	c.t.Helper()
	require.Eventually(c.t, holds, time.Minute, 10*time.Millisecond, what)
}

func lost(n *Node, id fsm.NodeID) bool {
	node, ok := n.State().Node(id)
	return ok && node.Lost()
}

// TestLease has an owner that goes and comes back, under one leader.
func TestLease(t *testing.T) {
	c := startTrio(t, shortLease)
	c.furnish()
	l, f := c.followers()
	leader, owner := c.nodes[l], c.nodes[f[0]].ID()
	in := c.openOn(owner)
	c.stop(f[0])
	c.eventually("it is given up", func() bool { return lost(leader, owner) })
	closed, _ := leader.State().Intent(in.ID)
	require.Equal(t, fsm.IntentFailed, closed.State)
	require.False(t, lost(leader, c.nodes[f[1]].ID()), "a node that answers is not")
	require.False(t, lost(leader, leader.ID()))

	c.start(f[0])
	c.eventually("it is there again", func() bool { return !lost(leader, owner) })
	c.followers() // the one that came back knows its leader
	_, err := c.nodes[f[0]].Apply(deadline(t), fsm.Complete{Now: now(), Intent: in.ID, Owner: owner, Epoch: in.Epoch})
	requireKind(t, fsm.KindSuperseded, err)
	require.Equal(t, in.Owner, c.openOn(owner).Owner)
}

// TestLeaseOfTheLeader has the leader itself go: its successor gives it a lease, and then it up.
func TestLeaseOfTheLeader(t *testing.T) {
	c := startTrio(t, shortLease)
	c.furnish()
	l := c.leader()
	first := c.nodes[l].ID()
	in := c.openOn(first)
	c.stop(l)
	second := c.nodes[c.leader()]
	require.False(t, lost(second, first), "a new leader has not waited yet")
	c.eventually("it is given up", func() bool { return lost(second, first) })
	closed, _ := second.State().Intent(in.ID)
	require.Equal(t, fsm.IntentFailed, closed.State)
	c.start(l)
	c.eventually("it is there again", func() bool { return !lost(c.nodes[c.leader()], first) })
}

// TestLeaseOfASoleNode has nobody else to ask, and finds itself given up in its log.
func TestLeaseOfASoleNode(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	shortLease(&cfg)
	n := start(t, cfg)
	furnish(t, n)
	apply(t, n, fsm.MarkNode{Now: now(), Node: "node-a", Lost: true})
	require.Eventually(t, func() bool { return !lost(n, "node-a") }, time.Minute, 10*time.Millisecond)
}

func TestKeepingUp(t *testing.T) {
	c := &contact{good: time.Now()}
	require.False(t, c.healthy(), "nothing is known of it")
	c.note(Status{Position: 10}, true, 10)
	require.True(t, c.healthy())
	c.note(Status{Position: 12}, true, 20)
	require.Zero(t, c.missed, "it is behind, but on its way")
	require.False(t, c.healthy())
	c.note(Status{Position: 12}, true, 20)
	c.note(Status{Position: 12}, true, 20)
	require.Equal(t, 2, c.missed, "it answers, and takes nothing from the log")
	c.note(Status{}, false, 20)
	require.Equal(t, 3, c.missed)
	c.note(Status{Position: 13}, true, 20)
	require.Zero(t, c.missed)
	c.note(Status{Position: 20, Stopped: true}, true, 20)
	require.Equal(t, 1, c.missed)
	c.note(Status{Position: 20}, true, 20)
	require.True(t, c.healthy())
}

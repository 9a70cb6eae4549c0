package e2e

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"stillframe/fsm"
	"stillframe/httpd/client"
	"stillframe/hypervisor"
	"stillframe/hypervisor/vmm"
)

// lease is short, and far longer than a busy machine makes a healthy node miss.
const lease = "4s"

// awaitSandbox asks a node for a sandbox until what it says of it holds.
func (n *node) awaitSandbox(id, what string, holds func(client.Sandbox) bool) {
	n.t.Helper()
	n.eventually(what, func() bool {
		sb, err := n.api.Sandbox(within(n.t), id)
		return err == nil && holds(sb)
	})
}

// member gives a node's entry in the status that another one gives.
func (n *node) member(name string) client.ClusterNode {
	n.t.Helper()
	status, err := n.api.Cluster(within(n.t), false)
	require.NoError(n.t, err)
	for _, m := range status.Nodes {
		if m.Name == name {
			return m
		}
	}
	n.t.Fatalf("no node %s in %+v", name, status.Nodes)
	return client.ClusterNode{}
}

func unreachable(sb client.Sandbox) bool { return sb.NodeUnreachable }

// gone tells that nothing of a sandbox is left on a node.
func (n *node) gone(id string) bool {
	_, err := os.Stat(filepath.Join(n.dir, "sandboxes", id))
	return os.IsNotExist(err)
}

// requireGivenUp looks at what a cluster says of a node that is lost, in the middle of a snapshot under a name.
func (c *several) requireGivenUp(g *guest, through *node, name string, snapshot error) {
	requireUnavailable(c.t, snapshot)
	require.Contains(c.t, snapshot.Error(), "node "+g.n.args[1]+",", "the answer names the node")
	require.True(c.t, through.member(g.n.args[1]).Lost)
	sb, err := through.api.Sandbox(within(c.t), g.id)
	require.NoError(c.t, err)
	require.Equal(c.t, "running", sb.State, "as last known")
	require.Contains(c.t, sb.StateReason, "node "+g.n.args[1])
	_, err = through.api.Exec(soon(c.t), g.id, client.Exec{Command: "true", Timeout: 5})
	requireUnavailable(c.t, err)
	_, err = through.api.CreateSnapshot(soon(c.t), g.id, client.CreateSnapshot{Name: "none"})
	requireUnavailable(c.t, err)

	// The name is free: another sandbox takes it.
	other, err := through.api.CreateSandbox(within(c.t), small(""))
	require.NoError(c.t, err)
	require.NotEqual(c.t, g.n, c.owner(other.ID), "nothing is placed on a node that is lost")
	_, err = through.api.CreateSnapshot(within(c.t), other.ID, client.CreateSnapshot{Name: name})
	require.NoError(c.t, err, through.output())
}

// TestOwnerLost kills an owner in the pause of a snapshot and leaves it dead for longer than its lease: its work is
// given up and its names are free. Its next daemon, which reaches nobody at first, ends the pause by itself; healed, it
// obeys.
func TestOwnerLost(t *testing.T) {
	c := newCluster(t, "--node-lease", lease)
	owner := c.others(c.leader(c.nodes...))[0]
	third := c.others(owner)[0]
	g, doomed := c.newGuestOn(owner, third), c.newGuestOn(owner, third)
	vm, doomedVM := owner.vmmOf(g.id), owner.vmmOf(doomed.id)
	snapshot := make(chan error, 1)
	_ = owner.dieAt(place(string(fsm.IntentSnapshot), hypervisor.StepCapture, "after"), func() error {
		_, err := third.api.CreateSnapshot(within(t), g.id, client.CreateSnapshot{Name: "name"})
		snapshot <- err
		return err
	})
	require.Equal(t, vmm.StatePaused, owner.vmState(g.id), "the snapshot's pause goes on while no daemon runs")
	third.awaitSandbox(g.id, "it is given up", unreachable)
	c.requireGivenUp(g, third, "name", <-snapshot)
	require.NoError(t, third.api.DeleteSandbox(within(t), doomed.id), "what is on a lost node can be deleted")
	require.True(t, doomedVM.Alive())

	heal := c.cutOff(owner)
	owner.launch()
	owner.eventually("the pause ends without a leader", func() bool { return owner.vmState(g.id) == vmm.StateRunning })
	require.True(t, third.member(owner.args[1]).Lost)
	heal()
	owner.awaitReady()
	require.False(t, third.member(owner.args[1]).Lost)
	g.requireRuns()
	require.True(t, vm.Alive(), "it is the same VM")
	require.False(t, doomedVM.Alive(), "what was deleted meanwhile is ended")
	require.True(t, owner.gone(doomed.id))
	require.Empty(t, names(owner, filepath.Join(owner.dir, "snapshots")), "what was superseded is undone")
	_, err := third.api.CreateSnapshot(within(t), g.id, client.CreateSnapshot{Name: "after"})
	require.NoError(t, err, owner.output())
	c.agree()
}

// TestOwnerStopped stops an owner's process in the middle of a snapshot, for longer than its lease, and lets it go on:
// it has noticed nothing, and still obeys.
func TestOwnerStopped(t *testing.T) {
	c := newCluster(t, "--node-lease", lease)
	owner := c.others(c.leader(c.nodes...))[0]
	third := c.others(owner)[0]
	g, doomed := c.newGuestOn(owner, third), c.newGuestOn(owner, third)
	held := owner.holdAt(place(string(fsm.IntentSnapshot), hypervisor.StepDigest, "before"), func() error {
		_, err := third.api.CreateSnapshot(within(t), g.id, client.CreateSnapshot{Name: "name"})
		return err
	})
	require.NoError(t, owner.cmd.Process.Signal(syscall.SIGSTOP))
	cont := func() { _ = owner.cmd.Process.Signal(syscall.SIGCONT) }
	t.Cleanup(cont)
	third.awaitSandbox(g.id, "it is given up", unreachable)
	c.requireGivenUp(g, third, "name", held.outcome())
	require.NoError(t, third.api.DeleteSandbox(within(t), doomed.id))
	owner.withdrawFault()
	cont()
	third.awaitSandbox(g.id, "it is there again", func(sb client.Sandbox) bool { return !sb.NodeUnreachable })
	owner.eventually("what was deleted is gone", func() bool { return owner.gone(doomed.id) })
	owner.eventually("what was superseded is undone", func() bool {
		return len(names(owner, filepath.Join(owner.dir, "snapshots"))) == 0
	})
	g.requireRuns()
	_, err := third.api.CreateSnapshot(within(t), g.id, client.CreateSnapshot{Name: "after"})
	require.NoError(t, err, owner.output())
	c.agree()
}

package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"stillframe/httpd/client"
)

// operate runs a command on a node's admin socket, as an operator does on its host.
func (n *node) operate(args ...string) string {
	n.t.Helper()
	out, err := exec.Command(program, append(append([]string{"cluster"}, args...), "--data", n.dir)...).CombinedOutput()
	require.NoError(n.t, err, "%v: %s\n%s", args, out, n.output())
	return string(out)
}

// name is what a member is called.
func (n *node) name() string { return n.args[1] }

// add makes a new member, as an operator does, and starts it.
func (c *several) add(name string) *node {
	c.t.Helper()
	i := len(c.nodes)
	pki := filepath.Dir(c.nodes[0].cluster)
	n := c.newMember(i, name, filepath.Join(pki, name))
	run(c.t, program, "cluster", "add", "--dir", pki, name+"="+memberAddr(i)+":7071")
	n.key, n.api = c.nodes[0].key, n.client(c.nodes[0].key)
	n.start()
	c.nodes = append(c.nodes, n)
	return n
}

// TestDrainAndTransfer drains a node that leads and owns: it neither leads nor owns afterwards, and what ran there is
// kept.
func TestDrainAndTransfer(t *testing.T) {
	c := newCluster(t, "--node-lease", lease)
	owner := c.nodes[0]
	other := c.others(owner)[0]
	require.Contains(t, other.operate("transfer", owner.name()), owner.name())
	require.Equal(t, owner, c.leader(c.nodes...))
	g := c.newGuestOn(owner, other)

	said := other.operate("drain", owner.name(), "--snapshot")
	require.Contains(t, said, owner.name()+" drained; 0 sandboxes are on it")
	require.Contains(t, said, "drained-"+g.id)
	require.NotEqual(t, owner, c.leader(c.others(owner)...))
	require.True(t, other.member(owner.name()).Drained)
	moved, err := owner.api.RestoreSnapshot(within(t), client.RestoreSnapshot{
		SnapshotName: "drained-" + g.id, Timeout: 3600,
	})
	require.NoError(t, err, other.output())
	require.NotEqual(t, owner, c.owner(moved.ID), "another node fetches the data")
	require.Equal(t, g.memory, owner.exec(moved.ID, "cat /dev/shm/nonce"))
	for range 3 {
		sb, err := owner.api.CreateSandbox(within(t), small(""))
		require.NoError(t, err)
		require.NotEqual(t, owner, c.owner(sb.ID), "nothing new is put on a drained node")
		require.NoError(t, owner.api.DeleteSandbox(within(t), sb.ID))
	}

	owner.operate("drain", owner.name(), "--undo")
	back, err := other.api.RestoreSnapshot(within(t), client.RestoreSnapshot{
		SnapshotName: "drained-" + g.id, Timeout: 3600,
	})
	require.NoError(t, err, owner.output())
	require.Equal(t, g.memory, other.exec(back.ID, "cat /dev/shm/nonce"), "it goes on from where it was")
	c.agree()
}

// TestMembersComeAndGo has two nodes join, one move to another address, and one be removed.
func TestMembersComeAndGo(t *testing.T) {
	c := newCluster(t, "--node-lease", lease)
	d, e := c.add("d"), c.add("e")
	for _, n := range []*node{d, e} {
		n.eventually("it votes", func() bool { return c.nodes[0].member(n.name()).Voter })
	}
	g := c.newGuestOn(d, c.nodes[0])
	require.Equal(t, g.memory, e.exec(g.id, "cat /dev/shm/nonce"), "any node reaches the new one's sandboxes")

	// d moves. Its VM stays, and everybody finds it again.
	d.stop()
	d.addr = "10.112.0.34:7070"
	run(t, "ip", "-n", d.netns, "addr", "del", memberAddr(3)+"/24", "dev", "eth0")
	run(t, "ip", "-n", d.netns, "addr", "add", "10.112.0.34/24", "dev", "eth0")
	d.args = append(d.args, "--raft", "10.112.0.34:7071", "--advertise", "10.112.0.34:7071")
	d.api = d.client(d.key)
	d.start()
	require.Equal(t, g.memory, e.exec(g.id, "cat /dev/shm/nonce"))
	g.requireRuns()

	// The leader is removed: it says so and ends, and its certificate opens nothing any more.
	gone := c.leader(c.nodes[:3]...)
	left := c.others(gone)
	out, err := exec.Command(program, "cluster", "remove", d.name(), "--data", e.dir).CombinedOutput()
	require.Error(t, err, "it holds a sandbox")
	require.Contains(t, string(out), "holds 1 sandboxes")
	left[0].operate("remove", gone.name())
	gone.awaitExit()
	require.False(t, gone.cmd.ProcessState.Success())
	require.Contains(t, gone.output(), "this node was removed from the cluster")
	gone.launch()
	gone.awaitExit()
	require.False(t, gone.cmd.ProcessState.Success(), "nor can it start again")
	status, err := left[0].api.Cluster(within(t), false)
	require.NoError(t, err)
	require.Len(t, status.Nodes, 4)
	c.nodes = left
	c.agree()
}

// TestLeaderStopped stops the leader's process without ending it: calls on the others come to an end, soon, and go on
// with another leader; the old one obeys when it may go on.
func TestLeaderStopped(t *testing.T) {
	c := newCluster(t, "--node-lease", "60s")
	old := c.leader(c.nodes...)
	others := c.others(old)
	g := c.newGuestOn(old, others[0])
	require.NoError(t, old.cmd.Process.Signal(syscall.SIGSTOP))
	cont := func() { _ = old.cmd.Process.Signal(syscall.SIGCONT) }
	t.Cleanup(cont)
	// Unknown, unavailable, or done with the next leader: never a hang.
	_, err := others[0].admin().CreateOrg(soon(t), "stopped")
	if err != nil {
		requireUnavailable(t, err)
	}
	_, err = others[1].api.Sandboxes(soon(t), client.ListOptions{})
	if err != nil {
		requireUnavailable(t, err)
	}
	others[0].requireWrites()
	require.Contains(t, others, c.leader(others...))
	_, err = others[1].api.Exec(soon(t), g.id, client.Exec{Command: "true", Timeout: 5})
	requireUnavailable(t, err)
	require.Contains(t, err.Error(), "node "+old.name()+",")
	status, err := others[0].api.Cluster(soon(t), false)
	require.NoError(t, err)
	require.Len(t, status.Nodes, 3)
	cont()
	old.requireWrites()
	g.requireRuns()
	require.False(t, strings.Contains(old.output(), "panic"))
	c.agree()
}

package e2e

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/httpd/client"
	"stillframe/hypervisor/vmm"
)

// TestAnyNodeAnswers has calls on a node that neither leads nor owns, answered as if there were one machine.
func TestAnyNodeAnswers(t *testing.T) {
	c := newCluster(t)
	leader := c.leader(c.nodes...)
	owner, third := c.others(leader)[0], c.others(leader)[1]
	g := c.newGuestOn(owner, third)

	sn, err := third.api.CreateSnapshot(within(t), g.id, client.CreateSnapshot{Name: "warm"})
	require.NoError(t, err, third.output())
	require.FileExists(t, filepath.Join(owner.dir, "snapshots", sn.ID, "manifest.json"))
	for _, n := range c.nodes {
		list, err := n.api.Snapshots(within(t), client.ListOptions{})
		require.NoError(t, err)
		require.Len(t, list.Items, 1, "an acknowledged snapshot is listed by every node")
		require.Equal(t, sn.ID, list.Items[0].ID)
		sb, err := n.api.Sandbox(within(t), g.id)
		require.NoError(t, err)
		require.Equal(t, "running", sb.State)
		require.Equal(t, g.memory, n.exec(g.id, "cat /dev/shm/nonce"), "a command, through any node")
	}

	// Files of more than what any buffer between holds, both ways.
	content := make([]byte, 5<<20)
	_, err = rand.Read(content)
	require.NoError(t, err)
	require.NoError(t, third.api.WriteFile(within(t), g.id, "/dev/shm/file", "", content))
	sum := sha256.Sum256(content)
	require.Equal(t, hex.EncodeToString(sum[:]), strings.Fields(leader.exec(g.id, "sha256sum /dev/shm/file"))[0])
	var back bytes.Buffer
	_, err = leader.api.ReadFile(within(t), g.id, "/dev/shm/file", &back)
	require.NoError(t, err)
	require.True(t, bytes.Equal(content, back.Bytes()))
	_, err = third.api.ReadFile(within(t), g.id, "/none", &back)
	require.Equal(t, http.StatusNotFound, client.Status(err), "the agent's errors keep their kind: %v", err)

	clone, err := leader.api.RestoreSnapshot(within(t), client.RestoreSnapshot{SnapshotName: "warm", Timeout: 3600})
	require.NoError(t, err, owner.output())
	require.Equal(t, g.memory, third.exec(clone.ID, "cat /dev/shm/nonce"))
	c.requireOneOfEachName(g)
	c.agree()
}

// requireOneOfEachName has all nodes create a snapshot under the same name at once, some times over: one is created.
func (c *several) requireOneOfEachName(g *guest) {
	for round := range 3 {
		statuses := make([]int, len(c.nodes))
		var at sync.WaitGroup
		for i, n := range c.nodes {
			at.Go(func() {
				_, err := n.api.CreateSnapshot(c.t.Context(), g.id, client.CreateSnapshot{Name: fmt.Sprint("race", round)})
				if statuses[i] = http.StatusCreated; err != nil {
					statuses[i] = client.Status(err)
				}
			})
		}
		at.Wait()
		slices.Sort(statuses)
		require.Equal(c.t, []int{http.StatusCreated, http.StatusConflict, http.StatusConflict}, statuses)
	}
}

// TestLeaderKilled kills the leader's process: the other two go on, and the killed one catches up.
func TestLeaderKilled(t *testing.T) {
	c := newCluster(t)
	leader := c.leader(c.nodes...)
	left := c.others(leader)
	leader.kill()
	left[0].requireWrites()
	left[1].requireWrites()
	require.Contains(t, left, c.leader(left...))
	leader.start()
	leader.requireWrites()
	c.agree()

	// With two of three gone there is nobody to agree with: calls are refused, soon, and say so.
	for _, n := range left {
		n.kill()
	}
	leader.eventually("the last node notices", func() bool {
		_, err := leader.api.Sandboxes(soon(t), client.ListOptions{})
		return client.Status(err) == http.StatusServiceUnavailable
	})
	_, err := leader.admin().CreateOrg(soon(t), "nobody")
	requireUnavailable(t, err)
	for _, n := range left {
		n.launch()
	}
	for _, n := range c.nodes {
		n.awaitReady()
		n.requireWrites()
	}
	c.agree()
}

// TestOwnerKilled kills the daemon that owns a sandbox: the VM lives, calls about it name the node, and the next daemon
// takes it up again.
func TestOwnerKilled(t *testing.T) {
	c := newCluster(t)
	owner := c.others(c.leader(c.nodes...))[0]
	third := c.others(owner)[0]
	g := c.newGuestOn(owner, third)
	vm := owner.vmmOf(g.id)
	owner.kill()
	_, err := third.api.Exec(soon(t), g.id, client.Exec{Command: "true", Timeout: 5})
	requireUnavailable(t, err)
	require.Contains(t, err.Error(), "node "+owner.args[1]+",", "the answer names the node")
	sb, err := third.api.Sandbox(within(t), g.id)
	require.NoError(t, err, "what the state has is still answered")
	require.Equal(t, "running", sb.State)
	require.True(t, vm.Alive())
	require.Equal(t, vmm.StateRunning, owner.vmState(g.id))

	owner.start()
	g.requireRuns()
	require.True(t, vm.Alive(), "it is the same VM")
	_, err = third.api.CreateSnapshot(within(t), g.id, client.CreateSnapshot{Name: "after"})
	require.NoError(t, err, owner.output())
	c.agree()
}

// TestLeaderCutOff partitions the leader from the others: they go on without it, it refuses what it cannot know, and
// when it is healed all are one again.
func TestLeaderCutOff(t *testing.T) {
	c := newCluster(t)
	old := c.leader(c.nodes...)
	others := c.others(old)
	heal := c.cutOff(old)
	cut := time.Now()
	// Unknown at first, for its followers may have the entry; unavailable once it has noticed. Never done, never a hang.
	_, err := old.admin().CreateOrg(soon(t), "cut-off")
	requireUnavailable(t, err)
	others[0].requireWrites()
	require.Contains(t, others, c.leader(others...))
	_, err = old.api.Sandboxes(soon(t), client.ListOptions{})
	requireUnavailable(t, err)
	requireStale(t, old, time.Since(cut))
	status, err := others[0].api.Cluster(soon(t), false)
	require.NoError(t, err)
	for _, m := range status.Nodes {
		require.Equal(t, m.Name != old.args[1], m.Reachable, "%s", m.Name)
	}
	heal()
	old.requireWrites()
	c.agree()
}

// requireStale reads from a node that is cut off: what it has, and no younger than it can be.
func requireStale(t *testing.T, n *node, atLeast time.Duration) {
	t.Helper()
	var age client.Staleness
	_, err := n.api.Sandboxes(client.WithStale(soon(t), &age), client.ListOptions{})
	require.NoError(t, err)
	require.True(t, age.Told && age.Known)
	require.Positive(t, age.Position)
	// The last word of the others may have been on its way when the rules came.
	require.GreaterOrEqual(t, age.Age, atLeast-time.Second)
}

// TestBackupAndRestore takes a backup through a follower of a cluster with a snapshot, and starts a new cluster from it
// on two of the three hosts, whose data folders have lost their logs: the snapshot of a host that is there restores,
// and of the host that is not, what it had is told as it is.
func TestBackupAndRestore(t *testing.T) {
	c := newCluster(t)
	owner := c.others(c.leader(c.nodes...))[0]
	lost := c.others(owner)[0]
	g := c.newGuestOn(owner, lost)
	_, err := lost.api.CreateSnapshot(within(t), g.id, client.CreateSnapshot{Name: "kept"})
	require.NoError(t, err, owner.output())
	there := c.newGuestOn(lost, owner)
	file := filepath.Join(workDir, "e2e.backup")
	run(t, program, "cluster", "backup", "--socket", filepath.Join(owner.dir, "admin.sock"), file)
	t.Cleanup(func() { _ = os.Remove(file) })
	run(t, program, "cluster", "backup", "--verify", file)
	out, err := exec.Command(program, "cluster", "backup", "--socket", filepath.Join(lost.dir, "admin.sock"), file).
		CombinedOutput()
	require.Error(t, err, "a backup is not overwritten")
	require.Contains(t, string(out), "is there already")

	for _, n := range c.nodes {
		n.kill()
	}
	pki := filepath.Join(workDir, "restored")
	var members []string
	left := c.others(lost)
	for _, n := range left {
		ip, _, _ := strings.Cut(n.addr, ":")
		members = append(members, n.args[1]+"="+ip+":7071")
	}
	run(t, program, "cluster", "restore", file, "--dir", pki, "--nodes", strings.Join(members, ","),
		"--secrets-from", owner.cluster)
	for _, n := range left {
		n.cluster = filepath.Join(pki, n.args[1])
		n.launch()
	}
	for _, n := range left {
		<-n.exited
		require.Contains(t, n.output(), "the log is not empty", "a host with a log of another history refuses")
		require.NoError(t, os.RemoveAll(filepath.Join(n.dir, "raft")))
		n.launch()
	}
	for _, n := range left {
		n.awaitReady()
	}
	sb, err := owner.api.Sandbox(within(t), there.id)
	require.NoError(t, err)
	require.Equal(t, "stopped", sb.State)
	require.Contains(t, sb.StateReason, "node "+lost.args[1])
	require.NoError(t, owner.api.DeleteSandbox(within(t), there.id))

	g.requireRuns() // its host found it running
	restored, err := left[1].api.RestoreSnapshot(within(t), client.RestoreSnapshot{SnapshotName: "kept"})
	require.NoError(t, err, owner.output())
	require.Equal(t, "running", restored.State)
	for _, id := range []string{restored.ID, g.id} {
		require.NoError(t, owner.api.DeleteSandbox(within(t), id))
	}
}

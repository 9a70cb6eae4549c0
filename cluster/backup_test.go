package cluster

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/cluster/seal"
	"stillframe/fsm"
)

// backupOf writes a backup through a node and gives its path.
func backupOf(t *testing.T, n *Node) string {
	t.Helper()
	b, err := n.Backup(deadline(t), "test")
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "cluster.backup")
	var buf bytes.Buffer
	written, err := b.WriteTo(&buf)
	require.NoError(t, err)
	require.EqualValues(t, buf.Len(), written)
	require.NoError(t, os.WriteFile(path, buf.Bytes(), 0o600))
	return path
}

// restored starts a new cluster from a backup. Its members have names n0, n1, …; one with an id keeps that.
func restored(t *testing.T, path string, ids ...fsm.NodeID) *several {
	t.Helper()
	c := &several{t: t, nodes: make([]*Node, len(ids))}
	var members []Member
	for i, id := range ids {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer func() { require.NoError(t, l.Close()) }()
		members = append(members, Member{id, fmt.Sprint("n", i), l.Addr().String()})
	}
	dir := t.TempDir()
	require.NoError(t, Restore(dir, members, path, ""))
	for _, m := range members {
		id, err := OpenIdentity(filepath.Join(dir, m.Name), testLogger(t))
		require.NoError(t, err)
		c.cfgs = append(c.cfgs, Config{
			Identity: id, Voters: id.Voters(), Dir: t.TempDir(), Logger: testLogger(t), TransferTimeout: 3 * time.Second,
			HeartbeatTimeout: time.Second, ElectionTimeout: time.Second, LeaseTimeout: time.Second, DrainTimeout: time.Second,
		})
	}
	t.Cleanup(func() {
		for i := range c.nodes {
			c.stop(i)
		}
	})
	return c
}

// TestBackupIntoNewCluster takes a backup through a follower and starts another cluster from it: the same state, on
// every member, that goes on; also after a restart, and on a member whose disk was lost.
func TestBackupIntoNewCluster(t *testing.T) {
	old := startTrio(t, steady)
	_, f := old.followers()
	furnish(t, old.nodes[0])
	for range 3 {
		running(t, old.nodes[f[0]], 300)
	}
	path := backupOf(t, old.nodes[f[0]])
	b, err := ReadBackup(path)
	require.NoError(t, err)
	require.Equal(t, 3, b.Header.Sandboxes)
	require.Equal(t, "test", b.Header.Program)
	require.Equal(t, old.nodes[f[0]].State().Digest(), b.state.Digest())

	c := restored(t, path, "node-a", "node-y", "node-z") // node-a owns the sandboxes
	want, err := b.rehomed(c.cfgs[0].Identity.Members())
	require.NoError(t, err)
	for i := range c.nodes {
		c.start(i)
		require.Equal(t, want.Digest(), c.nodes[i].State().Digest(), "before it has heard of any other")
	}
	l := c.leader()
	require.Greater(t, c.nodes[l].Status().Position, b.Header.Position)
	state := c.nodes[l].State()
	require.Len(t, state.SandboxesOn("node-a"), 3)
	require.NoError(t, state.Check())
	apply(t, c.nodes[l], putOrg("after"))
	c.agree(c.nodes[l])

	c.stop(0)
	require.NoError(t, os.RemoveAll(c.cfgs[0].Dir)) // and with it all that was since
	c.start(0)
	l = c.leader()
	apply(t, c.nodes[l], putOrg("later"))
	c.agree(c.nodes[l])
	for i := range c.nodes {
		c.stop(i)
	}
	for i := range c.nodes {
		c.start(i)
	}
	l = c.leader()
	_, there := c.nodes[l].State().OrgByName("later")
	require.True(t, there)
	c.agree(c.nodes[l])
}

// TestRestoreWantsAnEmptyLog has a member with a log of its own, which is neither overwritten nor mixed in.
func TestRestoreWantsAnEmptyLog(t *testing.T) {
	one := start(t, testConfig(t, t.TempDir()))
	furnish(t, one)
	path := backupOf(t, one)
	c := restored(t, path, "node-a")
	seed := filepath.Join(c.cfgs[0].Identity.dir, fileSeed)

	require.NoError(t, os.Rename(seed, seed+".aside"))
	c.start(0)
	require.NoError(t, c.nodes[0].WaitLeader(deadline(t)))
	apply(t, c.nodes[0], putOrg("own"))
	c.stop(0)
	require.NoError(t, os.Rename(seed+".aside", seed))
	_, err := Open(c.cfgs[0])
	require.ErrorContains(t, err, "the log is not empty")
	require.NoError(t, os.Remove(seed))
	c.start(0)
	require.NoError(t, c.nodes[0].WaitLeader(deadline(t)))
	_, own := c.nodes[0].State().OrgByName("own")
	require.True(t, own, "it was left as it was")

	dir, keys := t.TempDir(), t.TempDir()
	members := []Member{{"node-a", "a", "127.0.0.1:1"}}
	require.Error(t, Restore(dir, members, path, keys), "the old cluster's keys are not there")
	require.NoError(t, seal.Make(keys))
	require.NoError(t, Restore(dir, members, path, keys))
	for _, folder := range []string{dir, filepath.Join(dir, "a")} {
		got, err := os.ReadFile(filepath.Join(folder, seal.FileName))
		require.NoError(t, err)
		want, err := os.ReadFile(filepath.Join(keys, seal.FileName))
		require.NoError(t, err)
		require.Equal(t, want, got, "the new cluster opens what the old one has sealed")
	}
	dir = t.TempDir()
	require.NoError(t, Restore(dir, members, path, ""))
	require.ErrorContains(t, Restore(dir, members, path, ""), "holds a cluster already")
}

// TestRestoreCutOff kills a member's first start between its steps: the next one does what was left.
func TestRestoreCutOff(t *testing.T) {
	one := start(t, testConfig(t, t.TempDir()))
	furnish(t, one)
	running(t, one, 300)
	path := backupOf(t, one)
	for _, done := range []string{"key", "term"} {
		c := restored(t, path, "node-a")
		digest, err := seedDigest(path)
		require.NoError(t, err)
		store, err := openStore(filepath.Join(c.cfgs[0].Dir, "raft.db"))
		require.NoError(t, err)
		require.NoError(t, store.Set(seedKey, digest))
		if done == "term" {
			require.NoError(t, store.SetUint64([]byte("CurrentTerm"), seedTerm))
		}
		require.NoError(t, os.MkdirAll(filepath.Join(c.cfgs[0].Dir, "snapshots", "1-2-3.tmp"), 0o700))
		require.NoError(t, store.Close())
		c.start(0)
		require.NoError(t, c.nodes[0].WaitLeader(deadline(t)))
		require.Len(t, c.nodes[0].State().SandboxesOn("node-a"), 1, "cut off after the %s", done)
	}
}

// TestBackupRejects cuts a backup at every length and changes it at every place: none of it is taken for a backup.
func TestBackupRejects(t *testing.T) {
	one := start(t, testConfig(t, t.TempDir()))
	furnish(t, one)
	running(t, one, 300)
	whole, err := os.ReadFile(backupOf(t, one))
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "bad")
	rejects := func(b []byte, msg string, args ...any) error {
		require.NoError(t, os.WriteFile(path, b, 0o600))
		_, err := ReadBackup(path)
		require.Error(t, err, fmt.Sprintf(msg, args...))
		return err
	}
	for n := 0; n < len(whole); n += 7 {
		require.ErrorIs(t, rejects(whole[:n], "cut to %d bytes", n), errDamagedBackup)
	}
	for i := 0; i < len(whole); i += 3 {
		bad := bytes.Clone(whole)
		bad[i] ^= 0x10
		_ = rejects(bad, "byte %d changed", i)
	}
	_ = rejects(append(bytes.Clone(whole), 0), "something follows")
	require.ErrorContains(t, Restore(t.TempDir(), []Member{{"node-a", "a", "127.0.0.1:1"}}, path, ""), "read backup")
}

// TestNewerBackupIsRefused has a backup of a format, and one of a level, that this program does not know.
func TestNewerBackupIsRefused(t *testing.T) {
	one := start(t, testConfig(t, t.TempDir()))
	path := backupOf(t, one)
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	newer := bytes.Clone(whole)
	binary.BigEndian.PutUint32(newer[len(backupMagic):], backupFormat+1)
	require.NoError(t, os.WriteFile(path, newer, 0o600))
	_, err = ReadBackup(path)
	require.ErrorIs(t, err, ErrNewerBackup)

	b, err := one.Backup(deadline(t), "later")
	require.NoError(t, err)
	b.Header.Level = fsm.Level + 1
	var buf bytes.Buffer
	_, err = b.WriteTo(&buf)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, buf.Bytes(), 0o600))
	_, err = ReadBackup(path)
	require.ErrorIs(t, err, ErrNewerBackup)
	require.ErrorContains(t, err, "later")

	raw, err := json.Marshal(b.Header)
	require.NoError(t, err)
	require.NotContains(t, string(raw), "sf_", "a header tells no key")
}

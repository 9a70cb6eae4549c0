package cluster

import (
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/fsm"
)

// quick makes what a leader does about members happen soon.
func quick(cfg *Config) {
	cfg.NodeLease, cfg.PromoteAfter = 1500*time.Millisecond, 300*time.Millisecond
}

// freeAddr gives an address that nobody listens at.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return l.Addr().String()
}

// add makes a new node's identity as an operator does, and starts it with an empty log.
func (c *several) add(name string) *Node {
	c.t.Helper()
	m := Member{fsm.NodeID("node-" + name), name, freeAddr(c.t)}
	require.NoError(c.t, Add(c.dir, m))
	id, err := OpenIdentity(filepath.Join(c.dir, name), testLogger(c.t))
	require.NoError(c.t, err)
	cfg := c.cfgs[0]
	cfg.Identity, cfg.Voters, cfg.Dir = id, id.Voters(), c.t.TempDir()
	c.cfgs, c.nodes = append(c.cfgs, cfg), append(c.nodes, nil)
	c.start(len(c.nodes) - 1)
	return c.nodes[len(c.nodes)-1]
}

func (c *several) votes(id fsm.NodeID) bool { return c.nodes[c.leader()].Servers()[id] }

// TestJoin has a fourth and a fifth node join: without a vote first, then, caught up, with one. The first three know of
// them by the replicated list only, and with two of the old ones gone the others are a majority.
func TestJoin(t *testing.T) {
	c := startTrio(t, quick)
	c.register()
	apply(t, c.nodes[c.leader()], putOrg("before"))
	d, e := c.add("d"), c.add("e")
	c.eventually("both vote", func() bool { return c.votes(d.ID()) && c.votes(e.ID()) })
	c.agree(c.nodes[c.leader()])
	known, _ := d.State().Node(e.ID())
	require.Equal(t, e.Addr(), known.Addr)
	require.Equal(t, "e", known.Name)

	l := c.leader()
	c.stop(l)
	c.stop((l + 1) % 3)
	now := c.nodes[c.leader()]
	apply(t, now, putOrg("after"))
	c.agree(now)
}

// TestFoundersWaitForEachOther starts two of three: a majority, and still no cluster, for the third may know of one.
func TestFoundersWaitForEachOther(t *testing.T) {
	c := prepareSeveral(t, 3, quick)
	c.start(0)
	c.start(1)
	time.Sleep(3 * joinPause) // long enough for looks that must not be enough; nothing is waited for that is to happen
	for _, n := range c.nodes[:2] {
		require.Zero(t, n.raft.LastIndex())
		_, err := n.Apply(deadline(t), putOrg("none"))
		requireKind(t, fsm.KindUnavailable, err)
	}
	c.start(2)
	apply(t, c.nodes[c.leader()], putOrg("one"))
	c.agree(c.nodes[c.leader()])
}

// TestWipedMember has a voter that lost its disk. It votes for nobody, and is taken for no founder, until it has
// everything back.
func TestWipedMember(t *testing.T) {
	c := startTrio(t, quick)
	l, f := c.followers()
	wiped, behind := f[0], f[1]
	c.stop(behind)
	apply(t, c.nodes[l], putOrg("one")) // the wiped one is needed for this to be kept
	c.stop(wiped)
	require.NoError(t, os.RemoveAll(c.cfgs[wiped].Dir))
	c.stop(l)

	// With the one that is behind it would be a majority that knows nothing of "one".
	c.start(behind)
	c.start(wiped)
	for range 20 {
		time.Sleep(joinPause)
		require.False(t, c.nodes[behind].IsLeader() || c.nodes[wiped].IsLeader(), "two that have forgotten agree")
	}
	require.FileExists(t, filepath.Join(c.cfgs[wiped].Dir, fileUnproven))
	c.start(l)
	c.eventually("it has everything back", func() bool { return c.nodes[wiped].trans.admitted() })
	require.NoFileExists(t, filepath.Join(c.cfgs[wiped].Dir, fileUnproven))
	c.agree(c.nodes[c.leader()])
	_, ok := c.nodes[wiped].State().OrgByName("one")
	require.True(t, ok)
	c.stop(l)
	apply(t, c.nodes[c.leader()], putOrg("two"))
}

// TestMovedMember has a follower, and then the leader, start again at another address.
func TestMovedMember(t *testing.T) {
	c := startTrio(t, quick)
	c.register()
	l, f := c.followers()
	for _, i := range []int{f[0], l} {
		c.stop(i)
		c.cfgs[i].Addr = freeAddr(t)
		c.cfgs[i].Advertise = c.cfgs[i].Addr
		c.start(i)
		moved := c.nodes[i]
		c.eventually("all know where it is", func() bool {
			for _, n := range c.nodes {
				if known, _ := n.State().Node(moved.ID()); known.Addr != c.cfgs[i].Addr {
					return false
				}
			}
			return moved.atHome()
		})
		c.agree(c.nodes[c.leader()])
	}
	for _, from := range c.nodes {
		for _, to := range c.nodes {
			_, err := from.StatusOf(deadline(t), to.ID(), false)
			require.NoError(t, err)
		}
	}
}

// TestRemove takes a follower out, and then, by way of a transfer, the leader. Neither is listened to again.
func TestRemove(t *testing.T) {
	c := startSeveral(t, 5, quick)
	c.furnish()
	l, f := c.followers()
	out := c.nodes[f[0]]
	c.openOn(out.ID())
	requireKind(t, fsm.KindConflict, c.nodes[f[1]].Remove(deadline(t), out.ID(), false))
	requireKind(t, fsm.KindNotFound, c.nodes[f[1]].Remove(deadline(t), "node-x", false))
	require.NoError(t, c.nodes[f[1]].Remove(deadline(t), out.ID(), true))
	c.requireExpelled(f[0])
	require.NoError(t, c.nodes[f[1]].Remove(deadline(t), out.ID(), false), "again")

	first := c.nodes[l].ID()
	c.eventually("it leads still", func() bool { return c.nodes[f[1]].Leader().ID == first })
	require.NoError(t, c.nodes[f[1]].Remove(deadline(t), first, true))
	c.requireExpelled(l)
	now := c.nodes[c.leader()]
	require.Len(t, now.Servers(), 3)
	apply(t, now, putOrg("after"))
	c.agree(now)
}

// requireExpelled waits until a node says that it was removed; a restart says so, too.
func (c *several) requireExpelled(i int) {
	c.t.Helper()
	for range 2 {
		n := c.nodes[i]
		select {
		case <-n.Failed():
			require.ErrorIs(c.t, n.Failure(), errExpelled)
		case <-time.After(time.Minute):
			c.t.Fatal("it does not learn that it was removed")
		}
		c.stop(i)
		c.start(i)
	}
	c.stop(i)
	for _, n := range c.nodes {
		if n != nil {
			_, err := n.port.dial(deadline(c.t), c.cfgs[i].Identity.ID(), protoRPC)
			require.ErrorIs(c.t, err, errRemoved)
		}
	}
}

// TestRemoveKeepsAQuorum refuses to take away a voter without which too few would answer.
func TestRemoveKeepsAQuorum(t *testing.T) {
	c := startTrio(t, quick)
	c.register()
	l, f := c.followers()
	c.agree(c.nodes[l])
	gone, left := c.nodes[f[0]].ID(), c.nodes[f[1]].ID()
	c.stop(f[0])
	err := c.nodes[l].Remove(deadline(t), left, false)
	requireKind(t, fsm.KindConflict, err)
	require.ErrorContains(t, err, "only 1 of 2 voters")
	require.NoError(t, c.nodes[l].Remove(deadline(t), gone, false), "the dead one can go")
	apply(t, c.nodes[l], putOrg("after"))
	require.Len(t, c.nodes[l].Servers(), 2)
}

func TestTransfer(t *testing.T) {
	c := startTrio(t, quick)
	l, f := c.followers()
	c.agree(c.nodes[l])
	to := c.nodes[f[1]]
	got, err := c.nodes[f[0]].Transfer(deadline(t), to.ID())
	require.NoError(t, err)
	require.Equal(t, to.ID(), got)
	c.eventually("it leads", to.IsLeader)
	apply(t, c.nodes[f[0]], putOrg("one"))

	c.stop(l)
	_, err = to.Transfer(deadline(t), c.cfgs[l].Identity.ID())
	requireKind(t, fsm.KindUnavailable, err)
	apply(t, to, putOrg("two")) // a transfer that cannot be is not begun: writes go on
	_, err = to.Transfer(deadline(t), "node-x")
	requireKind(t, fsm.KindNotFound, err)
	got, err = to.Transfer(deadline(t), "")
	require.NoError(t, err)
	require.Equal(t, c.nodes[f[0]].ID(), got)
}

// TestDrainedLeader does not lead for long.
func TestDrainedLeader(t *testing.T) {
	c := startTrio(t, quick)
	c.furnish()
	l, _ := c.followers()
	apply(t, c.nodes[l], fsm.DrainNode{Now: now(), Node: c.nodes[l].ID(), Drained: true})
	c.eventually("another leads", func() bool { return c.nodes[c.leader()] != c.nodes[l] })
}

// TestDeadServerCleanup has two of five voters go for long: they lose their votes, down to three and not below, and get
// them again.
func TestDeadServerCleanup(t *testing.T) {
	c := startSeveral(t, 5, func(cfg *Config) {
		quick(cfg)
		cfg.DeadServerCleanup = 2 * time.Second
	})
	c.furnish()
	l, f := c.followers()
	voters := func() (count int) {
		for _, votes := range c.nodes[l].Servers() {
			if votes {
				count++
			}
		}
		return count
	}
	c.stop(f[0])
	c.stop(f[1])
	c.eventually("three are left", func() bool { return voters() == 3 })
	c.stop(f[2])
	c.eventually("the third is given up", func() bool { return lost(c.nodes[l], c.cfgs[f[2]].Identity.ID()) })
	apply(t, c.nodes[l], putOrg("two-of-three"))
	time.Sleep(3 * time.Second) // longer than the cleanup waits: what must not happen would have
	require.Equal(t, 3, voters(), "of three none loses its vote")
	for _, i := range f[:3] {
		c.start(i)
	}
	c.eventually("all vote again", func() bool { return voters() == 5 })
	c.agree(c.nodes[l])
}

// TestStalledDisk has the leader's disk hang: another leads soon, and when it goes on hanging the node ends.
func TestStalledDisk(t *testing.T) {
	gate := make(chan struct{})
	c := startTrio(t, func(cfg *Config) {
		quick(cfg)
		cfg.StallTimeout = time.Second
		cfg.probe = func(dir string) error {
			if _, err := os.Lstat(filepath.Join(dir, "stalled")); err == nil {
				<-gate
			}
			return nil
		}
	})
	l, _ := c.followers()
	c.agree(c.nodes[l])
	require.NoError(t, os.WriteFile(filepath.Join(c.cfgs[l].Dir, "stalled"), nil, 0o600))
	stalled := c.nodes[l]
	c.eventually("another leads", func() bool { return c.leader() != l })
	select {
	case <-stalled.Failed():
		require.ErrorIs(t, stalled.Failure(), errDiskStalled)
	case <-time.After(time.Minute):
		t.Fatal("the node goes on with a disk that hangs")
	}
	apply(t, c.nodes[c.leader()], putOrg("without-it"))
	close(gate)
}

package cluster

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/fsm"
)

// several is some voters on as many disks and sockets, started by the same code as one.
type several struct {
	t     *testing.T
	dir   string // with the CA and the identities
	cfgs  []Config
	nodes []*Node // nil: stopped
}

func startTrio(t *testing.T, change func(*Config)) *several { return startSeveral(t, 3, change) }

func startSeveral(t *testing.T, count int, change func(*Config)) *several {
	c := prepareSeveral(t, count, change)
	for i := range c.nodes {
		c.start(i)
	}
	return c
}

// prepareSeveral makes everything but the nodes, which the test's end stops.
func prepareSeveral(t *testing.T, count int, change func(*Config)) *several {
	c := &several{t: t, dir: t.TempDir(), nodes: make([]*Node, count)}
	var members []Member
	var listeners []net.Listener
	for i := range count {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		listeners = append(listeners, l) // all are open at once, so that no two get the same port
		members = append(members, Member{fsm.NodeID(fmt.Sprint("node-", i)), fmt.Sprint("n", i), l.Addr().String()})
	}
	for _, l := range listeners {
		require.NoError(t, l.Close())
	}
	for _, id := range testIdentity(t, c.dir, members...) {
		cfg := Config{
			Identity: id, Voters: id.Voters(), Dir: t.TempDir(),
			Logger: testLogger(t), HeartbeatTimeout: time.Second, ElectionTimeout: time.Second,
			LeaseTimeout: 500 * time.Millisecond, TransferTimeout: 3 * time.Second, DrainTimeout: time.Second,
		}
		if change != nil {
			change(&cfg)
		}
		c.cfgs = append(c.cfgs, cfg)
	}
	t.Cleanup(func() {
		for i := range c.nodes {
			c.stop(i)
		}
	})
	return c
}

func (c *several) start(i int) {
	c.t.Helper()
	n, err := Open(c.cfgs[i])
	require.NoError(c.t, err)
	c.nodes[i] = n
}

func (c *several) stop(i int) {
	c.t.Helper()
	if c.nodes[i] != nil {
		stop(c.t, c.nodes[i])
		c.nodes[i] = nil
	}
}

// leader waits for a node that leads, and gives its place.
func (c *several) leader() int {
	c.t.Helper()
	leader := -1
	require.Eventually(c.t, func() bool {
		for i, n := range c.nodes {
			if n != nil && n.IsLeader() {
				leader = i
				return true
			}
		}
		return false
	}, time.Minute, 5*time.Millisecond)
	return leader
}

// agree waits until every running node has the state of the one given, and none has anything left to tell the others.
func (c *several) agree(with *Node) {
	c.t.Helper()
	for _, n := range c.nodes {
		require.Eventually(c.t, func() bool {
			return n == nil || (n.atHome() && n.State().Digest() == with.State().Digest())
		}, time.Minute, 5*time.Millisecond)
	}
}

func TestReplication(t *testing.T) {
	c := startTrio(t, nil)
	l := c.leader()
	leader, follower := c.nodes[l], c.nodes[(l+1)%3]
	furnish(t, leader)
	for range 5 {
		running(t, leader, 300)
	}
	c.agree(leader)
	require.Equal(t, Server{ID: leader.ID(), Addr: leader.Addr()}, follower.Leader())
}

// TestLeaderStops has the leader shut down: another one takes over what was done, and the stopped one catches up later.
func TestLeaderStops(t *testing.T) {
	c := startTrio(t, nil)
	first := c.leader()
	apply(t, c.nodes[first], putOrg("one"))
	c.stop(first)
	second := c.leader()
	require.NotEqual(t, first, second)
	s, err := c.nodes[second].Linearizable(deadline(t))
	require.NoError(t, err)
	require.Len(t, s.Orgs(), 1)
	apply(t, c.nodes[second], putOrg("two"))
	c.start(first)
	c.agree(c.nodes[second])
}

// TestFollowerFarBehind has a follower that missed what the log no longer holds, so that it is sent a snapshot.
func TestFollowerFarBehind(t *testing.T) {
	c := startTrio(t, func(cfg *Config) {
		cfg.SnapshotInterval, cfg.SnapshotThreshold, cfg.TrailingLogs = 10*time.Millisecond, 8, 2
	})
	l := c.leader()
	behind := (l + 1) % 3
	apply(t, c.nodes[l], putOrg("before"))
	c.stop(behind)
	l = c.leader()
	last := c.nodes[l].Status().Last
	furnish(t, c.nodes[l])
	for range 20 {
		running(t, c.nodes[l], 300)
	}
	require.Eventually(t, func() bool {
		first, err := c.nodes[l].store.FirstIndex()
		return err == nil && first > last+1
	}, time.Minute, 5*time.Millisecond, "the log no longer has what the follower missed")
	c.start(behind)
	c.agree(c.nodes[l])
	require.NoError(t, c.nodes[behind].State().Check())
}

// TestLeaderLosesItsMajority stops both followers: what was proposed is unknown, then nothing can be proposed, reads
// that must be fresh fail, and when the others are back all three agree on one outcome.
func TestLeaderLosesItsMajority(t *testing.T) {
	c := startTrio(t, func(cfg *Config) {
		// The leader must not notice before the first proposal, however slow the machine.
		cfg.HeartbeatTimeout, cfg.ElectionTimeout, cfg.LeaseTimeout = 4*time.Second, 4*time.Second, 4*time.Second
	})
	l := c.leader()
	leader := c.nodes[l]
	apply(t, leader, putOrg("before"))
	c.stop((l + 1) % 3)
	apply(t, leader, putOrg("with-two"))
	c.stop((l + 2) % 3)

	short, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	_, err := leader.Apply(short, putOrg("given-up")) // the leader does not know yet that it is alone
	requireKind(t, fsm.KindUnknown, err)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	_, err = leader.Apply(deadline(t), putOrg("deposed"))
	requireKind(t, fsm.KindUnknown, err)
	_, err = leader.Apply(deadline(t), putOrg("too-late"))
	requireKind(t, fsm.KindUnavailable, err)
	_, err = leader.Linearizable(deadline(t))
	requireKind(t, fsm.KindUnavailable, err)
	require.Len(t, leader.State().Orgs(), 2, "what is not committed does not show")

	c.start((l + 1) % 3)
	c.start((l + 2) % 3)
	now := c.nodes[c.leader()]
	apply(t, now, putOrg("after"))
	c.agree(now)
	s := now.State()
	for _, name := range []string{"before", "with-two", "after"} {
		_, ok := s.OrgByName(name)
		require.True(t, ok, "%s was done", name)
	}
	_, ok := s.OrgByName("too-late")
	require.False(t, ok, "what was certainly not applied is not there")
	_, first := s.OrgByName("given-up")
	_, second := s.OrgByName("deposed")
	require.Equal(t, first, second, "two entries of one term, in the log of the node with the longest: both or none")
}

package cluster

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"

	"stillframe/fsm"
)

// followers gives the places of the nodes that do not lead and know who does.
func (c *several) followers() (leader int, followers []int) {
	c.t.Helper()
	leader = c.leader()
	for i, n := range c.nodes {
		if i == leader || n == nil {
			continue
		}
		require.Eventually(c.t, func() bool { return n.Leader().ID == c.nodes[leader].ID() }, time.Minute, time.Millisecond)
		followers = append(followers, i)
	}
	return leader, followers
}

// steady makes elections in the middle of a test unlikely, however slow the machine.
func steady(cfg *Config) {
	cfg.HeartbeatTimeout, cfg.ElectionTimeout, cfg.LeaseTimeout = 6*time.Second, 6*time.Second, 6*time.Second
}

// TestFiveVotersAnyNode writes and reads through every node at once: what one has acknowledged, the next one shows.
func TestFiveVotersAnyNode(t *testing.T) {
	c := startSeveral(t, 5, steady)
	c.followers()
	var writers sync.WaitGroup
	for i, n := range c.nodes {
		writers.Go(func() {
			for k := range 10 {
				name := fmt.Sprintf("org-%d-%d", i, k)
				_, err := n.Apply(deadline(t), putOrg(name))
				if !assertNoError(t, err) {
					return
				}
				_, own := n.State().OrgByName(name)
				s, err := c.nodes[(i+1)%5].Linearizable(deadline(t))
				if !own || !assertNoError(t, err) {
					t.Errorf("%s does not show where it was written", name)
					return
				}
				if _, ok := s.OrgByName(name); !ok {
					t.Errorf("%s was done through node %d and is not in a later read of the next", name, i)
				}
			}
		})
	}
	writers.Wait()
	c.agree(c.nodes[c.leader()])
	require.Len(t, c.nodes[0].State().Orgs(), 50)
}

func assertNoError(t *testing.T, err error) bool {
	if err != nil {
		t.Error(err)
	}
	return err == nil
}

// TestForwardedRefusals has a follower answer what the leader would, to the kind, the field and the result.
func TestForwardedRefusals(t *testing.T) {
	c := startTrio(t, steady)
	l, f := c.followers()
	leader, follower := c.nodes[l], c.nodes[f[0]]
	furnish(t, leader)
	cmd := fsm.CreateSandbox{
		Now: now(), Intent: NewIntentID(), Org: "org-a", Sandbox: NewSandboxID(), TemplateName: "system/none",
		VCPU: 1, MemoryMiB: 512, DiskMiB: 1024, TimeoutSec: 300, Request: fsm.Request{Key: "k", BodyHash: [32]byte{1}},
	}
	res, err := follower.Apply(deadline(t), cmd)
	here, errHere := leader.Apply(deadline(t), cmd) // the same refusal, replayed from its record
	require.Error(t, errHere)
	require.Equal(t, errHere.Error(), err.Error())
	require.Equal(t, here.Err, res.Err)
	require.ErrorIs(t, err, res.Err)

	cmd.TemplateName, cmd.Request = "system/busybox", fsm.Request{}
	cmd.EnvVars = map[string]string{"A": "\xff\x00 any bytes"}
	res, err = follower.Apply(deadline(t), cmd)
	require.NoError(t, err)
	require.Equal(t, fsm.IntentOpen, res.Intent.State)
	done, err := follower.Apply(deadline(t), fsm.Complete{
		Now: now(), Intent: res.Intent.ID, Owner: res.Intent.Owner, Epoch: res.Intent.Epoch,
	})
	require.NoError(t, err)
	require.Equal(t, cmd.EnvVars, done.Intent.ResultSandbox.EnvVars, "a result crosses the wire unchanged")
	in, err := c.nodes[f[1]].WaitIntent(deadline(t), res.Intent.ID)
	require.NoError(t, err)
	require.Equal(t, done.Intent, in)
}

// TestNoLeader stops the majority: the node that is left says so, soon, for writes and reads.
func TestNoLeader(t *testing.T) {
	c := startTrio(t, nil)
	l, f := c.followers()
	left := c.nodes[f[0]]
	apply(t, left, putOrg("before"))
	c.stop(f[1])
	c.stop(l)
	require.Eventually(t, func() bool { return left.Leader().ID == "" }, time.Minute, time.Millisecond)
	_, err := left.Apply(deadline(t), putOrg("after"))
	requireKind(t, fsm.KindUnavailable, err)
	_, err = left.Linearizable(deadline(t))
	requireKind(t, fsm.KindUnavailable, err)
}

// outrun stops a follower and has the leader forget what follows on that follower's log, which is at last. The
// configuration must have the leader take snapshots soon.
func (c *several) outrun() (behind, leader int, last uint64) {
	c.t.Helper()
	_, f := c.followers()
	behind = f[0]
	c.stop(behind)
	leader = c.leader()
	n := c.nodes[leader]
	last = n.Status().Last
	for i := range 40 {
		apply(c.t, n, putOrg(fmt.Sprint("org", i)))
	}
	require.Eventually(c.t, func() bool {
		first, err := n.store.FirstIndex()
		return err == nil && first > last+1
	}, time.Minute, 5*time.Millisecond)
	return behind, leader, last
}

// TestReadAfterSnapshot has a follower that was sent a snapshot, with nothing written since: it knows how far it is.
func TestReadAfterSnapshot(t *testing.T) {
	c := startTrio(t, func(cfg *Config) {
		cfg.SnapshotInterval, cfg.SnapshotThreshold, cfg.TrailingLogs = 10*time.Millisecond, 8, 2
	})
	behind, l, _ := c.outrun()
	c.start(behind)
	n := c.nodes[behind]
	require.Eventually(t, func() bool { return n.Leader().ID != "" }, time.Minute, time.Millisecond)
	s, err := n.Linearizable(deadline(t))
	require.NoError(t, err)
	require.Len(t, s.Orgs(), 40)
	require.Equal(t, c.nodes[l].Status().Position, n.Status().Position)

	// After a restart from that snapshot, too.
	c.stop(behind)
	c.start(behind)
	require.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		s, err := c.nodes[behind].Linearizable(ctx)
		return err == nil && len(s.Orgs()) == 40
	}, time.Minute, 10*time.Millisecond)
}

// TestEntriesAfterAnInstalledSnapshot gives a node, whose log begins after a snapshot and has entries, those entries
// once more, as a leader does that did not hear the answer. The library alone refuses them for ever, for it looks for
// the entry before them in the log.
func TestEntriesAfterAnInstalledSnapshot(t *testing.T) {
	threshold := uint64(8)
	c := startTrio(t, func(cfg *Config) {
		cfg.SnapshotInterval, cfg.SnapshotThreshold, cfg.TrailingLogs = 10*time.Millisecond, threshold, 2
	})
	behind, _, last := c.outrun()
	threshold = 1 << 20 // so that it makes none of its own
	c.start(behind)
	n, leader := c.nodes[behind], c.nodes[c.leader()]
	var snapshot, term uint64
	require.Eventually(t, func() bool { // the log goes on from the snapshot by some entries
		apply(t, leader, putOrg(fmt.Sprint("more", time.Now().UnixNano())))
		stats := n.raft.Stats()
		snapshot, _ = strconv.ParseUint(stats["last_snapshot_index"], 10, 64)
		term, _ = strconv.ParseUint(stats["last_snapshot_term"], 10, 64)
		var entry raft.Log
		gone := errors.Is(n.store.GetLog(snapshot, &entry), raft.ErrLogNotFound)
		return snapshot > last && gone && n.store.GetLog(snapshot+1, &entry) == nil
	}, time.Minute, time.Millisecond)

	var next raft.Log
	require.NoError(t, n.store.GetLog(snapshot+1, &next))
	now, err := strconv.ParseUint(leader.raft.Stats()["term"], 10, 64)
	require.NoError(t, err)
	send := func(prevTerm uint64) raft.AppendEntriesResponse {
		var resp raft.AppendEntriesResponse
		require.NoError(t, leader.trans.AppendEntries(raft.ServerID(n.ID()), n.trans.LocalAddr(), &raft.AppendEntriesRequest{
			RPCHeader: raft.RPCHeader{
				ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(leader.ID()), Addr: []byte(leader.trans.LocalAddr()),
			},
			Term: now, PrevLogEntry: snapshot, PrevLogTerm: prevTerm, Entries: []*raft.Log{&next},
		}, &resp))
		return resp
	}
	require.True(t, send(term).Success)
	require.False(t, send(term+1).Success, "another history")
	c.agree(leader)
}

// TestStatusOf has every node tell every other its status; equal positions have equal digests.
func TestStatusOf(t *testing.T) {
	c := startTrio(t, nil)
	l, f := c.followers()
	apply(t, c.nodes[f[0]], putOrg("one"))
	c.agree(c.nodes[l])
	for _, from := range c.nodes {
		want, err := from.StatusOf(deadline(t), from.ID(), true)
		require.NoError(t, err)
		for _, of := range c.nodes {
			got, err := from.StatusOf(deadline(t), of.ID(), true)
			require.NoError(t, err)
			require.Equal(t, of.ID(), got.ID)
			require.Equal(t, want.Position, got.Position)
			require.Equal(t, want.Digest, got.Digest)
			require.Len(t, got.Digest, 64)
			if of != from {
				require.WithinDuration(t, time.Now(), from.LastContact(of.ID()), time.Minute)
			}
		}
	}
	gone := c.nodes[f[1]].ID()
	c.stop(f[1])
	_, err := c.nodes[l].StatusOf(deadline(t), gone, false)
	requireKind(t, fsm.KindUnavailable, err)
}

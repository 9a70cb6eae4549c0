package cluster

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"

	"stillframe/fsm"
)

// newerType is a command of a program that is newer than this one.
const newerType = 250

// newer decodes as a newer program would: it knows a command more, which makes an organization.
func newer(b []byte) (fsm.Command, error) {
	if len(b) > 3 && b[1] == newerType {
		return putOrgAt(string(b[3:])), nil
	}
	return fsm.Decode(b)
}

// putOrgAt is putOrg with a time that is the same on every node.
func putOrgAt(name string) fsm.Command {
	return fsm.PutOrg{Now: 1, Org: fsm.Org{ID: fsm.OrgID("org-" + name), Name: name}}
}

// TestOldNodeStops has a log with an entry that one of three nodes does not know: that one stops, says so, and applies
// nothing after it, also when it is started again; the others go on. The newer program takes it up where it stopped.
func TestOldNodeStops(t *testing.T) {
	c := startTrio(t, func(cfg *Config) { cfg.decode = newer })
	_, f := c.followers()
	old := f[0]
	c.stop(old)
	c.cfgs[old].decode = nil
	c.start(old)
	l := c.leader()
	apply(t, c.nodes[l], putOrg("before"))
	require.NoError(t, c.nodes[l].raft.Apply([]byte{1, newerType, 1, 'x'}, time.Minute).Error())
	apply(t, c.nodes[l], putOrg("after"))
	for range 2 {
		select {
		case <-c.nodes[old].Failed():
		case <-deadline(t).Done():
			t.Fatal("the old program goes on")
		}
		require.ErrorIs(t, c.nodes[old].Failure(), fsm.ErrUnknownCommand)
		require.ErrorContains(t, c.nodes[old].Failure(), "log index")
		_, there := c.nodes[old].State().OrgByName("after")
		require.False(t, there, "it has skipped what it does not know")
		_, err := c.nodes[old].Apply(deadline(t), putOrg("refused"))
		require.Error(t, err)
		apply(t, c.nodes[c.leaderBut(old)], putOrg("still-"+fmt.Sprint(time.Now().UnixNano())))
		c.stop(old)
		c.start(old)
	}
	c.stop(old)
	c.cfgs[old].decode = newer
	c.start(old)
	c.agree(c.nodes[c.leaderBut(old)])
	_, there := c.nodes[old].State().OrgByName("x")
	require.True(t, there)
}

// leaderBut waits for a leader among all nodes but one.
func (c *several) leaderBut(but int) int {
	kept := c.nodes[but]
	c.nodes[but] = nil
	defer func() { c.nodes[but] = kept }()
	return c.leader()
}

// TestNothingBeyondTheLevel has a member whose program knows less than the others: what it does not know is refused
// before it is in any log, through every node, until the member is upgraded.
func TestNothingBeyondTheLevel(t *testing.T) {
	c := startTrio(t, steady)
	l, f := c.followers()
	for _, n := range c.nodes {
		n.needs = func(b []byte) int { // the command that makes organizations shall be new
			if b[1] == byte(fsm.TypePutOrg) {
				return fsm.Level
			}
			return fsm.Needs(b)
		}
	}
	register := func(i, level int) {
		apply(t, c.nodes[l], fsm.RegisterNode{Now: now(), Node: fsm.Node{
			ID: c.nodes[i].ID(), Name: fmt.Sprint("n", i), Level: level,
		}})
	}
	register(0, fsm.Level)
	register(1, fsm.Level)
	register(2, fsm.Level-1)
	for _, n := range []*Node{c.nodes[l], c.nodes[f[0]]} {
		last := c.nodes[l].Status().Last
		_, err := n.Apply(deadline(t), putOrg("new"))
		requireKind(t, fsm.KindUnavailable, err)
		require.ErrorContains(t, err, "node n2 is at")
		require.Equal(t, last, c.nodes[l].Status().Last)
	}
	register(2, fsm.Level)
	for i, n := range c.nodes {
		apply(t, n, putOrg(fmt.Sprint("new", i)))
	}
	c.agree(c.nodes[l])
}

// TestOldNodeIsSentANewerSnapshot has a state that holds what this program does not know: it stops, keeps what it has,
// and writes no snapshot of its own over it.
func TestOldNodeIsSentANewerSnapshot(t *testing.T) {
	var said error
	m := newMachine(func(err error) { said = err })
	body := append([]byte("stillframe state 1\n"), 200, 1, 'x', 0)
	sum := sha256.Sum256(body)
	before := m.view.Load()
	err := m.Restore(io.NopCloser(bytes.NewReader(append(body, sum[:]...))))
	require.ErrorIs(t, err, fsm.ErrUnknownState)
	require.ErrorIs(t, said, fsm.ErrUnknownState)
	require.Same(t, before, m.view.Load())
	_, err = m.Snapshot()
	require.ErrorIs(t, err, errBroken)
	data, err := fsm.Encode(putOrg("after"))
	require.NoError(t, err)
	require.ErrorIs(t, m.Apply(&raft.Log{Index: 9, Data: data}).(applied).err, errBroken)

	m = newMachine(func(err error) { t.Error(err) })
	sum[0]++
	require.Error(t, m.Restore(io.NopCloser(bytes.NewReader(append(body, sum[:]...)))), "damaged: another may be whole")
	require.Nil(t, m.broken.Load())
}

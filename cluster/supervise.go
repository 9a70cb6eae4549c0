package cluster

import (
	"context"
	"sync"
	"time"

	"stillframe/fsm"
)

// supervision is a leader's look at the other nodes, for the length of its term: it asks each in rounds how it is, and
// from the answers follows what it proposes. What it knows is not kept: the next leader gives every node a whole lease.
type supervision struct {
	n        *Node
	contacts map[fsm.NodeID]*contact
	behind   uint64 // the leader's own position at the round before: who is not there yet does not keep up
}

// contact is what a leader knows of one other node.
type contact struct {
	good     time.Time // when it last answered as a node that keeps up; at first, when this term began to look
	missed   int       // rounds since then
	position uint64    // that it had at its last answer
	steady   time.Time // since when it has kept up without a break; zero: it does not now
}

const (
	// roundsOfLease is how many rounds of questions a lease holds.
	roundsOfLease = 6
	// minMissed is how many rounds in a row a node must have missed to be lost, however late the leader comes to ask: a
	// machine that was suspended finds all its leases run out.
	minMissed = 3
	// longestRound bounds the time between two rounds, so that a node that is back waits little for the news.
	longestRound = 2 * time.Second
)

func (c Config) round() time.Duration { return min(c.NodeLease/roundsOfLease, longestRound) }

// supervise runs for a term.
func (n *Node) supervise(ctx context.Context) {
	s := &supervision{n: n, contacts: map[fsm.NodeID]*contact{}}
	ticker := time.NewTicker(n.cfg.round())
	defer ticker.Stop()
	for ctx.Err() == nil {
		s.ask(ctx)
		s.decide(ctx)
		s.tend(ctx)
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
}

// ask does one round: all nodes at once, each with the time of a round to answer.
func (s *supervision) ask(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, max(s.n.cfg.round(), minAnswerTime))
	defer cancel()
	behind := s.n.machine.view.Load().touched
	var asking sync.WaitGroup
	for _, id := range s.n.others() {
		c := s.contacts[id]
		if c == nil {
			c = &contact{good: time.Now()}
			s.contacts[id] = c
		}
		asking.Go(func() {
			status, err := s.n.StatusOf(ctx, id, false)
			c.note(status, err == nil, s.behind)
		})
	}
	asking.Wait()
	s.behind = behind
}

// minAnswerTime is what a node is given to answer at the least, on a machine that is busy with guests.
const minAnswerTime = 500 * time.Millisecond

// note takes an answer, or that there was none. A node whose state machine neither is where the leader's was a round
// ago nor moves is not there for what the log asks of it, whatever it answers.
func (c *contact) note(s Status, answered bool, behind uint64) {
	moved := s.Position > c.position
	if answered {
		c.position = s.Position
	}
	if !answered || s.Stopped || (s.Position < behind && !moved) {
		c.missed++
		c.steady = time.Time{}
		return
	}
	c.good, c.missed = time.Now(), 0
	if s.Position < behind {
		c.steady = time.Time{}
	} else if c.steady.IsZero() {
		c.steady = c.good
	}
}

// healthy says that a node kept up at the last round.
func (c *contact) healthy() bool { return c != nil && c.missed == 0 && !c.steady.IsZero() }

// decide proposes what follows from a round.
func (s *supervision) decide(ctx context.Context) {
	for _, node := range s.n.State().Nodes() {
		c := s.contacts[node.ID]
		self := node.ID == s.n.id
		if ctx.Err() != nil || node.RegisteredAt == 0 || (c == nil && !self) {
			continue
		}
		switch {
		case node.Lost() && (self || c.missed == 0):
			s.mark(ctx, node, false)
		case !node.Lost() && !self && c.missed >= minMissed && time.Since(c.good) > s.n.cfg.NodeLease:
			s.mark(ctx, node, true)
		}
	}
}

// mark proposes a decision about a node. It holds for the node as this leader knows it: see fsm.MarkNode.
func (s *supervision) mark(ctx context.Context, node fsm.Node, lost bool) {
	log := s.n.log.With("of", string(node.ID), "name", node.Name)
	cmd := fsm.MarkNode{Now: fsm.At(time.Now()), Node: node.ID, Lost: lost, Epoch: node.Epoch}
	if err := s.n.applyAsLeader(ctx, cmd); err != nil {
		log.Warn("the decision about a node is not in the log", "lost", lost, "error", err)
		return
	}
	if lost {
		log.Error("node lost: it has not answered for a lease", "lease", s.n.cfg.NodeLease)
	} else {
		log.Info("node is there again")
	}
}

// applyAsLeader proposes what only a leader may decide: it is not sent on to the next one.
func (n *Node) applyAsLeader(ctx context.Context, cmd fsm.Command) error {
	data, err := fsm.Encode(cmd)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.EnqueueTimeout)
	defer cancel()
	return n.applyHere(ctx, data).err
}

// others gives every node of the cluster but this one: those of the membership and those that are registered.
func (n *Node) others() []fsm.NodeID {
	seen := map[fsm.NodeID]bool{n.id: true}
	var out []fsm.NodeID
	add := func(id fsm.NodeID) {
		if !seen[id] {
			seen[id] = true
			out = append(out, id)
		}
	}
	for _, node := range n.State().Nodes() {
		add(node.ID)
	}
	for id := range n.Servers() {
		add(id)
	}
	return out
}

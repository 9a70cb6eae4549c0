package cluster

import (
	"context"
	"time"

	"github.com/hashicorp/raft"

	"stillframe/fsm"
)

// tend keeps Raft's membership as the state and the nodes' health want it, one change a round: who was removed goes,
// who has caught up votes, and a voter that is gone for long loses its vote where that was asked for.
func (s *supervision) tend(ctx context.Context) {
	n := s.n
	servers := n.raft.GetConfiguration().Configuration().Servers
	for _, server := range servers {
		id := fsm.NodeID(server.ID)
		node, _ := n.State().Node(id)
		var err error
		switch {
		case ctx.Err() != nil:
			return
		case node.Removed():
			n.log.Info("taking a removed node out of the membership", "of", string(id))
			err = n.expel(id)
		case s.promotable(server):
			n.log.Info("node has caught up and votes from here on", "of", string(id), "name", node.Name)
			err = n.change("a vote", func(wait time.Duration) raft.IndexFuture {
				return n.raft.AddVoter(server.ID, server.Address, 0, wait)
			})
		case s.dead(node, server) && s.mayDemote(servers, id):
			n.log.Error("voter is gone for long: it has no vote until it is back", "of", string(id), "name", node.Name)
			err = n.change("the end of a vote", func(wait time.Duration) raft.IndexFuture {
				return n.raft.DemoteVoter(server.ID, 0, wait)
			})
		default:
			continue
		}
		if err != nil {
			n.log.Warn("the membership could not be changed; trying again", "of", string(id), "error", err)
		}
		return
	}
	s.leaveIfDrained(ctx)
}

// promotable says whether a member without a vote has kept up for long enough to get one.
func (s *supervision) promotable(server raft.Server) bool {
	c := s.contacts[fsm.NodeID(server.ID)]
	return server.Suffrage == raft.Nonvoter && c.healthy() && time.Since(c.steady) >= s.n.cfg.PromoteAfter
}

// dead says whether a voter has been lost for so long that it is to lose its vote.
func (s *supervision) dead(node fsm.Node, server raft.Server) bool {
	c, after := s.contacts[fsm.NodeID(server.ID)], s.n.cfg.DeadServerCleanup
	return after > 0 && server.Suffrage == raft.Voter && node.Lost() && c != nil && c.missed >= minMissed &&
		time.Since(c.good) > after
}

// mayDemote makes sure that, without a voter, enough are left and a majority of them is healthy.
func (s *supervision) mayDemote(servers []raft.Server, without fsm.NodeID) bool {
	voters, healthy := 0, 0
	for _, server := range servers {
		id := fsm.NodeID(server.ID)
		if server.Suffrage != raft.Voter || id == without {
			continue
		}
		voters++
		if id == s.n.id || s.contacts[id].healthy() {
			healthy++
		}
	}
	return voters >= minVoters && healthy > voters/2
}

// minVoters is how many voters are left at the least when one that is gone loses its vote: with fewer, one more loss
// would stop the cluster.
const minVoters = 3

// leaveIfDrained hands the leadership over where this node is drained and a healthy voter is not.
func (s *supervision) leaveIfDrained(ctx context.Context) {
	self, _ := s.n.State().Node(s.n.id)
	if !self.Drained {
		return
	}
	for id, voter := range s.n.Servers() {
		node, _ := s.n.State().Node(id)
		if id == s.n.id || !voter || node.Drained || !s.contacts[id].healthy() {
			continue
		}
		if _, err := s.n.transferHere(ctx, orderRequest{Node: id}); err != nil {
			s.n.log.Warn("drained, but still leading", "error", err)
		}
		return
	}
}

package node

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"stillframe/cluster"
	"stillframe/fsm"
	"stillframe/httpd"
)

// statusPatience bounds how long the status of the cluster waits for one node's answer.
const statusPatience = 3 * time.Second

// ClusterStatus is the cluster as this node sees it now: from its own copy of the state, and by asking every member.
func (n *Node) ClusterStatus(ctx context.Context, digest bool) httpd.ClusterStatus {
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	state, voters := n.log.State(), n.log.Servers()
	ids := map[fsm.NodeID]bool{}
	for _, m := range state.Nodes() {
		ids[m.ID] = true
	}
	for id := range voters {
		ids[id] = true
	}
	out := httpd.ClusterStatus{Node: n.id, Leader: n.log.Leader().ID, Nodes: make([]httpd.ClusterNode, len(ids))}
	var asking sync.WaitGroup
	i := 0
	for id := range ids {
		at := &out.Nodes[i]
		i++
		asking.Go(func() {
			*at = n.clusterNode(ctx, state, id, digest)
			at.Voter, at.Leader = voters[id], id == out.Leader
		})
	}
	asking.Wait()
	slices.SortFunc(out.Nodes, func(a, b httpd.ClusterNode) int {
		return strings.Compare(a.Name+" "+string(a.ID), b.Name+" "+string(b.ID))
	})
	return out
}

func (n *Node) clusterNode(ctx context.Context, state *fsm.State, id fsm.NodeID, digest bool) httpd.ClusterNode {
	known, _ := state.Node(id)
	used := state.Used(id)
	out := httpd.ClusterNode{
		ID: id, Name: known.Name, APIAddr: known.APIAddr, VMM: known.VMM, VMMVersion: known.VMMVersion,
		CloneMethod: known.CloneMethod, Drained: known.Drained, Lost: known.Lost(),
		Total: viewCapacity(known.Capacity),
		Free: viewCapacity(fsm.Capacity{
			VCPU: known.Capacity.VCPU - used.VCPU, MemoryMiB: known.Capacity.MemoryMiB - used.MemoryMiB,
			DiskMiB: known.Capacity.DiskMiB - used.DiskMiB,
		}),
	}
	out.Sandboxes, out.Snapshots = state.Held(id)
	if member, ok := n.identity.Member(id); ok && out.Name == "" {
		out.Name = member.Name // it has not registered yet
	}
	status, err := n.log.StatusOf(ctx, id, digest)
	if err != nil {
		out.LastContactMS = n.sinceContact(id)
		return out
	}
	out.Reachable, out.LastContactMS = true, new(int64)
	fillRaft(&out, status)
	return out
}

func fillRaft(out *httpd.ClusterNode, s cluster.Status) {
	out.Role, out.Term, out.AppliedIndex, out.Position = strings.ToLower(s.State), s.Term, s.Applied, s.Position
	out.Digest, out.Version = s.Digest, s.Version
	out.SkewMS, out.TripMS = s.Skew.Seconds()*1000, s.Trip.Seconds()*1000
}

// sinceContact is how long ago a node that does not answer was last heard by this one; nil: never since the start.
func (n *Node) sinceContact(id fsm.NodeID) *int64 {
	last := n.log.LastContact(id)
	if last.IsZero() {
		return nil
	}
	ms := time.Since(last).Milliseconds()
	return &ms
}

func viewCapacity(c fsm.Capacity) httpd.ClusterCapacity {
	return httpd.ClusterCapacity{VCPU: c.VCPU, Memory: c.MemoryMiB, Disk: c.DiskMiB}
}

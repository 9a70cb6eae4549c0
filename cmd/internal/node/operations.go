package node

import (
	"context"

	"stillframe/cluster"
	"stillframe/fsm"
)

// operations joins what an operator asks for to the cluster.
type operations struct{ log *cluster.Node }

func (o operations) Leader() fsm.NodeID { return o.log.Leader().ID }

func (o operations) Transfer(ctx context.Context, to fsm.NodeID) (fsm.NodeID, error) {
	return o.log.Transfer(ctx, to)
}

func (o operations) Remove(ctx context.Context, node fsm.NodeID, force bool) error {
	return o.log.Remove(ctx, node, force)
}

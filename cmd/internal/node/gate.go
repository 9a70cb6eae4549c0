package node

import (
	"fmt"

	"stillframe/netpolicy/gate"
	"stillframe/netpolicy/policy"
)

// newGate makes the gate that all sandboxes of this node go out by.
func (n *Node) newGate(floor policy.Floor, p parsedEgress) (*gate.Gate, error) {
	g, err := gate.New(gate.Config{
		Floor: floor, Resolvers: p.resolvers,
		Limits: gate.Limits{
			Connections: n.cfg.Egress.Bounds.Connections, ConnectionRate: n.cfg.Egress.Bounds.NewPerSecond,
		},
		Logger: n.cfg.Logger.With("room", "gate"), Metrics: n.registry,
	})
	if err != nil {
		return nil, fmt.Errorf("gate of sandboxes: %w", err)
	}
	return g, nil
}

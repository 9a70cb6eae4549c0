package node

import (
	"fmt"

	"stillframe/netpolicy"
	"stillframe/netpolicy/gate"
	"stillframe/netpolicy/policy"
)

// sandboxGate is the gate as the manager of networks sees it.
type sandboxGate struct{ *gate.Gate }

// Open implements netpolicy.Gate.
func (g sandboxGate) Open(p netpolicy.Ports) (netpolicy.Session, error) {
	ca, err := gate.CAFromSeed(p.CASeed)
	if err != nil {
		return nil, err
	}
	s, err := g.Gate.Open(gate.Sandbox{
		ID: p.ID, TCP: p.TCP, UDP: p.DNS, DNSTCP: p.DNSTCP, OriginalDst: p.OriginalDst, CA: ca, Plan: p.Plan,
	})
	if err != nil {
		return nil, err
	}
	return sandboxSession{s, ca}, nil
}

// sandboxSession is one sandbox at the gate.
type sandboxSession struct {
	*gate.Session
	ca *gate.CA
}

// Cut implements netpolicy.Session.
func (s sandboxSession) Cut() { s.Session.Cut() }

// CACertPEM implements netpolicy.Session.
func (s sandboxSession) CACertPEM() []byte { return s.ca.CertPEM() }

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

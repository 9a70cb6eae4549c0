package netpolicy

import (
	"context"

	"stillframe/netpolicy/gate"
	"stillframe/netpolicy/policy"
)

// Gate is what decides by name: the node's DNS server and TCP proxy.
type Gate interface {
	// Open serves a sandbox's listeners, which are inside its namespace, until the session is closed, which closes them.
	Open(gate.Sandbox) (Session, error)
}

// Session is one sandbox at the gate.
type Session interface {
	// Replace makes a plan the one that decides, from the next connection or question on. A nil plan denies everything.
	Replace(*policy.Plan) error
	// Cut ends connections that the plan does not allow any more, and tells how many.
	Cut() int
	Close() error
	// Log gives the last decisions, the latest first.
	Log(limit int) []gate.Decision
	Check(ctx context.Context, host string, port uint16) gate.Decision
}

var _ Session = (*gate.Session)(nil)

// Through gives the Gate that g is.
func Through(g *gate.Gate) Gate { return through{g} }

type through struct{ *gate.Gate }

func (t through) Open(sb gate.Sandbox) (Session, error) {
	s, err := t.Gate.Open(sb)
	if err != nil {
		return nil, err // and not a Session that holds a nil
	}
	return s, nil
}

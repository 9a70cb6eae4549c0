package hypervisor

import (
	"context"
	"time"

	"stillframe/fsm"
)

// PolicyDecision is what a sandbox's network policy decided about one connection or query. It holds no header values and
// no contents.
type PolicyDecision struct {
	At       time.Time
	Action   string // allow, transform or deny
	Rule     string // the part of the policy, or of the floor beneath every policy, that decided
	Reason   string // more for people; may be empty
	Protocol string // tcp, udp, dns, tls, http, …
	Name     string // canonical; empty where only an address was known
	Address  string // host:port that was dialled or asked for; may be empty
	Sent     int64  // bytes from the sandbox
	Received int64  // bytes to the sandbox
}

// PolicyLog gives the last decisions on a sandbox of this node, the newest last, at most limit.
func (o *Owner) PolicyLog(_ context.Context, id fsm.SandboxID, _ int) ([]PolicyDecision, error) {
	return nil, noPolicyYet(id)
}

// PolicyCheck says what would become of a connection from a sandbox of this node to a host name or address, without
// opening one. Port 0 is any.
func (o *Owner) PolicyCheck(_ context.Context, id fsm.SandboxID, _ string, _ uint16) (PolicyDecision, error) {
	return PolicyDecision{}, noPolicyYet(id)
}

func noPolicyYet(id fsm.SandboxID) error {
	return fsm.Errorf(fsm.KindUnavailable, "no network policy is in force in sandbox %s", id)
}

package hypervisor

import (
	"context"
	"net"
	"slices"
	"strconv"
	"time"

	"stillframe/fsm"
	"stillframe/netpolicy"
	"stillframe/netpolicy/gate"
)

// PolicyDecision is what a sandbox's network policy decided about one connection or query. It holds no header values
// and no contents.
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
func (o *Owner) PolicyLog(_ context.Context, id fsm.SandboxID, limit int) ([]PolicyDecision, error) {
	n, err := o.networkOf(id)
	if err != nil {
		return nil, err
	}
	latestFirst := n.Log(limit)
	out := make([]PolicyDecision, len(latestFirst))
	for i, d := range latestFirst {
		out[i] = viewDecision(d)
	}
	slices.Reverse(out)
	return out, nil
}

// PolicyCheck says what would become of a connection from a sandbox of this node to a host name or address, without
// opening one. Port 0 is any.
func (o *Owner) PolicyCheck(ctx context.Context, id fsm.SandboxID, host string, port uint16) (PolicyDecision, error) {
	n, err := o.networkOf(id)
	if err != nil {
		return PolicyDecision{}, err
	}
	return viewDecision(n.Check(ctx, host, port)), nil
}

// networkOf gives the network of a sandbox whose policy is in force here.
func (o *Owner) networkOf(id fsm.SandboxID) (*netpolicy.Network, error) {
	m, err := o.machine(id)
	if err != nil {
		return nil, err
	}
	return m.egress.get()
}

// actions are the gate's verdicts as the API words them.
var actions = map[string]string{gate.Allowed: "allow", gate.Denied: "deny", gate.Transformed: "transform"}

func viewDecision(d gate.Decision) PolicyDecision {
	out := PolicyDecision{
		At: d.Time, Action: actions[d.Verdict], Rule: d.Rule, Reason: d.Reason, Protocol: d.Kind, Name: d.Name,
		Sent: d.Up, Received: d.Down,
	}
	if d.Addr.IsValid() {
		out.Address = net.JoinHostPort(d.Addr.String(), strconv.Itoa(int(d.Port)))
	}
	return out
}

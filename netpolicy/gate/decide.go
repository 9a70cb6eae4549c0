package gate

import (
	"net/netip"

	"stillframe/netpolicy/policy"
)

// way is how a connection goes on.
type way int

const (
	refuse    way = iota
	toAddress     // a tunnel to the address that the guest chose
	toName        // a tunnel to an address that the gate finds for the name
	terminate     // TLS ends here
)

// ruling is what was decided of a connection.
type ruling struct {
	way       way
	rule      string
	reason    string            // more about a refusal
	name      string            // canonical; empty where none was said
	transform *policy.Transform // for terminate
}

// decide is the one place where a connection is decided: by the plan, the floor, the address that the guest chose and
// what it said. Pure.
func decide(plan *policy.Plan, floor policy.Floor, to netip.AddrPort, s said) ruling {
	rule, byAddress := plan.Reach(floor, to.Addr())
	var v policy.Verdict
	if s.err == nil && (s.proto == protoTLS || s.proto == protoHTTP) {
		v = plan.Name(s.name)
	}
	switch {
	case v.Action == policy.Terminate && s.proto == protoTLS:
		return ruling{way: terminate, rule: v.Rule, name: v.Name, transform: v.Transform}
	case v.Action == policy.Terminate:
		return ruling{rule: v.Rule, name: v.Name, reason: "a domain with a transform is reached over HTTPS only"}
	case v.Action == policy.Tunnel && plan.Mode() != policy.ModeAllowAll:
		return ruling{way: toName, rule: v.Rule, name: v.Name}
	case byAddress:
		return ruling{way: toAddress, rule: rule, name: v.Name}
	case v.Rule == "", v.Rule == policy.RuleAllowAll:
		return ruling{rule: rule, name: v.Name, reason: unsaid(s)}
	}
	return ruling{rule: v.Rule, name: v.Name}
}

// unsaid tells why a connection is judged by its address alone.
func unsaid(s said) string {
	switch {
	case s.proto == silent:
		return "it said no name in time"
	case s.proto == protoElse:
		return "its protocol says no name"
	case s.err != nil:
		return s.err.Error()
	}
	return ""
}

// matters tells whether anything that a connection can say would change what becomes of it.
func matters(plan *policy.Plan, byAddress bool) bool { return plan.Names() || !byAddress }

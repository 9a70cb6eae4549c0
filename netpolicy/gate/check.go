package gate

import (
	"context"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

// Check tells what would happen to a connection to a host, a name or an address, and by which rule, without making one.
// A name that the policy allows is resolved, and its addresses are held against the floor. Port 80 is taken for HTTP,
// any other for TLS. Nothing is added to the log.
func (s *Session) Check(ctx context.Context, host string, port uint16) Decision {
	d := Decision{Time: time.Now().UTC(), Kind: KindTCP, Port: port, Verdict: Denied}
	plan, floor := s.Plan(), s.gate.floor()
	to, err := netip.ParseAddr(host)
	heard := said{}
	if err != nil {
		to = netip.Addr{}
		heard = said{proto: protoTLS, name: host}
		if port == 80 {
			d.Kind, heard.proto = KindHTTP, protoHTTP
		}
	} else {
		d.Addr = to.Unmap()
	}
	if to.IsValid() {
		r := decide(plan, floor, netip.AddrPortFrom(d.Addr, port), heard)
		d.Rule = r.rule
		if r.way == toAddress {
			d.Verdict = Allowed
		}
		return d
	}
	v := plan.Name(host)
	d.Name = v.Name
	return s.checkName(ctx, d, heard)
}

// checkName goes on for a name. In mode allow-all, and where only allow_cidrs can help, what counts is where the name
// leads: a guest would resolve it and connect there.
func (s *Session) checkName(ctx context.Context, d Decision, heard said) Decision {
	plan, floor := s.Plan(), s.gate.floor()
	r := decide(plan, floor, netip.AddrPort{}, heard)
	d.Rule, d.Reason = r.rule, r.reason
	name, rule, ok := mayResolve(plan, dns.Question{Name: dns.Fqdn(heard.name), Qtype: dns.TypeA, Qclass: dns.ClassINET})
	if !ok {
		d.Rule = rule
		return d
	}
	if r.way == refuse && r.transform == nil && r.rule == rule { // port 80 of a transform's domain
		return d
	}
	ctx, cancel := context.WithTimeout(ctx, s.limits.DialTime)
	defer cancel()
	addrs, err := s.addresses(ctx, name)
	if err != nil {
		d.Verdict, d.Rule, d.Reason = verdictOf(r), rule, asFailure(err).reason
		return d
	}
	for _, a := range addrs {
		against, open := plan.Open(floor, a)
		if open {
			d.Addr, d.Verdict, d.Rule, d.Reason = a, verdictOf(r), rule, ""
			return d
		}
		d.Addr, d.Rule, d.Reason = a, against, "the name resolves to an address that is not open"
	}
	d.Verdict = Denied
	return d
}

func verdictOf(r ruling) string {
	if r.way == terminate {
		return Transformed
	}
	return Allowed
}

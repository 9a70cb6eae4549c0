package gate

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"stillframe/netpolicy/policy"
)

// dnsTime is how long a query may wait for a resolver; clients ask again after five seconds.
const dnsTime = 4 * time.Second

// safeTypes are answered for names that mode custom allows; addresses come in A, and the rest says nothing that leads
// around the gate.
var safeTypes = []uint16{
	dns.TypeA, dns.TypeCNAME, dns.TypeMX, dns.TypeTXT, dns.TypeSRV, dns.TypeCAA, dns.TypeNS, dns.TypeSOA, dns.TypePTR,
}

// dnsServer answers one sandbox's queries.
type dnsServer struct {
	s        *Session
	udp, tcp *dns.Server
}

func newDNSServer(s *Session) *dnsServer {
	d := &dnsServer{s: s}
	d.udp = &dns.Server{PacketConn: s.sb.UDP, Handler: dns.HandlerFunc(d.serve), UDPSize: 4096}
	d.tcp = &dns.Server{
		Listener: &cappedListener{Listener: s.sb.DNSTCP, slots: make(chan struct{}, s.limits.DNSConnections), s: s},
		Handler:  dns.HandlerFunc(d.serve), ReadTimeout: 2 * time.Second,
	}
	return d
}

func (d *dnsServer) start(wg *sync.WaitGroup) {
	for _, server := range []*dns.Server{d.udp, d.tcp} {
		wg.Go(func() {
			for {
				err := server.ActivateAndServe()
				if err == nil || d.s.ctx.Err() != nil {
					return
				}
				d.s.log.Warn("egress DNS server failed", "error", err)
				select {
				case <-d.s.ctx.Done():
					return
				case <-time.After(50 * time.Millisecond):
				}
			}
		})
	}
}

// close ends both servers; what waits for a resolver ends with the session's context.
func (d *dnsServer) close() {
	for _, server := range []*dns.Server{d.udp, d.tcp} {
		if server.Shutdown() != nil { // not begun yet: its first read must fail
			_ = d.s.sb.UDP.Close()
			_ = d.s.sb.DNSTCP.Close()
		}
	}
}

// cappedListener closes connections beyond a number at once, so that idle ones cost little.
type cappedListener struct {
	net.Listener
	slots chan struct{}
	s     *Session
}

func (l *cappedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.slots <- struct{}{}:
			return &slotConn{Conn: conn, free: sync.OnceFunc(func() { <-l.slots })}, nil
		default:
			reset(conn)
			l.s.gate.metrics.limited.WithLabelValues("dns_connections").Inc()
		}
	}
}

type slotConn struct {
	net.Conn
	free func()
}

func (c *slotConn) Close() error {
	c.free()
	return c.Conn.Close()
}

// serve answers one query.
func (d *dnsServer) serve(w dns.ResponseWriter, m *dns.Msg) {
	answer := d.answer(m)
	if answer == nil {
		return
	}
	size := dns.MaxMsgSize
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		size = dns.MinMsgSize
		if opt := m.IsEdns0(); opt != nil {
			size = min(max(int(opt.UDPSize()), dns.MinMsgSize), udpSize)
		}
	}
	answer.Truncate(size)
	_ = w.WriteMsg(answer)
}

// answer makes the answer to a query; nil for a message that gets none.
func (d *dnsServer) answer(m *dns.Msg) *dns.Msg {
	s := d.s
	out := new(dns.Msg)
	if len(m.Question) != 1 || m.Opcode != dns.OpcodeQuery || m.Response {
		return out.SetRcode(m, dns.RcodeNotImplemented)
	}
	out.SetReply(m)
	out.RecursionAvailable = true
	if opt := m.IsEdns0(); opt != nil {
		out.SetEdns0(udpSize, false) // cookies, subnets and the like stay here
	}
	if !s.asking.Allow() {
		s.gate.metrics.limited.WithLabelValues("dns_rate").Inc()
		out.Rcode = dns.RcodeRefused
		explain(out, dns.ExtendedErrorCodeProhibited, "too many queries")
		return out
	}
	q := m.Question[0]
	plan := s.Plan()
	name, rule, ok := mayResolve(plan, q)
	switch {
	case !ok:
		d.blocked(out, name, rule)
	case q.Qtype == dns.TypeANY || q.Qtype == dns.TypeAXFR || q.Qtype == dns.TypeIXFR:
		out.Rcode = dns.RcodeNotImplemented
		explain(out, dns.ExtendedErrorCodeNotSupported, "not answered here")
	case !answered(plan, q.Qtype): // there is the name, and nothing of this type
		explain(out, dns.ExtendedErrorCodeFiltered, "egress policy: records of this type are not passed on")
	default:
		d.forward(out, dns.Question{Name: dns.Fqdn(name), Qtype: q.Qtype, Qclass: dns.ClassINET}, plan, rule)
	}
	return out
}

// mayResolve decides on a name. In mode allow-all a name needs no canonical form: services are found under names that
// are none of a host.
func mayResolve(plan *policy.Plan, q dns.Question) (name, rule string, ok bool) {
	v := plan.Name(q.Name)
	switch {
	case q.Qclass != dns.ClassINET:
		return v.Name, "DNS class is not IN", false
	case v.Action == policy.Deny:
		return v.Name, v.Rule, false
	case v.Name == "":
		return strings.TrimSuffix(dns.CanonicalName(q.Name), "."), v.Rule, true
	}
	return v.Name, v.Rule, true
}

// answered tells whether records of a type are passed on at all. HTTPS and SVCB carry addresses and the keys with which
// a ClientHello hides its name; IPv6 is off.
func answered(plan *policy.Plan, kind uint16) bool {
	switch kind {
	case dns.TypeHTTPS, dns.TypeSVCB, dns.TypeAAAA:
		return false
	}
	return plan.Mode() == policy.ModeAllowAll || slices.Contains(safeTypes, kind)
}

func (d *dnsServer) blocked(out *dns.Msg, name, rule string) {
	out.Rcode = dns.RcodeNameError
	explain(out, dns.ExtendedErrorCodeBlocked, "egress policy: "+rule)
	d.s.note(Decision{Kind: KindDNS, Name: name, Verdict: Denied, Rule: rule})
}

// forward fills in what the node's resolvers say, but for addresses that are not open.
func (d *dnsServer) forward(out *dns.Msg, q dns.Question, plan *policy.Plan, rule string) {
	ctx, cancel := context.WithTimeout(d.s.ctx, dnsTime)
	defer cancel()
	name := strings.TrimSuffix(q.Name, ".")
	answer, age, err := d.s.lookup(ctx, q)
	if err != nil {
		out.Rcode = dns.RcodeServerFailure
		explain(out, dns.ExtendedErrorCodeNetworkError, "the node's resolvers do not answer")
		d.s.gate.metrics.failures.WithLabelValues("dns").Inc()
		d.s.note(Decision{
			Kind: KindDNS, Name: name, Verdict: Allowed, Rule: rule, Reason: "the node's resolvers do not answer",
		})
		return
	}
	records, addr, against := openRecords(chain(answer, q), plan, d.s.gate.floor())
	if against != "" && !addr.IsValid() {
		d.blocked(out, name, against)
		return
	}
	out.Rcode = answer.Rcode
	for _, rr := range records {
		out.Answer = append(out.Answer, aged(rr, age, q.Name, out.Question[0].Name))
	}
	if len(out.Answer) == 0 {
		for _, rr := range answer.Ns {
			if _, ok := rr.(*dns.SOA); ok { // says for how long there is nothing
				out.Ns = append(out.Ns, aged(rr, age, "", ""))
			}
		}
	}
	d.s.note(Decision{Kind: KindDNS, Name: name, Addr: addr, Verdict: Allowed, Rule: rule})
}

// openRecords leaves out addresses that are not open. It gives the first that is, and the rule against the first that
// is not.
func openRecords(in []dns.RR, plan *policy.Plan, floor policy.Floor) (out []dns.RR, addr netip.Addr, against string) {
	for _, rr := range in {
		if a, ok := rr.(*dns.A); ok {
			to, _ := netip.AddrFromSlice(a.A.To4())
			if rule, open := plan.Open(floor, to); !open {
				against = cmp.Or(against, rule)
				continue
			}
			if !addr.IsValid() {
				addr = to
			}
		}
		out = append(out, rr)
	}
	return out, addr, against
}

// aged copies a record, older by age, and under the name as it was asked for: some clients compare letters' case.
func aged(rr dns.RR, age time.Duration, canonical, asked string) dns.RR {
	rr = dns.Copy(rr)
	h := rr.Header()
	h.Ttl -= min(h.Ttl, uint32(age/time.Second))
	if canonical != "" && dns.CanonicalName(h.Name) == canonical {
		h.Name = asked
	}
	return rr
}

// explain adds an extended error (RFC 8914), which may be said to who speaks EDNS only.
func explain(m *dns.Msg, code uint16, text string) {
	if opt := m.IsEdns0(); opt != nil {
		opt.Option = append(opt.Option, &dns.EDNS0_EDE{InfoCode: code, ExtraText: text})
	}
}

package gate_test

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"

	"stillframe/netpolicy/gate"
	"stillframe/netpolicy/policy"
)

// ask sends one query of a guest's.
func (g *guest) ask(network, name string, kind uint16) *dns.Msg {
	g.t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(name, kind)
	m.SetEdns0(4096, true)
	return g.exchange(network, m)
}

func (g *guest) exchange(network string, m *dns.Msg) *dns.Msg {
	g.t.Helper()
	server := g.dnsUDP
	if network == "tcp" {
		server = g.dnsTCP
	}
	answer, _, err := (&dns.Client{Net: network, Timeout: 20 * time.Second}).Exchange(m, server)
	require.NoError(g.t, err)
	return answer
}

// extended gives an answer's extended error.
func extended(m *dns.Msg) (code uint16, text string) {
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if ede, ok := o.(*dns.EDNS0_EDE); ok {
				return ede.InfoCode, ede.ExtraText
			}
		}
	}
	return 0, ""
}

func addresses(m *dns.Msg) (out []string) {
	for _, rr := range m.Answer {
		if a, ok := rr.(*dns.A); ok {
			out = append(out, a.A.String())
		}
	}
	return out
}

func TestDNSAnswersAllowedNamesOnly(t *testing.T) {
	w := newWorld(t)
	w.record("good.example. 60 IN A 203.0.113.10", "a.wild.example. 60 IN A 203.0.113.11",
		"api.example. 60 IN A 203.0.113.12",
		"evil.example. 60 IN A 203.0.113.66", "alias.example. 60 IN CNAME cdn.elsewhere.test.",
		"cdn.elsewhere.test. 60 IN A 203.0.113.13")
	p := custom("good.example", "*.wild.example", "alias.example")
	p.Transforms = []policy.Transform{{Domain: "api.example"}}
	g := w.node().guest(p)
	for name, want := range map[string]string{
		"good.example.": "203.0.113.10", "GOOD.eXample.": "203.0.113.10", "a.wild.example.": "203.0.113.11",
		"api.example.": "203.0.113.12", "alias.example.": "203.0.113.13",
	} {
		for _, network := range []string{"udp", "tcp"} {
			m := g.ask(network, name, dns.TypeA)
			require.Equal(t, dns.RcodeSuccess, m.Rcode)
			require.Equal(t, []string{want}, addresses(m))
			require.Equal(t, name, m.Question[0].Name, "letters as they were asked")
			require.Equal(t, name, m.Answer[0].Header().Name)
		}
	}
	before := len(w.questions())
	for _, name := range []string{
		"evil.example.", "wild.example.", "cdn.elsewhere.test.", "good.example.evil.test.", "com.", ".", "localhost.",
		"_dmarc.good.example.", `a\000.wild.example.`, `a\.b.wild.example.`, "bücher.wild.example.",
		"10.113.0.203.in-addr.arpa.", "version.bind.",
	} {
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeTXT, dns.TypeANY, dns.TypeHTTPS} {
			m := g.ask("udp", name, kind)
			require.Equal(t, dns.RcodeNameError, m.Rcode, name)
			require.Empty(t, m.Answer)
			code, text := extended(m)
			require.Equal(t, dns.ExtendedErrorCodeBlocked, code)
			require.Contains(t, text, "egress policy: ")
		}
	}
	require.Len(t, w.questions(), before, "nothing of it left the node")
	m := new(dns.Msg)
	m.SetQuestion("evil.example.", dns.TypeA)
	require.Nil(t, g.exchange("udp", m).IsEdns0(), "to who speaks no EDNS none is spoken")
}

func TestDNSDenyAll(t *testing.T) {
	w := newWorld(t)
	w.record("good.example. 60 IN A 203.0.113.10")
	g := w.node().guest(policy.Policy{Mode: policy.ModeDenyAll})
	for _, network := range []string{"udp", "tcp"} {
		require.Equal(t, dns.RcodeNameError, g.ask(network, "good.example.", dns.TypeA).Rcode)
	}
	require.Empty(t, w.questions())
	g.denied(policy.RuleDenyAll)
	// And in force with the next query once it is replaced.
	g.replace(custom("good.example"))
	require.Equal(t, []string{"203.0.113.10"}, addresses(g.ask("udp", "good.example.", dns.TypeA)))
	g.replace(policy.Policy{Mode: policy.ModeDenyAll})
	require.Equal(t, dns.RcodeNameError, g.ask("udp", "good.example.", dns.TypeA).Rcode, "whatever is kept")
}

// Records that carry keys to hide a name with, or addresses of a protocol that is off, are not there; the name is.
func TestDNSTypesThatLeadAroundTheGate(t *testing.T) {
	w := newWorld(t)
	w.record("good.example. 60 IN A 203.0.113.10", "good.example. 60 IN AAAA 2001:db8::1",
		`good.example. 60 IN HTTPS 1 . alpn=h3 ipv4hint=203.0.113.66 ech="AEX+DQBBpQAgACCK"`,
		"good.example. 60 IN SVCB 1 . port=853", `good.example. 60 IN TXT "text"`, "good.example. 60 IN MX 1 mx.example.")
	for _, p := range []policy.Policy{custom("good.example"), policy.AllowAll()} {
		g := w.node().guest(p)
		for _, kind := range []uint16{dns.TypeAAAA, dns.TypeHTTPS, dns.TypeSVCB} {
			m := g.ask("udp", "good.example.", kind)
			require.Equal(t, dns.RcodeSuccess, m.Rcode)
			require.Empty(t, m.Answer)
		}
		for _, kind := range []uint16{dns.TypeANY, dns.TypeAXFR, dns.TypeIXFR} {
			m := g.ask("udp", "good.example.", kind)
			require.Equal(t, dns.RcodeNotImplemented, m.Rcode)
			require.Empty(t, m.Answer)
		}
		for _, kind := range []uint16{dns.TypeTXT, dns.TypeMX} {
			require.Len(t, g.ask("udp", "good.example.", kind).Answer, 1)
		}
	}
	for _, q := range w.questions() {
		require.Contains(t, []uint16{dns.TypeTXT, dns.TypeMX}, q.Qtype, "the rest was not even asked")
	}
}

func TestDNSAnswersAreHeldAgainstTheFloor(t *testing.T) {
	w := newWorld(t)
	w.record("loop.example. 60 IN A 127.0.0.1", "meta.example. 60 IN A 169.254.169.254", "priv.example. 60 IN A 10.1.2.3",
		"node.example. 60 IN A 198.51.100.1", "mixed.example. 60 IN A 127.0.0.1", "mixed.example. 60 IN A 203.0.113.1",
		"chain.example. 60 IN CNAME loop.example.")
	n := w.node()
	domains := []string{"loop.example", "meta.example", "priv.example", "node.example", "mixed.example", "chain.example"}
	for _, p := range []policy.Policy{policy.AllowAll(), custom(domains...)} {
		g := n.guest(p)
		for name, rule := range map[string]string{
			"loop.example.": "floor loopback", "meta.example.": "floor link-local", "priv.example.": policy.RulePrivate,
			"node.example.": "floor node", "chain.example.": "floor loopback",
		} {
			m := g.ask("udp", name, dns.TypeA)
			require.Equal(t, dns.RcodeNameError, m.Rcode)
			require.Empty(t, m.Answer)
			_, text := extended(m)
			require.Contains(t, text, rule)
		}
		require.Equal(t, []string{"203.0.113.1"}, addresses(g.ask("udp", "mixed.example.", dns.TypeA)))
	}
	p := custom(domains...)
	p.AllowCIDRs = []string{"10.1.0.0/16"}
	require.Equal(t, []string{"10.1.2.3"}, addresses(n.guest(p).ask("udp", "priv.example.", dns.TypeA)))
}

// Nothing of a guest's message but the name and the type leaves: no options, no more sections, no flags.
func TestDNSMessagesAreMadeAnew(t *testing.T) {
	w := newWorld(t)
	w.record("good.example. 60 IN A 203.0.113.10")
	g := w.node().guest(custom("good.example"))
	m := new(dns.Msg)
	m.SetQuestion("gOOd.example.", dns.TypeA)
	m.CheckingDisabled = true
	rr, err := dns.NewRR(`smuggled.example. 60 IN TXT "data"`)
	require.NoError(t, err)
	m.Extra = append(m.Extra, rr)
	m.SetEdns0(4096, true)
	m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_LOCAL{Code: dns.EDNS0LOCALSTART, Data: []byte("out")},
		&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"})
	answer := g.exchange("udp", m)
	require.Equal(t, []string{"203.0.113.10"}, addresses(answer))
	require.Empty(t, answer.IsEdns0().Option)
	require.Equal(t, []dns.Question{{Name: "good.example.", Qtype: dns.TypeA, Qclass: dns.ClassINET}}, w.questions())

	for name, change := range map[string]func(*dns.Msg){
		"class":     func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS },
		"two":       func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) },
		"none":      func(m *dns.Msg) { m.Question = nil },
		"operation": func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify },
	} {
		m := new(dns.Msg)
		m.SetQuestion("good.example.", dns.TypeA)
		change(m)
		require.NotEqual(t, dns.RcodeSuccess, g.exchange("tcp", m).Rcode, name)
	}
	require.Len(t, w.questions(), 1)
}

func TestDNSKeepsAnswersForTheirTime(t *testing.T) {
	w := newWorld(t)
	w.record("kept.example. 60 IN A 203.0.113.10", "never.example. 0 IN A 203.0.113.11")
	n := w.node()
	g := n.guest(policy.AllowAll())
	count := func(name string) (n int) {
		for _, q := range w.questions() {
			if q.Name == name {
				n++
			}
		}
		return n
	}
	for range 3 {
		require.Len(t, g.ask("udp", "kept.example.", dns.TypeA).Answer, 1)
		require.Len(t, g.ask("udp", "never.example.", dns.TypeA).Answer, 1)
		require.Equal(t, dns.RcodeNameError, g.ask("udp", "nothing.example.", dns.TypeA).Rcode)
	}
	require.Equal(t, []int{1, 3, 1}, []int{count("kept.example."), count("never.example."), count("nothing.example.")})
	n.guest(policy.AllowAll()).ask("udp", "kept.example.", dns.TypeA)
	require.Equal(t, 2, count("kept.example."), "another sandbox cannot tell what this one asked")
}

func TestDNSLargeAnswers(t *testing.T) {
	w := newWorld(t)
	for i := range 100 {
		w.record(fmt.Sprintf("many.example. 60 IN TXT %q", strings.Repeat("x", 100)+fmt.Sprint(i)))
	}
	g := w.node().guest(custom("many.example"))
	m := new(dns.Msg)
	m.SetQuestion("many.example.", dns.TypeTXT)
	short := g.exchange("udp", m)
	require.True(t, short.Truncated)
	short.Compress = true
	require.LessOrEqual(t, short.Len(), 512)
	require.Len(t, g.exchange("tcp", m).Answer, 100)
}

func TestDNSResolverThatFails(t *testing.T) {
	w := newWorld(t)
	g := w.node().guest(custom("broken.example"))
	m := g.ask("udp", "broken.example.", dns.TypeA)
	require.Equal(t, dns.RcodeServerFailure, m.Rcode)
	_, text := extended(m)
	require.Contains(t, text, "resolvers")
}

// A tunnel through DNS is as wide as the bound on queries, whatever it asks.
func TestDNSRateIsBounded(t *testing.T) {
	w := newWorld(t)
	w.record("good.example. 0 IN A 203.0.113.10")
	n := w.node(func(c *gate.Config) { c.Limits.DNSRate = 1 })
	g, neighbour := n.guest(custom("*.tunnel.example")), n.guest(custom("good.example"))
	refused := 0
	for i := range 50 {
		m := g.ask("udp", fmt.Sprintf("%040d.tunnel.example.", i), dns.TypeTXT)
		if m.Rcode == dns.RcodeRefused {
			refused++
			_, text := extended(m)
			require.Equal(t, "too many queries", text)
		}
	}
	require.Len(t, w.questions(), 50-refused)
	require.Greater(t, refused, 0)
	require.Len(t, neighbour.ask("udp", "good.example.", dns.TypeA).Answer, 1)
}

// Connections to the DNS server that say nothing take no more than their places, and UDP goes on.
func TestDNSIdleConnections(t *testing.T) {
	w := newWorld(t)
	w.record("good.example. 60 IN A 203.0.113.10")
	g := w.node(func(c *gate.Config) { c.Limits.DNSConnections = 4 }).guest(custom("good.example"))
	closed := make(chan struct{}, 100)
	var wg sync.WaitGroup
	for range 50 {
		conn, err := net.Dial("tcp4", g.dnsTCP)
		if err != nil { // refused so fast that the call shows it
			closed <- struct{}{}
			continue
		}
		defer conn.Close()
		wg.Go(func() {
			_, _ = io.ReadAll(conn)
			closed <- struct{}{}
		})
	}
	for range 46 {
		<-closed
	}
	require.Len(t, g.ask("udp", "good.example.", dns.TypeA).Answer, 1)
	wg.Wait() // the rest, when their time to say something is over
	require.Len(t, g.ask("tcp", "good.example.", dns.TypeA).Answer, 1)
}

package gate_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"stillframe/netpolicy/gate"
	"stillframe/netpolicy/policy"
)

// world is everything beyond a node: servers at public addresses, a resolver, a CA that the gate's roots hold. It is
// all on loopback; what makes addresses public is that the gate's Dial finds them here, and only here: an address that
// was dialled and is not the test's own is noted as well.
type world struct {
	t    testing.TB
	ca   *x509.Certificate
	key  *ecdsa.PrivateKey
	logs *syncBuffer

	mu      sync.Mutex
	servers map[netip.AddrPort]string // to its loopback address
	dialled []netip.AddrPort
	zone    map[string][]dns.RR // by "name TYPE"
	asked   []dns.Question
	dns     netip.AddrPort
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, servers: map[netip.AddrPort]string{}, zone: map[string][]dns.RR{}, logs: &syncBuffer{}}
	w.key, w.ca = authority(t)
	w.resolver()
	return w
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func authority(t testing.TB) (*ecdsa.PrivateKey, *x509.Certificate) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test roots"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return key, cert
}

// certificate is one that the world's CA gave for names.
func (w *world) certificate(names ...string) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(w.t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), DNSNames: names}
	der, err := x509.CreateCertificate(rand.Reader, template, w.ca, key.Public(), w.key)
	require.NoError(w.t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (w *world) roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(w.ca)
	return pool
}

// listen puts a server at a public address.
func (w *world) listen(at string) net.Listener {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(w.t, err)
	w.t.Cleanup(func() { _ = l.Close() })
	w.mu.Lock()
	defer w.mu.Unlock()
	w.servers[netip.MustParseAddrPort(at)] = l.Addr().String()
	return l
}

// serve has fn serve every connection to a public address.
func (w *world) serve(at string, fn func(net.Conn)) {
	l := w.listen(at)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				fn(conn)
			}()
		}
	}()
}

// echo serves an echo.
func (w *world) echo(at string) { w.serve(at, func(c net.Conn) { _, _ = io.Copy(c, c) }) }

// web serves HTTP at a public address; over TLS with certificates for names where there are any. HTTP/2 too.
func (w *world) web(at string, h http.Handler, names ...string) *http.Server {
	srv := &http.Server{Handler: h, ErrorLog: log.New(io.Discard, "", 0)}
	l := w.listen(at)
	if len(names) > 0 {
		srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{w.certificate(names...)}, NextProtos: []string{"h2",
			"http/1.1"}}
		go func() { _ = srv.ServeTLS(l, "", "") }()
	} else {
		go func() { _ = srv.Serve(l) }()
	}
	w.t.Cleanup(func() { _ = srv.Close() })
	return srv
}

func (w *world) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	w.mu.Lock()
	w.dialled = append(w.dialled, to)
	at, ok := w.servers[to]
	w.mu.Unlock()
	if !ok {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	}
	return (&net.Dialer{}).DialContext(ctx, "tcp4", at)
}

func (w *world) dials() []netip.AddrPort {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]netip.AddrPort(nil), w.dialled...)
}

// record puts lines of a zone file into the zone.
func (w *world) record(lines ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, line := range lines {
		rr, err := dns.NewRR(line)
		require.NoError(w.t, err)
		k := strings.ToLower(rr.Header().Name) + " " + dns.TypeToString[rr.Header().Rrtype]
		w.zone[k] = append(w.zone[k], rr)
	}
}

func (w *world) forgetRecord(key string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.zone, key)
}

func (w *world) questions() []dns.Question {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]dns.Question(nil), w.asked...)
}

// listenBoth finds a port that is free for UDP and TCP alike: one that is free for UDP may be another's for TCP.
func listenBoth(t testing.TB) (udp net.PacketConn, tcp net.Listener) {
	t.Helper()
	for range 20 {
		udp, err := net.ListenPacket("udp4", "127.0.0.1:0")
		require.NoError(t, err)
		if tcp, err := net.Listen("tcp4", udp.LocalAddr().String()); err == nil {
			return udp, tcp
		}
		require.NoError(t, udp.Close())
	}
	t.Fatal("no port is free for UDP and TCP alike")
	return nil, nil
}

// resolver is the node's upstream.
func (w *world) resolver() {
	udp, tcp := listenBoth(w.t)
	w.dns = netip.MustParseAddrPort(udp.LocalAddr().String())
	handler := dns.HandlerFunc(func(rw dns.ResponseWriter, m *dns.Msg) {
		out := w.lookup(m)
		if _, isUDP := rw.RemoteAddr().(*net.UDPAddr); isUDP {
			size := 512
			if opt := m.IsEdns0(); opt != nil {
				size = int(opt.UDPSize())
			}
			out.Truncate(size)
		}
		_ = rw.WriteMsg(out)
	})
	for _, s := range []*dns.Server{{PacketConn: udp, Handler: handler}, {Listener: tcp, Handler: handler}} {
		go func() { _ = s.ActivateAndServe() }()
		w.t.Cleanup(func() { _ = s.Shutdown() })
	}
}

func (w *world) lookup(m *dns.Msg) *dns.Msg {
	out := new(dns.Msg)
	out.SetReply(m)
	out.RecursionAvailable = true
	w.mu.Lock()
	defer w.mu.Unlock()
	q := m.Question[0]
	w.asked = append(w.asked, q)
	at := strings.ToLower(q.Name)
	if at == "broken.example." {
		out.Rcode = dns.RcodeServerFailure
		return out
	}
	for range 20 {
		if rrs := w.zone[at+" "+dns.TypeToString[q.Qtype]]; len(rrs) > 0 {
			out.Answer = append(out.Answer, rrs...)
			return out
		}
		alias := w.zone[at+" CNAME"]
		if len(alias) == 0 {
			break
		}
		out.Answer = append(out.Answer, alias...)
		at = strings.ToLower(alias[0].(*dns.CNAME).Target)
	}
	known := false
	for k := range w.zone {
		known = known || strings.HasPrefix(k, at+" ")
	}
	if !known {
		out.Rcode = dns.RcodeNameError
	}
	soa, _ := dns.NewRR("example. 60 IN SOA ns.example. root.example. 1 2 3 4 60")
	out.Ns = append(out.Ns, soa)
	return out
}

// node is a gate in the world.
type node struct {
	*world
	gate    *gate.Gate
	metrics *prometheus.Registry
}

func (w *world) node(change ...func(*gate.Config)) *node {
	n := &node{world: w, metrics: prometheus.NewRegistry()}
	cfg := gate.Config{
		Floor: policy.NewFloor([]netip.Prefix{netip.MustParsePrefix("198.51.100.1/32")},
			[]netip.Prefix{netip.MustParsePrefix("198.51.100.2/32")}, nil),
		Resolvers: []netip.AddrPort{w.dns}, Dial: w.dial, Roots: w.roots(), Metrics: n.metrics,
		Logger: slog.New(slog.NewTextHandler(w.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, f := range change {
		f(&cfg)
	}
	g, err := gate.New(cfg)
	require.NoError(w.t, err)
	n.gate = g
	w.t.Cleanup(func() { require.NoError(w.t, g.Close()) })
	return n
}

// guest is a sandbox of a node, seen from inside.
type guest struct {
	*node
	*gate.Session
	tcp, dnsUDP, dnsTCP string
	ca                  *gate.CA
	chosen              sync.Map      // local address to original destination
	programs            atomic.Uint32 // where connections go that the test did not make itself: a port; 0 for nowhere
}

func (n *node) guest(p policy.Policy) *guest {
	t := n.t
	t.Helper()
	g := &guest{node: n}
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	udp, err := net.ListenPacket("udp4", "127.0.0.1:0")
	require.NoError(t, err)
	dnsTCP, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	g.tcp, g.dnsUDP, g.dnsTCP = tcp.Addr().String(), udp.LocalAddr().String(), dnsTCP.Addr().String()
	g.ca, err = gate.CAFromSeed(gate.NewCAKey())
	require.NoError(t, err)
	g.Session, err = n.gate.Open(gate.Sandbox{ID: "sbx-1", TCP: tcp, UDP: udp, DNSTCP: dnsTCP, OriginalDst: g.original,
		CA: g.ca, Plan: plan(t, p)})
	require.NoError(t, err)
	return g
}

func plan(t testing.TB, p policy.Policy) *policy.Plan {
	t.Helper()
	out, err := policy.Compile(p)
	require.NoError(t, err)
	return out
}

func (g *guest) replace(p policy.Policy) int {
	g.t.Helper()
	require.NoError(g.t, g.Replace(plan(g.t, p)))
	return g.Cut()
}

func (g *guest) original(conn net.Conn) (netip.AddrPort, error) {
	for i := range 5000 {
		if port := g.programs.Load(); port != 0 && i == 20 {
			return netip.AddrPortFrom(netip.MustParseAddr("203.0.113.66"), uint16(port)), nil
		}
		if to, ok := g.chosen.Load(conn.RemoteAddr().String()); ok {
			return to.(netip.AddrPort), nil
		}
		time.Sleep(time.Millisecond)
	}
	return netip.AddrPort{}, errors.New("not one of the test's connections")
}

// dialTo connects as a guest does to an address of its choice.
func (g *guest) dialTo(to string) net.Conn {
	g.t.Helper()
	conn, err := g.tryTo(to)
	require.NoError(g.t, err)
	return conn
}

func (g *guest) tryTo(to string) (net.Conn, error) {
	conn, err := net.Dial("tcp4", g.tcp)
	if err != nil {
		return nil, err
	}
	g.t.Cleanup(func() { _ = conn.Close() })
	g.chosen.Store(conn.LocalAddr().String(), netip.MustParseAddrPort(to))
	return conn, conn.SetDeadline(time.Now().Add(30 * time.Second))
}

// trust is what a guest trusts: its CA and the world's.
func (g *guest) trust() *x509.CertPool {
	pool := g.roots()
	pool.AppendCertsFromPEM(g.ca.CertPEM())
	return pool
}

// client is an HTTP client in the guest that connects everything to one address, whatever the name.
func (g *guest) client(to string, h2 bool) *http.Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!h2)
	protocols.SetHTTP2(h2)
	tr := &http.Transport{
		DialContext:     func(context.Context, string, string) (net.Conn, error) { return g.dialTo(to), nil },
		TLSClientConfig: &tls.Config{RootCAs: g.trust()}, Protocols: protocols,
	}
	g.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request,
		[]*http.Request) error {
		return http.ErrUseLastResponse
	}}
}

func body(t testing.TB, res *http.Response, err error) string {
	t.Helper()
	require.NoError(t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return string(b)
}

// tls connects and shakes hands.
func (g *guest) tls(to, name string, protos ...string) (*tls.Conn, error) {
	conn := tls.Client(g.dialTo(to), &tls.Config{RootCAs: g.trust(), ServerName: name, NextProtos: protos})
	return conn, conn.Handshake()
}

// denied finds the last decision and requires that it denies.
func (g *guest) denied(rule string) gate.Decision {
	g.t.Helper()
	var d gate.Decision
	require.Eventually(g.t, func() bool {
		last := g.Log(1)
		if len(last) == 0 {
			return false
		}
		d = last[0]
		return d.Verdict == gate.Denied
	}, 10*time.Second, time.Millisecond)
	require.Equal(g.t, rule, d.Rule)
	return d
}

func custom(domains ...string) policy.Policy {
	return policy.Policy{Mode: policy.ModeCustom, AllowDomains: domains}
}

func transform(domain string, inject map[string]string, strip ...string) policy.Policy {
	return policy.Policy{Mode: policy.ModeCustom, Transforms: []policy.Transform{{Domain: domain, Inject: inject,
		Strip: strip}}}
}

func roundTrip(t testing.TB, conn net.Conn, msg string) {
	t.Helper()
	_, err := io.WriteString(conn, msg)
	require.NoError(t, err)
	got := make([]byte, len(msg))
	_, err = io.ReadFull(conn, got)
	require.NoError(t, err)
	require.Equal(t, msg, string(got))
}

func errorsAs(err error, target *net.Error) bool { return errors.As(err, target) }

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

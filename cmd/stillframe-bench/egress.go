package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/miekg/dns"

	"stillframe/netpolicy/gate"
	"stillframe/netpolicy/policy"
)

// egressInner has a process measure in its own network namespace and print the figures. The program calls itself so.
const egressInner = "STILLFRAME_BENCH_EGRESS"

const (
	connects    = 1000    // of each kind
	queries     = 3000    // of each kind
	tunnelBytes = 2 << 30 // carried each time
	tlsBytes    = 512 << 20
	tunnelName  = "tunnel.bench.example"
	webName     = "web.bench.example"
)

// egress measures what stands between a sandbox and the network: through the gate against routed directly, over the
// same links, in turns. It runs in a network namespace that ends with it.
func (b *bench) egress(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), egressInner+"=1", "GODEBUG="+os.Getenv("GODEBUG"))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.Output()
	if err != nil {
		return err
	}
	var results []Result
	if err := json.Unmarshal(out, &results); err != nil {
		return err
	}
	for _, r := range results {
		b.add(r)
	}
	return nil
}

// lane is one way for a connection to take.
type lane struct {
	addr string // that the guest dials
	name string
}

type egressBench struct {
	guest, far *room
	cert       tls.Certificate
	roots      *x509.CertPool // the far side's
	trust      *tls.Config    // the guest's
	results    []Result
}

func runEgress(ctx context.Context, out io.Writer) error {
	guest, far, err := furnish(ctx)
	if err != nil {
		return err
	}
	e := &egressBench{guest: guest, far: far}
	if err := errors.Join(e.identity(), e.servers()); err != nil {
		return err
	}
	closeGate, err := e.openGate()
	if err != nil {
		return err
	}
	direct := lane{farDirect, tunnelName}
	err = errors.Join(
		e.connecting("egress tunnel, connect", direct, lane{farByName, tunnelName}, 1.3, 1.3),
		e.connecting("egress transform, request", direct, lane{farByName, webName}, 2, 0),
		e.carrying("egress tunnel, 2 GiB", 1/0.9, e.plain(farDirect), e.plain(farByCIDR)),
		e.carrying("egress transform, 512 MiB over TLS", 1/0.7, e.secure(direct), e.secure(lane{farByName, webName})),
		e.asking(),
		e.mitmproxy(ctx),
		closeGate(),
	)
	return errors.Join(err, json.NewEncoder(out).Encode(e.results))
}

func (e *egressBench) identity() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, DNSNames: []string{tunnelName, webName},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	e.cert = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	e.roots = x509.NewCertPool()
	e.roots.AddCert(cert)
	return nil
}

// servers starts the far side: TLS on 443 that answers a request with as many bytes as its path says, bytes on 9000,
// DNS on 53.
func (e *egressBench) servers() error {
	return e.far.do(func() error {
		secure, err := tls.Listen("tcp4", "0.0.0.0:443", &tls.Config{
			Certificates: []tls.Certificate{e.cert}, MinVersion: tls.VersionTLS12,
		})
		if err != nil {
			return err
		}
		plain, err := net.Listen("tcp4", "0.0.0.0:9000")
		if err != nil {
			return err
		}
		udp, err := net.ListenPacket("udp4", farDirect+":53")
		if err != nil {
			return err
		}
		go serveEach(secure, answerRequest)
		go serveEach(plain, func(c net.Conn) {
			if _, err := c.Read(make([]byte, 1)); err == nil {
				pour(c, tunnelBytes)
			}
		})
		go func() { _ = (&dns.Server{PacketConn: udp, Handler: dns.HandlerFunc(answerQuery)}).ActivateAndServe() }()
		return nil
	})
}

func serveEach(l net.Listener, fn func(net.Conn)) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			fn(conn)
			_ = conn.Close()
		}()
	}
}

var zeros [256 << 10]byte

func pour(w io.Writer, n int) {
	for n > 0 {
		m, err := w.Write(zeros[:min(n, len(zeros))])
		if err != nil {
			return
		}
		n -= m
	}
}

// answerRequest reads "GET /<bytes>" and answers so many.
func answerRequest(c net.Conn) {
	buf := make([]byte, 4<<10)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		var size int
		if _, err := fmt.Sscanf(string(buf[:n]), "GET /%d HTTP/1.1\r\n", &size); err != nil {
			return
		}
		if _, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", size); err != nil {
			return
		}
		pour(c, size)
	}
}

func answerQuery(w dns.ResponseWriter, m *dns.Msg) {
	out := new(dns.Msg)
	out.SetReply(m)
	out.Answer = []dns.RR{&dns.A{
		Hdr: dns.RR_Header{Name: m.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 300},
		A:   net.ParseIP(farByName),
	}}
	_ = w.WriteMsg(out)
}

func (e *egressBench) openGate() (func() error, error) {
	plan, err := policy.Compile(policy.Policy{
		Mode: policy.ModeCustom, AllowDomains: []string{tunnelName, "*.dns.bench.example"},
		AllowCIDRs: []string{farByCIDR + "/32"},
		Transforms: []policy.Transform{{Domain: webName, Inject: map[string]string{"X-Key": "value"}}},
	})
	if err != nil {
		return nil, err
	}
	ca, err := gate.CAFromSeed(gate.NewCAKey())
	if err != nil {
		return nil, err
	}
	trust := e.roots.Clone()
	trust.AppendCertsFromPEM(ca.CertPEM())
	e.trust = &tls.Config{RootCAs: trust, MinVersion: tls.VersionTLS12}
	g, err := gate.New(gate.Config{
		Resolvers: []netip.AddrPort{netip.MustParseAddrPort(farDirect + ":53")}, Roots: e.roots,
		// Far above what is measured: it is not the bounds that are.
		Limits: gate.Limits{ConnectionRate: 1 << 20, DNSRate: 1 << 20},
	})
	if err != nil {
		return nil, err
	}
	sb := gate.Sandbox{ID: "bench", OriginalDst: originalDst, CA: ca, Plan: plan}
	if sb.TCP, err = net.Listen("tcp4", gateTCP); err != nil {
		return nil, err
	}
	if sb.DNSTCP, err = net.Listen("tcp4", gateDNS); err != nil {
		return nil, err
	}
	if sb.UDP, err = net.ListenPacket("udp4", gateDNS); err != nil {
		return nil, err
	}
	_, err = g.Open(sb)
	return g.Close, err
}

// request connects from the guest, shakes hands, asks for some bytes and gives the time until the last of them.
func (e *egressBench) request(to lane, port string, size int64) (time.Duration, error) {
	conf := e.trust.Clone()
	conf.ServerName = to.name
	began := time.Now()
	raw, err := net.Dial("tcp4", net.JoinHostPort(to.addr, port))
	if err != nil {
		return 0, err
	}
	defer raw.Close() //nolint:errcheck // measured, and of no use any more
	conn := tls.Client(raw, conf)
	if _, err := fmt.Fprintf(conn, "GET /%d HTTP/1.1\r\nHost: %s\r\n\r\n", size, to.name); err != nil {
		return 0, err
	}
	buf := make([]byte, 256<<10)
	n, err := conn.Read(buf)
	if err != nil {
		return 0, err
	}
	if string(buf[:min(n, 12)]) != "HTTP/1.1 200" {
		return 0, fmt.Errorf("%s over %s: %.100q", to.name, to.addr, buf[:n])
	}
	for got := int64(n); got < size; got += int64(n) {
		if n, err = conn.Read(buf); err != nil {
			return 0, err
		}
	}
	return time.Since(began), nil
}

// connecting measures connections in turns: TLS, a request, its answer.
func (e *egressBench) connecting(what string, direct, through lane, aim50, aim99 float64) error {
	times := [2][]time.Duration{}
	err := e.guest.do(func() error {
		for i := range connects + 20 {
			for j, to := range []lane{direct, through} {
				took, err := e.request(to, "443", 1)
				if err != nil {
					return err
				}
				if i >= 20 { // the first ones fill caches
					times[j] = append(times[j], took)
				}
			}
		}
		return nil
	})
	e.compare(what, times[0], times[1], aim50, aim99)
	return err
}

// compare adds the 50th and 99th percentile of two series.
func (e *egressBench) compare(what string, direct, through []time.Duration, aim50, aim99 float64) {
	for _, p := range []struct {
		n   int
		aim float64
	}{{50, aim50}, {99, aim99}} {
		e.result(fmt.Sprintf("%s p%d", what, p.n), percentile(through, p.n), percentile(direct, p.n), p.aim, "µs",
			time.Microsecond)
	}
}

func percentile(d []time.Duration, p int) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[min(len(d)*p/100, len(d)-1)]
}

func (e *egressBench) result(what string, value, base time.Duration, aim float64, unit string, one time.Duration) {
	r := Result{Name: what, Value: float64(value) / float64(one), Baseline: float64(base) / float64(one), Aim: aim,
		Unit: unit}
	if r.Baseline != 0 {
		r.Ratio = r.Value / r.Baseline
	}
	r.Met = aim == 0 || r.Ratio <= aim
	e.results = append(e.results, r)
}

// plain carries bytes in clear from the far side to the guest.
func (e *egressBench) plain(addr string) func() (time.Duration, error) {
	return func() (time.Duration, error) {
		conn, err := net.Dial("tcp4", addr+":9000")
		if err != nil {
			return 0, err
		}
		defer conn.Close() //nolint:errcheck // measured, and of no use any more
		began := time.Now()
		if _, err := conn.Write([]byte{0}); err != nil {
			return 0, err
		}
		buf := make([]byte, 256<<10)
		for got := 0; got < tunnelBytes; {
			n, err := conn.Read(buf)
			if err != nil {
				return 0, err
			}
			got += n
		}
		return time.Since(began), nil
	}
}

func (e *egressBench) secure(to lane) func() (time.Duration, error) {
	return func() (time.Duration, error) { return e.request(to, "443", tlsBytes) }
}

// carrying measures the time for a number of bytes, in turns; the medians count. The ratio of times is that of
// throughputs the other way round.
func (e *egressBench) carrying(what string, aim float64, ways ...func() (time.Duration, error)) error {
	times := make([][]time.Duration, len(ways))
	err := e.guest.do(func() error {
		for range 5 {
			for i, way := range ways {
				took, err := way()
				if err != nil {
					return fmt.Errorf("%s: %w", what, err)
				}
				times[i] = append(times[i], took)
			}
		}
		return nil
	})
	e.result(what, percentile(times[1], 50), percentile(times[0], 50), aim, "ms", time.Millisecond)
	return err
}

// asking measures DNS: names that the gate has not seen, and one that it keeps, against the same resolver directly.
func (e *egressBench) asking() error {
	var direct, fresh, kept []time.Duration
	err := e.guest.do(func() error {
		client := &dns.Client{Timeout: 2 * time.Second}
		ask := func(server, name string) (time.Duration, error) {
			m := new(dns.Msg)
			m.SetQuestion(name, dns.TypeA)
			began := time.Now()
			answer, _, err := client.Exchange(m, server+":53")
			if err == nil && len(answer.Answer) != 1 {
				err = fmt.Errorf("%s is not answered", name)
			}
			return time.Since(began), err
		}
		for i := range queries {
			name := "n" + strconv.Itoa(i) + ".dns.bench.example."
			d, err1 := ask(farDirect, name)
			f, err2 := ask(farByName, name)
			k, err3 := ask(farByName, "kept.dns.bench.example.")
			if err := errors.Join(err1, err2, err3); err != nil {
				return err
			}
			direct, fresh, kept = append(direct, d), append(fresh, f), append(kept, k)
		}
		return nil
	})
	e.compare("egress DNS, forwarded", direct, fresh, 1.5, 1.5)
	e.compare("egress DNS, kept", direct, kept, 1.5, 1.5)
	return err
}

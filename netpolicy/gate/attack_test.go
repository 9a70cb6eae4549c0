package gate_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/netpolicy/gate"
	"stillframe/netpolicy/policy"
)

// capture gives the bytes that a TLS client begins with.
func capture(t testing.TB, conf *tls.Config) []byte {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	go func() { _ = tls.Client(a, conf).Handshake() }()
	require.NoError(t, b.SetReadDeadline(time.Now().Add(10*time.Second)))
	head := make([]byte, 5)
	_, err := io.ReadFull(b, head)
	require.NoError(t, err)
	rest := make([]byte, binary.BigEndian.Uint16(head[3:]))
	_, err = io.ReadFull(b, rest)
	require.NoError(t, err)
	return slices.Concat(head, rest)
}

// records cuts a ClientHello into TLS records of n bytes.
func records(hello []byte, n int) []byte {
	var out []byte
	for body := hello[5:]; len(body) > 0; {
		m := min(n, len(body))
		out = append(out, 22, 3, 1, byte(m>>8), byte(m))
		out = append(out, body[:m]...)
		body = body[m:]
	}
	return out
}

// A name that is spread over many records and many packets is the same name: allowed or refused as it would be whole.
func TestSplitClientHello(t *testing.T) {
	w := newWorld(t)
	w.record("good.example. 60 IN A 203.0.113.10", "evil.example. 60 IN A 203.0.113.66")
	var got sync.Map
	w.serve("203.0.113.10:443", func(c net.Conn) {
		all, _ := io.ReadAll(c)
		got.Store(string(all), true)
	})
	g := w.node().guest(custom("good.example"))
	for _, size := range []int{1, 7, 100, 1 << 14} {
		for _, chunk := range []int{1, 3, 1 << 14} {
			for _, name := range []string{"good.example", "evil.example"} {
				sent := records(capture(t, &tls.Config{ServerName: name}), size)
				conn := g.dialTo("203.0.113.66:443")
				for b := sent; len(b) > 0; {
					n := min(chunk, len(b))
					_, err := conn.Write(b[:n])
					require.NoError(t, err)
					b = b[n:]
				}
				require.NoError(t, conn.(*net.TCPConn).CloseWrite())
				answer, err := io.ReadAll(conn)
				require.NoError(t, err)
				if name == "evil.example" {
					require.Equal(t, []byte{21, 3, 3, 0, 2, 2, 49}, answer)
					continue
				}
				require.Empty(t, answer)
				_, ok := got.Load(string(sent))
				require.True(t, ok, "passed on byte for byte")
			}
		}
	}
	for _, d := range w.dials() {
		require.Equal(t, "203.0.113.10:443", d.String())
	}
}

// hello makes a ClientHello with the given names in its server_name extension, as they are.
func rawHello(names ...string) []byte {
	var list []byte
	for _, n := range names {
		list = append(list, 0, byte(len(n)>>8), byte(len(n)))
		list = append(list, n...)
	}
	sni := append([]byte{byte(len(list) >> 8), byte(len(list))}, list...)
	ext := append([]byte{0, 0, byte(len(sni) >> 8), byte(len(sni))}, sni...)
	ext = append(ext, 0, 43, 0, 3, 2, 3, 4) // supported versions: 1.3
	body := append([]byte{3, 3}, make([]byte, 32)...)
	body = append(body, 0, 0, 2, 0x13, 0x01, 1, 0, byte(len(ext)>>8), byte(len(ext)))
	body = append(body, ext...)
	msg := append([]byte{1, 0, byte(len(body) >> 8), byte(len(body))}, body...)
	return append([]byte{22, 3, 1, byte(len(msg) >> 8), byte(len(msg))}, msg...)
}

// Names that are none, in whatever way they are said, reach nothing: not the name that they look like either.
func TestForgedNames(t *testing.T) {
	w := newWorld(t)
	w.record("good.example. 60 IN A 203.0.113.10")
	w.echo("203.0.113.10:443")
	w.echo("203.0.113.10:80")
	g := w.node().guest(custom("good.example", "*.good.example"))
	refused := func(conn net.Conn, hello []byte, what string) {
		_, err := conn.Write(hello)
		require.NoError(t, err)
		answer := make([]byte, 7)
		_, err = io.ReadFull(conn, answer)
		require.NoError(t, err, what)
		require.Equal(t, byte(21), answer[0], what)
	}
	refused(g.dialTo("203.0.113.10:443"), rawHello(), "no name")
	refused(g.dialTo("203.0.113.10:443"), rawHello("good.example", "evil.example"), "two names")
	refused(g.dialTo("203.0.113.10:443"), rawHello("good.example", "good.example"), "one name twice")
	for _, name := range []string{
		"", "good.example\x00", "good.example\x00.evil.test", "evil.test\x00.good.example", "good.example.", "good.example..",
		".good.example", "good.example\n", "good.example ", " good.example", "good.example:443", "203.0.113.10",
		"1.2.3.4.good.example.1",
		"xn--a.evil.test", "gооd.example" /* Cyrillic */, "*.good.example", "a_b.good.example", "good.example/",
		"good%2eexample",
		strings.Repeat("a", 64) + ".good.example", strings.Repeat("a.", 125) + "good.example", "0x7f.1", "2130706433",
		"[::1]",
	} {
		refused(g.dialTo("203.0.113.10:443"), rawHello(name), name)
	}
	for _, host := range []string{
		"good.example\x00", "evil.test", "good.example.evil.test", "good.example@evil.test", "203.0.113.10", "good.example:0",
		"good.example:99999", "good.example:80:80", "[::1]", "", "good.example, evil.test", "good.example\tevil",
		"gооd.example", "localhost", "good.example..",
	} {
		conn := g.dialTo("203.0.113.10:80")
		_, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
		require.NoError(t, err)
		answer, err := io.ReadAll(conn)
		require.NoError(t, err)
		require.Regexp(t, `^HTTP/1\.1 40[03] `, string(answer), "%q", host)
	}
	require.Empty(t, w.dials())
	require.Empty(t, w.questions())
	// The good one, said so, does.
	roundTrip(t, g.dialTo("203.0.113.66:443"), string(rawHello("GOOD.Example")))
}

// Requests in clear that two readers could take apart in two ways are refused on the way to an allowed name as well.
func TestAmbiguousRequestsInClear(t *testing.T) {
	w := newWorld(t)
	w.record("good.example. 60 IN A 203.0.113.10")
	w.echo("203.0.113.10:80")
	g := w.node().guest(custom("good.example"))
	for _, request := range []string{
		"GET / HTTP/1.1\r\nHost: good.example\r\nHost: evil.test\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: evil.test\r\nHost: good.example\r\n\r\n",
		"GET http://evil.test/ HTTP/1.1\r\nHost: good.example\r\n\r\n",
		"GET / HTTP/1.1\nHost: good.example\n\n",
		"GET / HTTP/1.1\r\nHost: good.example\r\n folded\r\n\r\n",
		"GET / HTTP/1.1\r\nX: \r\n\tHost: good.example\r\n\r\n",
		"GET / HTTP/1.1\r\nHost : good.example\r\n\r\n",
		"GET / HTTP/1.1\r\nX: y\rHost: good.example\r\n\r\n",
		"GET / HTTP/1.1\r\n\r\nHost: good.example\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: good.example\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: good.example\r\nX: " + strings.Repeat("x", 64<<10),
	} {
		conn := g.dialTo("203.0.113.10:80")
		_, err := io.WriteString(conn, request)
		require.NoError(t, err)
		answer, err := io.ReadAll(conn)
		require.NoError(t, err)
		require.True(t, bytes.HasPrefix(answer, []byte("HTTP/1.1 400 ")), "%.100q -> %.100q", request, answer)
	}
	require.Empty(t, w.dials())
	roundTrip(t, g.dialTo("203.0.113.66:80"), "GET http://GOOD.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n")
	roundTrip(t, g.dialTo("203.0.113.66:80"), "GET / HTTP/1.0\r\nHost: good.example:80\r\n\r\n")
}

// A name that is hidden (ECH) is the outer one to us, as it is to everybody; a made-up key does not hide anything else.
func TestOuterNameOfECHDecides(t *testing.T) {
	w := newWorld(t)
	w.record("outer.example. 60 IN A 203.0.113.10")
	g := w.node().guest(custom("inner.example"))
	conf := echConfig("outer.example")
	conn := g.dialTo("203.0.113.10:443")
	err := tls.Client(conn, &tls.Config{ServerName: "inner.example", EncryptedClientHelloConfigList: conf,
		MinVersion: tls.VersionTLS13}).Handshake()
	require.ErrorContains(t, err, "access denied")
	require.Equal(t, "outer.example", g.denied(policy.RuleNone).Name)
	require.Empty(t, w.dials())
}

// echConfig is a list of one configuration with a public name, and a key that nobody has.
func echConfig(public string) []byte {
	key := bytes.Repeat([]byte{9}, 32)
	var c []byte
	c = append(c, 7, 0, 0x20, 0, 32) // id, DHKEM(X25519), key
	c = append(c, key...)
	c = append(c, 0, 4, 0, 1, 0, 1) // HKDF-SHA256, AES-128-GCM
	c = append(c, 32, byte(len(public)))
	c = append(c, public...)
	c = append(c, 0, 0)
	c = append([]byte{0xfe, 0x0d, byte(len(c) >> 8), byte(len(c))}, c...)
	return append([]byte{byte(len(c) >> 8), byte(len(c))}, c...)
}

// A ClientHello that never ends is not kept beyond 64 KiB, nor waited for.
func TestEndlessHello(t *testing.T) {
	g := newWorld(t).node().guest(custom("good.example"))
	conn := g.dialTo("203.0.113.10:443")
	// A handshake message of 16 MiB, in records.
	first := []byte{22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff}
	_, _ = conn.Write(append(first, make([]byte, 0x4000-4)...))
	record := append([]byte{22, 3, 1, 0x40, 0}, make([]byte, 0x4000)...)
	for range 16 {
		if _, err := conn.Write(record); err != nil {
			break
		}
	}
	_, err := io.ReadAll(conn)
	require.False(t, errors.Is(err, os.ErrDeadlineExceeded))
	g.denied(policy.RuleNone)
}

// A thousand connections that say nothing, or one byte, fill the places of their own sandbox only.
func TestIdleConnectionsByTheThousand(t *testing.T) {
	w := newWorld(t)
	w.record("good.example. 60 IN A 203.0.113.10")
	w.web("203.0.113.10:443", hello, "good.example")
	n := w.node(func(c *gate.Config) { c.Limits.ConnectionRate = 1 << 20 })
	hostile, neighbour := n.guest(custom("good.example")), n.guest(custom("good.example"))
	var ended sync.WaitGroup
	idle := make([]net.Conn, 0, 1500)
	for i := range 1500 {
		conn, err := hostile.tryTo("203.0.113.10:443")
		if err != nil { // refused so fast that the call shows it
			continue
		}
		_, _ = conn.Write([]byte{22}[:i%2])
		idle = append(idle, conn)
		ended.Go(func() { _, _ = io.ReadAll(conn) })
	}
	for range 20 {
		res, err := neighbour.client("203.0.113.10:443", true).Get("https://good.example/")
		require.Equal(t, "hello good.example", body(t, res, err))
	}
	limited := 0.0
	families, err := n.metrics.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() == "stillframe_egress_limited_total" {
			limited = f.Metric[0].GetCounter().GetValue()
		}
	}
	require.GreaterOrEqual(t, limited, 1500.0-1024)
	ended.Wait() // each was ended by the gate, within its time
	for _, conn := range idle {
		require.NoError(t, conn.Close())
	}
	res, err := hostile.client("203.0.113.10:443", true).Get("https://good.example/")
	require.Equal(t, "hello good.example", body(t, res, err), "its places are free again")
}

func TestConnectionRateIsBounded(t *testing.T) {
	w := newWorld(t)
	w.echo("203.0.113.7:7")
	n := w.node(func(c *gate.Config) { c.Limits.ConnectionRate = 1 })
	g, neighbour := n.guest(policy.AllowAll()), n.guest(policy.AllowAll())
	refused := 0
	for range 20 {
		conn, err := g.tryTo("203.0.113.7:7")
		if err == nil {
			_, _ = conn.Write([]byte{0})
			_, err = io.ReadFull(conn, make([]byte, 1))
		}
		if err != nil {
			require.ErrorIs(t, err, syscall.ECONNRESET)
			refused++
		}
	}
	require.Greater(t, refused, 0)
	require.Len(t, w.dials(), 20-refused)
	roundTrip(t, neighbour.dialTo("203.0.113.7:7"), "hello")
}

// The gate's own address, dialled from inside, is no destination.
func TestOwnAddress(t *testing.T) {
	w := newWorld(t)
	g := w.node().guest(policy.AllowAll())
	conn := g.dialTo(g.tcp)
	_, _ = conn.Write([]byte{0})
	_, err := conn.Read(make([]byte, 1))
	require.Error(t, err)
	require.Empty(t, w.dials())
	d := g.denied("floor node")
	require.Equal(t, "it is the gate's own address", d.Reason)
}

func TestClosedSessionServesNobody(t *testing.T) {
	w := newWorld(t)
	w.echo("203.0.113.7:7")
	n := w.node()
	g := n.guest(policy.AllowAll())
	conn := g.dialTo("203.0.113.7:7")
	roundTrip(t, conn, "\x00hello")
	require.NoError(t, g.Close())
	require.NoError(t, g.Close(), "a second time")
	_, err := conn.Read(make([]byte, 1))
	require.Error(t, err)
	_, err = net.Dial("tcp4", g.tcp)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	require.ErrorIs(t, g.Replace(nil), gate.ErrClosed)
	require.NoError(t, n.gate.Close())
	_, err = n.gate.Open(gate.Sandbox{})
	require.Error(t, err)
}

func TestLogIsBounded(t *testing.T) {
	w := newWorld(t)
	g := w.node(func(c *gate.Config) { c.Limits.LogSize = 10 }).guest(custom("a.example"))
	for range 30 {
		g.ask("udp", "evil.example.", 1)
	}
	g.ask("udp", "last.example.", 1)
	require.Len(t, g.Log(0), 10)
	require.Len(t, g.Log(3), 3)
	require.Equal(t, "last.example", g.Log(1)[0].Name)
	require.Equal(t, "evil.example", g.Log(0)[9].Name)
}

func TestCheckSaysWhatWouldHappen(t *testing.T) {
	w := newWorld(t)
	w.record("good.example. 60 IN A 203.0.113.10", "loop.example. 60 IN A 127.0.0.1", "api.example. 60 IN A 203.0.113.12")
	p := custom("good.example", "loop.example", "nx.example", "broken.example")
	p.AllowCIDRs = []string{"203.0.113.64/26"}
	p.Transforms = []policy.Transform{{Domain: "api.example"}}
	n := w.node()
	g, all, none := n.guest(p), n.guest(policy.AllowAll()), n.guest(policy.Policy{Mode: policy.ModeDenyAll})
	for _, c := range []struct {
		g             *guest
		host          string
		port          uint16
		verdict, rule string
	}{
		{g, "good.example", 443, gate.Allowed, "allow_domains good.example"},
		{g, "GOOD.example.", 22, gate.Allowed, "allow_domains good.example"},
		{g, "loop.example", 443, gate.Denied, "floor loopback"},
		{g, "api.example", 443, gate.Transformed, "transforms api.example"},
		{g, "api.example", 80, gate.Denied, "transforms api.example"},
		{g, "evil.example", 443, gate.Denied, policy.RuleNone},
		{g, "good.example\x00", 443, gate.Denied, policy.RuleNoName},
		{g, "nx.example", 443, gate.Allowed, "allow_domains nx.example"},
		{g, "203.0.113.70", 443, gate.Allowed, "allow_cidrs 203.0.113.64/26"},
		{g, "203.0.113.10", 443, gate.Denied, policy.RuleNone},
		{g, "127.0.0.1", 80, gate.Denied, policy.RuleNone},
		{all, "203.0.113.10", 443, gate.Allowed, policy.RuleAllowAll},
		{all, "good.example", 443, gate.Allowed, policy.RuleAllowAll},
		{all, "loop.example", 443, gate.Denied, "floor loopback"},
		{all, "169.254.169.254", 80, gate.Denied, "floor link-local and metadata"},
		{all, "10.0.0.1", 80, gate.Denied, policy.RulePrivate},
		{none, "good.example", 443, gate.Denied, policy.RuleDenyAll},
		{none, "203.0.113.10", 443, gate.Denied, policy.RuleDenyAll},
	} {
		d := c.g.Check(t.Context(), c.host, c.port)
		require.Equal(t, []string{c.verdict, c.rule}, []string{d.Verdict, d.Rule}, "%s:%d", c.host, c.port)
	}
	require.NotEmpty(t, g.Check(t.Context(), "nx.example", 443).Reason)
	require.Empty(t, g.Log(0), "asking leaves no trace")
	require.Empty(t, w.dials())
}

package gate_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/netpolicy/gate"
	"stillframe/netpolicy/policy"
)

var hello = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	_, _ = io.WriteString(w, "hello "+r.Host)
})

// An allowed name is resolved by the gate; the address that the guest chose is not looked at, nor dialled.
func TestAllowedNameGoesWhereItLeads(t *testing.T) {
	w := newWorld(t)
	w.record("good.example. 60 IN A 203.0.113.10")
	w.web("203.0.113.10:443", hello, "good.example")
	w.web("203.0.113.10:80", hello)
	w.web("203.0.113.66:443", hello, "good.example")
	g := w.node().guest(custom("good.example"))
	for _, h2 := range []bool{false, true} {
		res, err := g.client("203.0.113.66:443", h2).Get("https://good.example/")
		require.Equal(t, "hello good.example", body(t, res, err))
	}
	res, err := g.client("203.0.113.66:80", false).Get("http://good.example/")
	require.Equal(t, "hello good.example", body(t, res, err))
	for _, d := range w.dials() {
		require.Equal(t, "203.0.113.10", d.Addr().String())
	}
	last := g.Log(1)[0]
	require.Equal(t, gate.Allowed, last.Verdict)
	require.Equal(t, "good.example", last.Name)
	require.Equal(t, "203.0.113.10", last.Addr.String())
	require.Equal(t, "allow_domains good.example", last.Rule)
}

func TestRefusalsSayWhy(t *testing.T) {
	w := newWorld(t)
	w.record("good.example. 60 IN A 203.0.113.10", "evil.example. 60 IN A 203.0.113.66")
	w.web("203.0.113.66:443", hello, "evil.example")
	g := w.node().guest(custom("good.example"))

	res, err := g.client("203.0.113.66:80", false).Get("http://evil.example/secret-path")
	require.Contains(t, body(t, res, err), "stillframe: evil.example:80: no rule allows it")
	require.Equal(t, 403, res.StatusCode)
	require.Equal(t, policy.RuleNone, res.Header.Get("X-Stillframe-Policy"))
	g.denied(policy.RuleNone)

	_, err = g.tls("203.0.113.66:443", "evil.example")
	require.ErrorContains(t, err, "access denied")
	require.Equal(t, "evil.example", g.denied(policy.RuleNone).Name)

	_, err = g.tls("203.0.113.66:443", "203.0.113.66") // says no name
	require.ErrorContains(t, err, "unrecognized name")
	g.denied(policy.RuleNoName)

	conn := g.dialTo("203.0.113.66:22")
	_, err = io.WriteString(conn, "SSH-2.0-OpenSSH_9.2\r\n")
	require.NoError(t, err)
	_, err = conn.Read(make([]byte, 1))
	require.ErrorContains(t, err, "reset")
	require.Equal(t, "its protocol says no name", g.denied(policy.RuleNone).Reason)

	require.Empty(t, w.dials(), "not a packet for what is denied")
	require.Empty(t, w.questions())
	require.NotContains(t, w.logs.String(), "secret-path")
}

func TestDenyAll(t *testing.T) {
	w := newWorld(t)
	g := w.node().guest(policy.Policy{Mode: policy.ModeDenyAll})
	_, err := g.tls("203.0.113.10:443", "good.example")
	require.ErrorContains(t, err, "access denied")
	g.denied(policy.RuleDenyAll)
	res, err := g.client("203.0.113.10:80", false).Get("http://good.example/")
	require.Contains(t, body(t, res, err), "mode deny-all")
	require.Empty(t, w.dials())
}

// A server that speaks first is heard at once where the address is enough, names in the policy or not.
func TestServerSpeaksFirst(t *testing.T) {
	w := newWorld(t)
	w.serve("203.0.113.22:22", func(c net.Conn) {
		_, _ = io.WriteString(c, "SSH-2.0-server\r\n")
		line, _ := bufio.NewReader(c).ReadString('\n')
		_, _ = io.WriteString(c, "you said "+line)
	})
	n := w.node(func(c *gate.Config) { c.Limits.HelloTime = time.Hour })
	for name, p := range map[string]policy.Policy{
		"allow-all":  policy.AllowAll(),
		"cidr":       {Mode: policy.ModeCustom, AllowCIDRs: []string{"203.0.113.0/24"}},
		"cidr, name": {Mode: policy.ModeCustom, AllowCIDRs: []string{"203.0.113.0/24"}, AllowDomains: []string{"a.example"}},
		"transform":  {Mode: policy.ModeAllowAll, Transforms: []policy.Transform{{Domain: "a.example"}}},
	} {
		t.Run(name, func(t *testing.T) {
			g := n.guest(p)
			conn := g.dialTo("203.0.113.22:22")
			in := bufio.NewReader(conn)
			line, err := in.ReadString('\n')
			require.NoError(t, err)
			require.Equal(t, "SSH-2.0-server\r\n", line)
			_, err = io.WriteString(conn, "hello\n")
			require.NoError(t, err)
			line, err = in.ReadString('\n')
			require.NoError(t, err)
			require.Equal(t, "you said hello\n", line)
			require.Equal(t, gate.Allowed, g.Log(1)[0].Verdict)
			rest, err := io.ReadAll(in)
			require.NoError(t, err)
			require.Empty(t, rest)
		})
	}
}

func TestHalfClose(t *testing.T) {
	w := newWorld(t)
	w.serve("203.0.113.7:7", func(c net.Conn) {
		all, _ := io.ReadAll(c)
		_, _ = c.Write(append(all, " and the end"...))
	})
	g := w.node().guest(policy.AllowAll())
	conn := g.dialTo("203.0.113.7:7")
	_, err := io.WriteString(conn, "beginning")
	require.NoError(t, err)
	require.NoError(t, conn.(*net.TCPConn).CloseWrite())
	got, err := io.ReadAll(conn)
	require.NoError(t, err)
	require.Equal(t, "beginning and the end", string(got))
	require.Eventually(t, func() bool { return g.Log(1)[0].Up == 9 && g.Log(1)[0].Down == 21 }, 10*time.Second,
		time.Millisecond)
}

func TestFloorHoldsForAddressesAndNames(t *testing.T) {
	w := newWorld(t)
	for name, addr := range map[string]string{
		"loopback": "127.0.0.1", "metadata": "169.254.169.254", "node": "198.51.100.1", "peer": "198.51.100.2",
		"private": "10.1.2.3", "zero": "0.0.0.0",
	} {
		w.record(name + ".rebind.example. 0 IN A " + addr)
	}
	n := w.node()
	byName := n.guest(policy.Policy{Mode: policy.ModeCustom, AllowDomains: []string{"*.rebind.example"}})
	for name, rule := range map[string]string{
		"loopback": "floor loopback", "metadata": "floor link-local and metadata", "node": "floor node", "peer": "floor peer",
		"private": policy.RulePrivate, "zero": "floor unspecified",
	} {
		_, err := byName.tls("203.0.113.1:443", name+".rebind.example")
		require.ErrorContains(t, err, "access denied")
		byName.denied(rule)
		res, err := byName.client("203.0.113.1:80", false).Get("http://" + name + ".rebind.example/")
		require.Contains(t, body(t, res, err), rule)
		require.Equal(t, 403, res.StatusCode)
	}
	all := n.guest(policy.AllowAll())
	cidr := n.guest(policy.Policy{Mode: policy.ModeCustom, AllowCIDRs: []string{"0.0.0.0/0"}})
	for _, addr := range []string{"127.0.0.1", "169.254.169.254", "198.51.100.1", "198.51.100.2", "0.0.0.0"} {
		for _, g := range []*guest{all, cidr} {
			conn := g.dialTo(addr + ":7")
			_, _ = conn.Write([]byte{0})
			_, err := conn.Read(make([]byte, 1))
			require.Error(t, err)
		}
	}
	conn := all.dialTo("10.1.2.3:7")
	_, _ = conn.Write([]byte{0})
	_, err := conn.Read(make([]byte, 1))
	require.Error(t, err)
	require.Empty(t, w.dials())
}

// A name that changes its address after it was looked at goes nowhere it should not.
func TestRebindingBetweenQueries(t *testing.T) {
	w := newWorld(t)
	w.record("rebind.example. 0 IN A 203.0.113.10")
	w.web("203.0.113.10:80", hello)
	g := w.node().guest(custom("rebind.example"))
	res, err := g.client("203.0.113.10:80", false).Get("http://rebind.example/")
	require.Equal(t, "hello rebind.example", body(t, res, err))
	require.Equal(t, []netip.AddrPort{netip.MustParseAddrPort("203.0.113.10:80")}, w.dials())
	w.forgetRecord("rebind.example. A")
	w.record("rebind.example. 0 IN A 127.0.0.1")
	res, err = g.client("203.0.113.10:80", false).Get("http://rebind.example/")
	require.Contains(t, body(t, res, err), "floor loopback")
	require.Len(t, w.dials(), 1)
}

func TestUpstreamThatIsNotThere(t *testing.T) {
	w := newWorld(t)
	w.record("gone.example. 60 IN A 203.0.113.99")
	g := w.node().guest(custom("gone.example", "*.nx.example", "broken.example"))
	for name, why := range map[string]string{
		"gone.example": "refused the connection", "a.nx.example": "no address", "broken.example": "could not be resolved",
	} {
		res, err := g.client("203.0.113.1:80", false).Get("http://" + name + "/")
		require.Contains(t, body(t, res, err), why)
		require.Equal(t, 502, res.StatusCode)
		_, err = g.tls("203.0.113.1:443", name)
		require.ErrorContains(t, err, "internal error")
	}
}

func TestSecondAddressIsTried(t *testing.T) {
	w := newWorld(t)
	w.record("two.example. 60 IN A 127.0.0.1", "two.example. 60 IN A 203.0.113.1", "two.example. 60 IN A 203.0.113.2")
	w.web("203.0.113.2:80", hello)
	g := w.node().guest(custom("two.example"))
	res, err := g.client("203.0.113.9:80", false).Get("http://two.example/")
	require.Equal(t, "hello two.example", body(t, res, err))
}

func TestCutEndsWhatIsNoLongerAllowed(t *testing.T) {
	w := newWorld(t)
	w.record("a.example. 60 IN A 203.0.113.10", "b.example. 60 IN A 203.0.113.11")
	for _, at := range []string{"203.0.113.10:80", "203.0.113.11:80", "203.0.113.12:7", "203.0.113.13:7"} {
		w.echo(at)
	}
	p := policy.Policy{Mode: policy.ModeCustom, AllowDomains: []string{"a.example", "b.example"},
		AllowCIDRs: []string{"203.0.113.12/32", "203.0.113.13/32"}}
	g := w.node().guest(p)
	const head = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
	a, b := g.dialTo("203.0.113.9:80"), g.dialTo("203.0.113.9:80")
	c, d := g.dialTo("203.0.113.12:7"), g.dialTo("203.0.113.13:7")
	roundTrip(t, a, head)
	roundTrip(t, b, "GET / HTTP/1.1\r\nHost: b.example\r\n\r\n")
	roundTrip(t, c, "\x00c")
	roundTrip(t, d, "\x00d")
	p.AllowDomains, p.AllowCIDRs = []string{"b.example"}, []string{"203.0.113.13/32"}
	require.Equal(t, 2, g.replace(p))
	for _, gone := range []net.Conn{a, c} {
		_, err := gone.Read(make([]byte, 1))
		require.Error(t, err)
	}
	roundTrip(t, b, "still here")
	roundTrip(t, d, "still here")
	require.Zero(t, g.Cut(), "a second time")
	require.Equal(t, 2, g.replace(policy.Policy{Mode: policy.ModeDenyAll}))
	_, err := b.Read(make([]byte, 1))
	require.Error(t, err)
}

// Connections opened while policies change: none is alive that the last policy does not allow.
func TestCutRacesWithNewConnections(t *testing.T) {
	w := newWorld(t)
	w.record("a.example. 60 IN A 203.0.113.10")
	w.echo("203.0.113.10:80")
	g := w.node(func(c *gate.Config) { c.Limits.ConnectionRate = 1 << 20 }).guest(custom("a.example"))
	stop, done := make(chan struct{}), make(chan []net.Conn)
	go func() {
		var conns []net.Conn
		defer func() { done <- conns }()
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
			conn := g.dialTo("203.0.113.9:80")
			_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
			conns = append(conns, conn)
		}
	}()
	for range 20 {
		time.Sleep(5 * time.Millisecond)
		g.replace(policy.Policy{Mode: policy.ModeDenyAll})
		time.Sleep(5 * time.Millisecond)
		g.replace(custom("a.example"))
	}
	g.replace(policy.Policy{Mode: policy.ModeDenyAll})
	before := len(w.dials())
	close(stop)
	for _, conn := range <-done {
		_, err := io.ReadAll(conn) // ends: with the end, a refusal or a reset, not with the deadline
		var timeout net.Error
		require.False(t, err != nil && errorsAs(err, &timeout) && timeout.Timeout())
	}
	require.Len(t, w.dials(), before)
}

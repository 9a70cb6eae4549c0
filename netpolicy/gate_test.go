package netpolicy_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"

	"stillframe/netpolicy"
	"stillframe/netpolicy/farside"
	"stillframe/netpolicy/gate"
	"stillframe/netpolicy/policy"
)

// resolverAddr is the resolver of the world, which the node asks.
var resolverAddr = netip.MustParseAddrPort("192.0.2.2:53")

// names are what the resolver of the world knows.
var names = map[string]string{
	"good.test.": "203.0.113.5", "evil.test.": "198.51.100.5", "private.test.": "10.1.2.3",
	"node.test.": farside.HostAddr.String(), "peer.test.": "198.51.100.77", "loopback.test.": "127.0.0.1",
	"metadata.test.": "169.254.169.254", "pool.test.": "100.126.0.0", "inside.test.": netpolicy.HostIP,
}

// newRealRig is a rig with the node's own gate.
func newRealRig(t *testing.T, p policy.Policy) rig {
	t.Helper()
	g, err := gate.New(gate.Config{Floor: config().Floor, Resolvers: []netip.AddrPort{resolverAddr}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, g.Close()) })
	r := rig{m: newManager(t, func(c *netpolicy.Config) { c.Gate = netpolicy.Through(g) }), w: farside.New(t)}
	server := &dns.Server{PacketConn: r.w.ListenPacket(resolverAddr.String()), Handler: dns.HandlerFunc(
		func(w dns.ResponseWriter, q *dns.Msg) {
			a := new(dns.Msg)
			a.SetReply(q)
			if to, ok := names[q.Question[0].Name]; ok && q.Question[0].Qtype == dns.TypeA {
				rr, err := dns.NewRR(q.Question[0].Name + " 60 IN A " + to)
				if err == nil {
					a.Answer = append(a.Answer, rr)
				}
			}
			_ = w.WriteMsg(a)
		})}
	go func() { _ = server.ActivateAndServe() }()
	t.Cleanup(func() { _ = server.Shutdown() })
	r.n = networkOf(t, r.m, p)
	r.g = guestOf(t, r.n)
	return r
}

// serve has an HTTP server in the world say its name.
func serve(w *farside.World, addr string) {
	l := w.Listen(addr)
	go func() {
		_ = (&http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(rw, "this is "+addr)
		}), ReadHeaderTimeout: time.Minute}).Serve(l)
	}()
}

// get asks for a page of a host at an address, over a connection of its own.
func get(t *testing.T, g *farside.Guest, addr, host string) (status int, body string) {
	t.Helper()
	c, err := g.Dial("tcp4", addr)
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	_, err = io.WriteString(c, "GET / HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(b)
}

// lookUp asks a resolver, of which there is none but the gate.
func lookUp(t *testing.T, g *farside.Guest, network, resolver, name string) *dns.Msg {
	t.Helper()
	c, err := g.Dial(network, resolver)
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	q := new(dns.Msg)
	q.SetQuestion(name, dns.TypeA)
	conn := &dns.Conn{Conn: c}
	require.NoError(t, conn.WriteMsg(q))
	a, err := conn.ReadMsg()
	require.NoError(t, err)
	return a
}

// toWorld are the packets to an address.
func toWorld(w *farside.World, addr string) (out []farside.Packet) {
	for _, p := range w.Packets() {
		if p.Dst.Addr() == netip.MustParseAddr(addr) {
			out = append(out, p)
		}
	}
	return out
}

func TestNamesThroughTheKernelAndTheGate(t *testing.T) {
	r := newRealRig(t, policy.Policy{Mode: policy.ModeCustom, AllowDomains: []string{"good.test"},
		AllowCIDRs: []string{"203.0.114.0/24"}})
	serve(r.w, "203.0.113.5:80")
	serve(r.w, "198.51.100.5:80")

	for _, network := range []string{"udp4", "tcp4"} {
		for _, resolver := range []string{netpolicy.HostIP + ":53", "8.8.8.8:53", "198.51.100.5:53"} {
			a := lookUp(t, r.g, network, resolver, "good.test.")
			require.Len(t, a.Answer, 1, "%s %s", network, resolver)
			require.Contains(t, a.Answer[0].String(), "203.0.113.5")
			require.Equal(t, dns.RcodeNameError, lookUp(t, r.g, network, resolver, "evil.test.").Rcode)
		}
	}
	require.Empty(t, toWorld(r.w, "8.8.8.8"))

	status, body := get(t, r.g, "203.0.113.5:80", "good.test")
	require.Equal(t, 200, status)
	require.Equal(t, "this is 203.0.113.5:80", body)
	// The address that the guest chose is not asked.
	status, body = get(t, r.g, "198.51.100.5:80", "good.test")
	require.Equal(t, 200, status)
	require.Equal(t, "this is 203.0.113.5:80", body)
	for _, host := range []string{"evil.test", "198.51.100.5", "good.test.evil.test", "xgood.test", ""} {
		status, _ := get(t, r.g, "198.51.100.5:80", host)
		require.NotEqual(t, 200, status, host)
	}
	require.Empty(t, toWorld(r.w, "198.51.100.5"))
	log := r.n.Log(0)
	require.NotEmpty(t, log)
	check := r.n.Check(t.Context(), "evil.test", 443)
	require.Equal(t, gate.Denied, check.Verdict)
}

// A server that speaks first is reached by its range, and what is open is cut with its permission.
func TestOpenTunnelIsCut(t *testing.T) {
	r := newRealRig(t, cidrs("203.0.113.0/24", "203.0.114.0/24"))
	for _, addr := range []string{"203.0.113.9:22", "203.0.114.9:22"} {
		l := r.w.Listen(addr)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, "SSH-2.0-far\r\n")
				go func() {
					_, _ = io.Copy(c, c)
					_ = c.Close()
				}()
			}
		}()
	}
	open := map[string]net.Conn{}
	hear := func(c net.Conn, want string) {
		require.NoError(t, c.SetDeadline(time.Now().Add(20*time.Second)))
		b := make([]byte, len(want))
		_, err := io.ReadFull(c, b)
		require.NoError(t, err)
		require.Equal(t, want, string(b))
	}
	for _, addr := range []string{"203.0.113.9:22", "203.0.114.9:22"} {
		c, err := r.g.Dial("tcp4", addr)
		require.NoError(t, err)
		defer c.Close()
		hear(c, "SSH-2.0-far\r\n")
		open[addr] = c
	}
	require.NoError(t, r.n.Replace(t.Context(), cidrs("203.0.114.0/24"), nothing))
	r.w.Reset()
	_, err := io.ReadAll(open["203.0.113.9:22"])
	if err != nil {
		require.NotErrorIs(t, err, context.DeadlineExceeded)
		require.False(t, strings.Contains(err.Error(), "timeout"), err)
	}
	_, _ = io.WriteString(open["203.0.113.9:22"], "more")
	_, err = io.WriteString(open["203.0.114.9:22"], "still here")
	require.NoError(t, err)
	hear(open["203.0.114.9:22"], "still here")
	require.Empty(t, toWorld(r.w, "203.0.113.9"), "a packet of a connection that was cut")
}

// Names that lead to where no name leads, under every policy that allows the name.
func TestRebinding(t *testing.T) {
	listed := policy.Policy{Mode: policy.ModeCustom}
	for name := range names {
		listed.AllowDomains = append(listed.AllowDomains, strings.TrimSuffix(name, "."))
	}
	for mode, p := range map[string]policy.Policy{"listed": listed, "allow-all": allowAll} {
		t.Run(mode, func(t *testing.T) {
			r := newRealRig(t, p)
			serve(r.w, "203.0.113.5:80")
			l, err := net.Listen("tcp4", "0.0.0.0:80")
			require.NoError(t, err)
			defer l.Close()
			heard := make(chan net.Addr, 1)
			go func() {
				if c, err := l.Accept(); err == nil {
					heard <- c.RemoteAddr()
					_ = c.Close()
				}
			}()
			status, _ := get(t, r.g, "203.0.113.5:80", "good.test")
			require.Equal(t, 200, status)
			for name, addr := range names {
				if name == "good.test." || name == "evil.test." {
					continue
				}
				// Where every address is allowed, the guest may say any name to the one that it dialled.
				status, body := get(t, r.g, "203.0.113.5:80", strings.TrimSuffix(name, "."))
				require.True(t, status != 200 || mode == "allow-all" && body == "this is 203.0.113.5:80", name)
				require.Empty(t, toWorld(r.w, addr), name)
			}
			select {
			case from := <-heard:
				t.Fatal("the node was reached from ", from)
			default:
			}
		})
	}
}

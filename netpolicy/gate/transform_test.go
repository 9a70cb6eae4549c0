package gate_test

import (
	"bufio"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/netpolicy/gate"
	"stillframe/netpolicy/policy"
)

const secret = "s3cret-token-value"

// seen is an upstream that keeps the requests it got.
type seen struct {
	mu   sync.Mutex
	reqs []*http.Request
}

func (s *seen) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	s.mu.Lock()
	s.reqs = append(s.reqs, r)
	s.mu.Unlock()
	_, _ = fmt.Fprintf(w, "%s %s", r.Proto, r.Host)
}

func (s *seen) last() *http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.reqs) == 0 {
		return nil
	}
	return s.reqs[len(s.reqs)-1]
}

func (s *seen) count() int { return len(s.all()) }

func (s *seen) all() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.reqs)
}

// api is a world with api.example behind a transform.
func api(t testing.TB, h http.Handler, p policy.Policy) *guest {
	w := newWorld(t)
	w.record("api.example. 60 IN A 203.0.113.10")
	w.web("203.0.113.10:443", h, "api.example")
	return w.node().guest(p)
}

func (g *guest) noSecretIsTold() {
	g.t.Helper()
	told := g.logs.String() + fmt.Sprintf("%+v", g.Log(0))
	families, err := g.metrics.Gather()
	require.NoError(g.t, err)
	for _, f := range families {
		told += f.String()
	}
	require.NotContains(g.t, told, secret)
	require.NotContains(g.t, told, "private-path")
}

func TestTransform(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("h2 %v", h2), func(t *testing.T) {
			up := &seen{}
			g := api(t, up, transform("api.example", map[string]string{"Authorization": "Bearer " + secret, "X-Team": "t"},
				"Cookie", "X-Debug"))
			req, err := http.NewRequest("POST", "https://api.example/private-path?q=1;2&b=%zz", strings.NewReader("body"))
			require.NoError(t, err)
			req.Header = http.Header{
				"Authorization": {"guest's", "and another"}, "X_team": {"under"}, "X-Debug": {"1"}, "Cookie": {"a=b"},
				"X-Forwarded-For": {"10.9.9.9"}, "X-Kept": {"a", "b"}, "User-Agent": {"curl/8"},
			}
			res, err := g.client("203.0.113.66:443", h2).Do(req)
			got := body(t, res, err)
			r := up.last()
			require.Equal(t, r.Proto+" api.example", got)
			require.Equal(t, h2, r.ProtoMajor == 2, "upstream speaks what the guest speaks")
			require.Equal(t, "q=1;2&b=%zz", r.URL.RawQuery)
			require.Equal(t, "/private-path", r.URL.Path)
			r.Header.Del("Content-Length")
			r.Header.Del("Accept-Encoding") // the test's client adds it
			require.Equal(t, http.Header{
				"Authorization": {"Bearer " + secret}, "X-Team": {"t"}, "X-Forwarded-For": {"10.9.9.9"}, "X-Kept": {"a", "b"},
				"User-Agent": {"curl/8"},
			}, r.Header)
			require.Equal(t, "api.example", r.TLS.ServerName)
			d := g.Log(1)[0]
			require.Equal(t, []any{gate.Transformed, gate.KindHTTP, "api.example", "transforms api.example"},
				[]any{d.Verdict, d.Kind, d.Name, d.Rule})
			g.noSecretIsTold()
		})
	}
}

func TestPlainHTTPToATransformIsRefused(t *testing.T) {
	up := &seen{}
	p := transform("api.example", map[string]string{"X-Key": secret})
	for _, mode := range []string{policy.ModeCustom, policy.ModeAllowAll} {
		p.Mode = mode
		g := api(t, up, p)
		g.web("203.0.113.10:80", up)
		res, err := g.client("203.0.113.10:80", false).Get("http://api.example/")
		require.Contains(t, body(t, res, err), "HTTPS only")
		require.Equal(t, 403, res.StatusCode)
		require.Equal(t, "transforms api.example", res.Header.Get("X-Stillframe-Policy"))
		require.Zero(t, up.count())
	}
}

// raw sends bytes on a terminated connection and gives all that comes back.
func (g *guest) raw(name, request string) string {
	g.t.Helper()
	conn, err := g.tls("203.0.113.66:443", name, "http/1.1")
	require.NoError(g.t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, request)
	require.NoError(g.t, err)
	answer, _ := io.ReadAll(conn)
	return string(answer)
}

// What two readers could take apart in two ways is refused before anything is sent on, and the connection is closed.
func TestAmbiguousRequestsAreRefused(t *testing.T) {
	up := &seen{}
	g := api(t, up, transform("api.example", map[string]string{"X-Key": secret}))
	const host = "Host: api.example\r\n"
	for request, status := range map[string]int{
		"GET / HTTP/1.1\r\n" + host + host + "\r\n":                400,
		"GET / HTTP/1.1\r\n" + host + "Host: evil.example\r\n\r\n": 400,
		"GET / HTTP/1.1\r\n\r\n":                                   400,
		"GET / HTTP/1.1\n" + host + "\r\n":                         400,
		"GET / HTTP/1.1\r\nHost: api.example\n\r\n":                400,
		"GET / HTTP/1.1\r\n" + host + "A: b\rC: d\r\n\r\n":         400,
		"GET / HTTP/1.1\r\n" + host + "A: b\x00\r\n\r\n":           400,
		"GET / HTTP/1.1\r\n" + host + " folded: x\r\n\r\n":         400,
		"GET / HTTP/1.1\r\n" + host + "A : x\r\n\r\n":              400,
		"GET  / HTTP/1.1\r\n" + host + "\r\n":                      400,
		"GET / HTTP/1.1 \r\n" + host + "\r\n":                      400,
		"GET / HTTP/2.0\r\n" + host + "\r\n":                       400,
		"GET /\r\n\r\n":                                            400,
		"POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n": 400,
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n": 400,
		"POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello":              400,
		"POST / HTTP/1.1\r\n" + host + "Content-Length: 5, 5\r\n\r\nhello":                                400,
		"POST / HTTP/1.1\r\n" + host + "Content-Length: +5\r\n\r\nhello":                                  400,
		"POST / HTTP/1.1\r\n" + host + "Content-Length: -1\r\n\r\nhello":                                  400,
		"POST / HTTP/1.1\r\n" + host + "Content-Length: 0x5\r\n\r\nhello":                                 400,
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: xchunked\r\n\r\n":                              400,
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip, chunked\r\n\r\n":                         400,
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding : chunked\r\n\r\n":                              400,
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding:\x0bchunked\r\n\r\n":                            400,
		"POST / HTTP/1.0\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n":                      400,
		"GET https://evil.example/ HTTP/1.1\r\n" + host + "\r\n":                                          400,
		"GET https://user@api.example/ HTTP/1.1\r\n" + host + "\r\n":                                      400,
		"GET http://api.example:80/ HTTP/1.1\r\n" + host + "\r\n":                                         400,
		"GET evil.example/ HTTP/1.1\r\n" + host + "\r\n":                                                  400,
		"GET / HTTP/1.1\r\n" + host + "A: " + strings.Repeat("x", 70<<10) + "\r\n\r\n":                    400,
		"GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n":                               421,
		"GET / HTTP/1.1\r\nHost: api.example:8443\r\nConnection: close\r\n\r\n":                           421,
		"GET / HTTP/1.1\r\nHost: 203.0.113.10\r\nConnection: close\r\n\r\n":                               421,
		"GET / HTTP/1.1\r\nHost: sub.api.example\r\nConnection: close\r\n\r\n":                            421,
		"GET https://evil.example/ HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n":           421,
		"TRACE / HTTP/1.1\r\n" + host + "\r\n":                                                            405,
		"trace / HTTP/1.1\r\n" + host + "\r\n":                                                            405,
		"CONNECT api.example:443 HTTP/1.1\r\nHost: api.example:443\r\n\r\n":                               405,
		"CONNECT evil.example:443 HTTP/1.1\r\nHost: api.example:443\r\n\r\n":                              400,
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n":          400,
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n":       400,
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n":       400,
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nhello\r\n":  400,
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n": 400,
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\nX: y\n\r\n":                400,
	} {
		answer := g.raw("api.example", request)
		require.True(t, strings.HasPrefix(answer, fmt.Sprintf("HTTP/1.1 %d ", status)), "%.200q -> %.300q", request, answer)
		require.Contains(t, answer, "\r\nX-Stillframe-Policy: transforms api.example\r\n", "%.200q", request)
		require.Equal(t, 1, strings.Count(answer, "HTTP/1.1 "), "%.200q", request)
	}
	for _, r := range up.all() {
		require.Equal(t, "POST", r.Method, "only ones whose head was good, and whose body was not")
	}
	g.noSecretIsTold()
}

func TestGoodRequestsOnOneConnection(t *testing.T) {
	up := &seen{}
	g := api(t, up, transform("api.example", map[string]string{"X-Key": secret}, "X-Gone"))
	answer := g.raw("api.example", "GET /1 HTTP/1.1\r\nHost: API.example.:443\r\n\r\n"+
		"POST /2 HTTP/1.1\r\nHost: api.example\r\nContent-Length: 5\r\n\r\nhello"+
		"POST /3 HTTP/1.1\r\nHost: api.example\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, X-Gone, X-Key\r\n\r\n"+
		"5;ext=1\r\nhello\r\n00A\r\n0123456789\r\n0\r\nX-Sum: 1\r\nX-Gone: 2\r\nX-Key: 3\r\nX-Unannounced: 4\r\n\r\n"+
		"GET https://api.example/4 HTTP/1.1\r\nHost: api.example\r\nConnection: X-Key, close\r\n"+
		"X-Key: guest\r\nx-gone: 1\r\n\r\n")
	require.Equal(t, 4, strings.Count(answer, "HTTP/1.1 200 OK"), answer)
	require.Equal(t, 4, up.count())
	for i, r := range up.all() {
		require.Equal(t, fmt.Sprintf("/%d", i+1), r.URL.Path)
		require.Equal(t, []string{secret}, r.Header.Values("X-Key"), "also where Connection names it")
		require.Empty(t, r.Header.Values("X-Gone"))
		require.Equal(t, "api.example", r.Host)
	}
	require.Equal(t, http.Header{"X-Sum": {"1"}}, up.all()[2].Trailer)
}

// HTTP/2 connections are shared by names that share a certificate: another name on it gets nothing.
func TestCoalescedStreamIsMisdirected(t *testing.T) {
	up := &seen{}
	g := api(t, up, transform("*.up.example", map[string]string{"X-Key": secret}))
	for _, host := range []string{"evil.example", "api.up.example:444", "api.up.example.evil.example"} {
		req, err := http.NewRequest("GET", "https://api.up.example/", nil)
		require.NoError(t, err)
		req.Host = host
		res, err := g.client("203.0.113.66:443", true).Do(req)
		require.Contains(t, body(t, res, err), "another host")
		require.Equal(t, 421, res.StatusCode)
		require.Equal(t, 2, res.ProtoMajor)
	}
	require.Zero(t, up.count())
}

func TestUpstreamMustProveItsName(t *testing.T) {
	w := newWorld(t)
	w.record("api.up.example. 60 IN A 203.0.113.10", "self.up.example. 60 IN A 203.0.113.11",
		"plain.up.example. 60 IN A 203.0.113.12")
	up := &seen{}
	w.web("203.0.113.10:443", up, "other.example")
	self := httptest.NewTLSServer(up)
	defer self.Close()
	w.mu.Lock()
	w.servers[addrPort("203.0.113.11:443")] = self.Listener.Addr().String()
	w.mu.Unlock()
	w.web("203.0.113.12:443", up)
	g := w.node().guest(transform("*.up.example", map[string]string{"X-Key": secret}))
	for name, why := range map[string]string{
		"api.up.example": "not valid for the name", "self.up.example": "not valid for the name",
		"plain.up.example": "handshake",
	} {
		for _, h2 := range []bool{false, true} {
			res, err := g.client("203.0.113.66:443", h2).Get("https://" + name + "/")
			require.Contains(t, body(t, res, err), why)
			require.Equal(t, 502, res.StatusCode)
		}
	}
	require.Zero(t, up.count(), "nothing was sent")
	g.noSecretIsTold()
}

func TestUpstreamBelowTheFloor(t *testing.T) {
	w := newWorld(t)
	w.record("api.example. 60 IN A 127.0.0.1")
	g := w.node().guest(transform("api.example", map[string]string{"X-Key": secret}))
	res, err := g.client("203.0.113.66:443", false).Get("https://api.example/")
	require.Contains(t, body(t, res, err), "floor loopback")
	require.Equal(t, 403, res.StatusCode)
	require.Empty(t, w.dials())
	g.denied("floor loopback")
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	g := api(t, http.RedirectHandler("https://evil.example/", http.StatusFound), transform("api.example",
		map[string]string{"X-Key": secret}))
	res, err := g.client("203.0.113.66:443", true).Get("https://api.example/")
	body(t, res, err)
	require.Equal(t, http.StatusFound, res.StatusCode)
	require.Len(t, g.dials(), 1)
	_, err = g.tls("203.0.113.66:443", "evil.example")
	require.ErrorContains(t, err, "access denied")
}

func TestAnswerIsPassedOnAsItIs(t *testing.T) {
	g := api(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		h["Date"], h["Content-Type"] = nil, nil
		h.Set("Alt-Svc", `h3=":443"`)
		h.Set("Trailer", "X-Sum")
		h.Set("Set-Cookie", "a=b")
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, "<html>")
		h.Set("X-Sum", "42")
	}), transform("api.example", map[string]string{"X-Key": secret}))
	for _, h2 := range []bool{false, true} {
		res, err := g.client("203.0.113.66:443", h2).Get("https://api.example/")
		require.Equal(t, "<html>", body(t, res, err))
		require.Equal(t, http.StatusTeapot, res.StatusCode)
		res.Header.Del("Content-Length")
		require.Equal(t, http.Header{"Set-Cookie": {"a=b"}}, res.Header)
		require.Equal(t, http.Header{"X-Sum": {"42"}}, res.Trailer)
	}
}

func TestServerSentEventsAreNotHeldBack(t *testing.T) {
	next := make(chan struct{})
	g := api(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			_, _ = fmt.Fprintf(w, "data: %d\n\n", i)
			_ = http.NewResponseController(w).Flush()
			<-next // the next one comes only when this one has arrived
		}
	}), transform("api.example", map[string]string{"X-Key": secret}))
	for _, h2 := range []bool{false, true} {
		res, err := g.client("203.0.113.66:443", h2).Get("https://api.example/events")
		require.NoError(t, err)
		in := bufio.NewReader(res.Body)
		for i := range 3 {
			line, err := in.ReadString('\n')
			require.NoError(t, err)
			require.Equal(t, fmt.Sprintf("data: %d\n", i), line)
			_, _ = in.ReadString('\n')
			next <- struct{}{}
		}
		require.NoError(t, res.Body.Close())
	}
}

// Requests and answers stream past each other on both versions of HTTP.
func TestBothDirectionsAtOnce(t *testing.T) {
	g := api(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		w.WriteHeader(200)
		_ = http.NewResponseController(w).Flush()
		in := bufio.NewReader(r.Body)
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			_, _ = io.WriteString(w, "echo "+line)
			_ = http.NewResponseController(w).Flush()
		}
	}), transform("api.example", map[string]string{"X-Key": secret}))
	for _, h2 := range []bool{false, true} {
		r, w := io.Pipe()
		req, err := http.NewRequest("POST", "https://api.example/", r)
		require.NoError(t, err)
		res, err := g.client("203.0.113.66:443", h2).Do(req)
		require.NoError(t, err)
		in := bufio.NewReader(res.Body)
		for i := range 5 {
			_, err := fmt.Fprintf(w, "%d\n", i)
			require.NoError(t, err)
			line, err := in.ReadString('\n')
			require.NoError(t, err)
			require.Equal(t, fmt.Sprintf("echo %d\n", i), line)
		}
		require.NoError(t, w.Close())
		_, err = io.ReadAll(in)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
	}
}

func TestHundredStreamsAtOnce(t *testing.T) {
	const streams = 100
	var all sync.WaitGroup
	all.Add(streams)
	g := api(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/first" {
			all.Done()
			all.Wait() // none is answered before all are there
		}
		_, _ = io.WriteString(w, r.URL.RawQuery+" "+r.Header.Get("X-Key"))
	}), transform("api.example", map[string]string{"X-Key": "k"}))
	client := g.client("203.0.113.66:443", true)
	res, err := client.Get("https://api.example/first") // one connection, which the rest will share
	require.Equal(t, " k", body(t, res, err))
	var wg sync.WaitGroup
	for i := range streams {
		wg.Go(func() {
			res, err := client.Get(fmt.Sprintf("https://api.example/?%d", i))
			if err != nil {
				t.Error(err)
				return
			}
			b, _ := io.ReadAll(res.Body)
			_ = res.Body.Close()
			if string(b) != fmt.Sprintf("%d k", i) || res.ProtoMajor != 2 {
				t.Errorf("stream %d: %q", i, b)
			}
		})
	}
	wg.Wait()
	require.Len(t, g.dials(), 1, "they share the upstream's connection as well")
}

// webSocket asks for one and gives the connection, and the answer's status line.
func (g *guest) webSocket(name string) (*tls.Conn, *bufio.Reader, string) {
	g.t.Helper()
	conn, err := g.tls("203.0.113.66:443", name, "http/1.1")
	require.NoError(g.t, err)
	_, err = io.WriteString(conn,
		"GET /ws HTTP/1.1\r\nHost: "+name+"\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"+
			"Sec-WebSocket-Key: x\r\nX-Key: guest\r\n\r\n")
	require.NoError(g.t, err)
	in := bufio.NewReader(conn)
	res, err := http.ReadResponse(in, nil)
	require.NoError(g.t, err)
	require.NoError(g.t, res.Body.Close())
	return conn, in, res.Status
}

func upgrading(key chan<- string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "websocket" {
			_, _ = io.WriteString(w, "no upgrade: "+r.Header.Get("Upgrade")+r.Header.Get("Connection"))
			return
		}
		key <- r.Header.Get("X-Key")
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_ = rw.Flush()
		_, _ = io.Copy(conn, rw)
	})
}

func TestWebSocket(t *testing.T) {
	key := make(chan string, 1)
	g := api(t, upgrading(key), transform("api.example", map[string]string{"X-Key": secret}))
	conn, in, status := g.webSocket("api.example")
	require.Equal(t, "101 Switching Protocols", status)
	require.Equal(t, secret, <-key)
	for _, msg := range []string{"\x81\x05hello", "bytes of another protocol\n\nGET / HTTP/1.1\n", strings.Repeat("x",
		100<<10)} {
		_, err := io.WriteString(conn, msg)
		require.NoError(t, err)
		got := make([]byte, len(msg))
		_, err = io.ReadFull(in, got)
		require.NoError(t, err)
		require.Equal(t, msg, string(got))
	}
	require.Eventually(t, func() bool { return g.Log(1)[0].Up > 100<<10 }, 10*time.Second, time.Millisecond)
	require.Equal(t, 1, g.replace(policy.Policy{Mode: policy.ModeDenyAll}), "and it is cut")
	_, err := in.ReadByte()
	require.Error(t, err)
}

// An upgrade to anything but a WebSocket would be a connection that nobody reads: it is not passed on. After one that
// the upstream refused, the connection serves nothing more.
func TestUpgradesThatAreNone(t *testing.T) {
	g := api(t, upgrading(nil), transform("api.example", nil))
	answer := g.raw("api.example", "GET / HTTP/1.1\r\nHost: api.example\r\nConnection: Upgrade, HTTP2-Settings, close\r\n"+
		"Upgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n")
	require.Contains(t, answer, "\r\n\r\nno upgrade: ", answer)
	require.NotContains(t, answer, "h2c")

	up := &seen{}
	g = api(t, up, transform("api.example", nil))
	answer = g.raw("api.example",
		"GET / HTTP/1.1\r\nHost: api.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"+
			"GET /2 HTTP/1.1\nHost: api.example\n\n")
	require.Equal(t, 1, strings.Count(answer, "HTTP/1.1 200"))
	require.Contains(t, answer, "Connection: close")
	require.Equal(t, 1, up.count())
}

func TestTransformThatChanges(t *testing.T) {
	up := &seen{}
	first := transform("api.example", map[string]string{"X-Key": "one"})
	g := api(t, up, first)
	for _, h2 := range []bool{false, true} {
		require.Zero(t, g.replace(first))
		client := g.client("203.0.113.66:443", h2)
		get := func() string {
			res, err := client.Get("https://api.example/")
			body(t, res, err)
			return up.last().Header.Get("X-Key")
		}
		require.Equal(t, "one", get())
		same := transform("api.example", map[string]string{"x-key": "one"})
		require.Zero(t, g.replace(same), "the same transform")
		require.Equal(t, "one", get())
		require.NoError(t, g.Replace(plan(t, transform("api.example", map[string]string{"X-Key": "two"}))))
		require.Equal(t, "two", get(), "the next request on an open connection")
		require.Equal(t, 1, g.Cut())
		client.CloseIdleConnections()
		require.Equal(t, "two", get(), "on a new connection")
		require.NoError(t, g.Replace(plan(t, policy.Policy{Mode: policy.ModeDenyAll})))
		n := up.count()
		res, err := client.Get("https://api.example/")
		if err == nil {
			body(t, res, err)
			require.Equal(t, 403, res.StatusCode)
		}
		require.Equal(t, n, up.count())
		g.Cut()
	}
}

// A request under way to a domain whose transform has gone ends when Cut returns.
func TestCutEndsRequestsUnderWay(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		started, ended := make(chan struct{}), make(chan struct{})
		g := api(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).EnableFullDuplex()
			_ = http.NewResponseController(w).Flush()
			close(started)
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
			close(ended)
		}), transform("api.example", map[string]string{"X-Key": secret}))
		r, w := io.Pipe()
		req, err := http.NewRequest("POST", "https://api.example/", r)
		require.NoError(t, err)
		failed := make(chan error, 1)
		go func() {
			res, err := g.client("203.0.113.66:443", h2).Do(req)
			if err == nil {
				_, err = io.ReadAll(res.Body)
				_ = res.Body.Close()
			}
			failed <- err
		}()
		<-started
		require.Equal(t, 1, g.replace(policy.Policy{Mode: policy.ModeDenyAll}))
		<-ended
		_ = w.Close() // the test's client waits for its own body
		require.Error(t, <-failed)
	}
}

// An open connection that nobody looked at is cut when there are transforms now: it may be to one of their domains.
func TestTunnelThatWouldBeTerminatedNow(t *testing.T) {
	w := newWorld(t)
	w.echo("203.0.113.10:443")
	g := w.node().guest(policy.AllowAll())
	conn := g.dialTo("203.0.113.10:443")
	roundTrip(t, conn, "\x16\x03\x01 anything")
	p := policy.Policy{Mode: policy.ModeAllowAll, Transforms: []policy.Transform{{Domain: "api.example"}}}
	require.Equal(t, 1, g.replace(p))
	conn = g.dialTo("203.0.113.10:443")
	roundTrip(t, conn, "\x00anything")
	require.Zero(t, g.replace(p), "this one was looked at")
	roundTrip(t, conn, "still here")
}

func TestGuestThatDoesNotTrust(t *testing.T) {
	g := api(t, hello, transform("api.example", nil))
	conn := tls.Client(g.dialTo("203.0.113.66:443"), &tls.Config{ServerName: "api.example", RootCAs: x509.NewCertPool()})
	require.Error(t, conn.Handshake())
	require.Eventually(t, func() bool {
		return len(g.Log(1)) > 0 && strings.Contains(g.Log(1)[0].Reason, "trust")
	}, 10*time.Second, time.Millisecond)
	require.Empty(t, g.dials())
}

// stream is n pseudo-random bytes.
func stream(n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{1}), n)
}

func sum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// Bodies of any length pass both ways at once byte for byte, through a transform and through a tunnel.
func TestLargeBodies(t *testing.T) {
	const size = 64 << 20
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "GET" {
			_, _ = io.Copy(w, stream(size))
			return
		}
		got := sha256.New()
		_, _ = io.Copy(got, r.Body)
		_, _ = io.WriteString(w, sum(got))
	})
	whole := sha256.New()
	_, err := io.Copy(whole, stream(size))
	require.NoError(t, err)
	want := sum(whole)
	for name, p := range map[string]policy.Policy{"transform": transform("api.example", nil),
		"tunnel": custom("api.example")} {
		for _, h2 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s h2 %v", name, h2), func(t *testing.T) {
				g := api(t, h, p)
				client := g.client("203.0.113.66:443", h2)
				res, err := client.Post("https://api.example/", "application/octet-stream", stream(size))
				require.Equal(t, want, body(t, res, err))
				res, err = client.Get("https://api.example/")
				require.NoError(t, err)
				got := sha256.New()
				n, err := io.Copy(got, res.Body)
				require.NoError(t, err)
				require.NoError(t, res.Body.Close())
				require.Equal(t, int64(size), n)
				require.Equal(t, want, sum(got))
				if name == "transform" {
					d := g.Log(2)
					require.Equal(t, []int64{size, size}, []int64{d[1].Up, d[0].Down})
				}
			})
		}
	}
}

func TestPortsBesideTheUsual(t *testing.T) {
	up := &seen{}
	g := api(t, up, transform("api.example", map[string]string{"X-Key": secret}))
	g.web("203.0.113.10:8443", up, "api.example")
	res, err := g.client("203.0.113.66:8443", false).Get("https://api.example:8443/")
	require.Equal(t, "HTTP/1.1 api.example:8443", body(t, res, err))
	require.Equal(t, secret, up.last().Header.Get("X-Key"))
}

func TestCAIsTheSameEverywhere(t *testing.T) {
	seed := [32]byte{1, 2, 3}
	a, err := gate.CAFromSeed(seed)
	require.NoError(t, err)
	b, err := gate.CAFromSeed(seed)
	require.NoError(t, err)
	require.Equal(t, a.CertPEM(), b.CertPEM())
	digest := sha256.Sum256(a.CertPEM())
	require.Equal(t, "5758d564185569c049656f5a83be9774ca14b9ada143e202315b44e6b3ee8528", hex.EncodeToString(digest[:]),
		"nodes of other versions make the same bytes")
	other, err := gate.CAFromSeed([32]byte{4})
	require.NoError(t, err)
	require.NotEqual(t, a.CertPEM(), other.CertPEM())
	require.NotEqual(t, gate.NewCAKey(), gate.NewCAKey())
}

func TestLeaves(t *testing.T) {
	g := api(t, hello, transform("*.up.example", nil))
	g.record("a.b.c.up.example. 60 IN A 203.0.113.10")
	var serials []string
	for _, name := range []string{"api.up.example", "API.Up.Example", "a.b.c.up.example", strings.Repeat("x",
		63) + "." + strings.Repeat("y", 63) + ".up.example"} {
		conn, err := g.tls("203.0.113.66:443", name)
		require.NoError(t, err)
		leaf := conn.ConnectionState().PeerCertificates[0]
		require.Equal(t, []string{strings.ToLower(name)}, leaf.DNSNames)
		require.True(t, leaf.NotBefore.Before(time.Now().Add(-364*24*time.Hour)))
		require.LessOrEqual(t, leaf.NotAfter.Sub(leaf.NotBefore), 398*24*time.Hour)
		serials = append(serials, leaf.SerialNumber.String())
	}
	require.Equal(t, serials[0], serials[1], "kept")
	require.Len(t, slices.Compact(serials), 3)
}

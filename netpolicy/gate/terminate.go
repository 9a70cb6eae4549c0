package gate

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"stillframe/netpolicy/policy"
)

const (
	requestHeadTime = 30 * time.Second // from a request's first byte to its head's last
	idleTime        = 5 * time.Minute  // between requests
	upstreamIdle    = 30 * time.Second
	upstreamHeads   = 1 << 20 // bytes of an answer's head
	maxStreams      = 250     // of one HTTP/2 connection
	copyBytes       = 64 << 10
)

// terminator serves the connections of a sandbox that end here: TLS with the sandbox's CA towards the guest, HTTP in
// between, verified TLS towards the upstream.
type terminator struct {
	s      *Session
	tls    *tls.Config
	server *http.Server
	conns  *handover
	// As the guest's connection, so the upstream's: a WebSocket needs HTTP/1.1, and HTTP/2 streams stay streams.
	http1, http2 *http.Transport
	proxy        *httputil.ReverseProxy
}

func newTerminator(s *Session) *terminator {
	t := &terminator{s: s, conns: newHandover()}
	t.tls = &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, GetCertificate: t.certificate,
	}
	t.http1, t.http2 = t.transport(false), t.transport(true)
	t.proxy = &httputil.ReverseProxy{
		Rewrite: rewrite, Transport: t, FlushInterval: -1, ModifyResponse: modifyAnswer, ErrorHandler: t.upstreamFailed,
		// Its messages can hold paths and header names of a guest. What matters of them is in the decision log.
		ErrorLog: log.New(io.Discard, "", 0), BufferPool: buffers{},
	}
	t.server = &http.Server{
		Handler: http.HandlerFunc(t.serveHTTP), ReadHeaderTimeout: requestHeadTime, IdleTimeout: idleTime,
		MaxHeaderBytes: 2 * s.limits.HelloBytes, ConnContext: withFlow, TLSConfig: t.tls,
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: maxStreams, MaxReceiveBufferPerStream: 1 << 20,
			MaxReceiveBufferPerConnection: 4 << 20},
		ErrorLog:    log.New(io.Discard, "", 0),
		BaseContext: func(net.Listener) context.Context { return s.ctx },
	}
	return t
}

func (t *terminator) start(wg *sync.WaitGroup) {
	wg.Go(func() { _ = t.server.Serve(t.conns) }) // ends when it is closed, in no other way
}

func (t *terminator) close() {
	_ = t.conns.Close()
	_ = t.server.Close()
	t.closeIdle()
}

func (t *terminator) closeIdle() {
	t.http1.CloseIdleConnections()
	t.http2.CloseIdleConnections()
}

func (t *terminator) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name, err := policy.CanonicalName(hello.ServerName)
	if err != nil {
		return nil, err
	}
	return t.s.sb.CA.leaf(name, time.Now())
}

// serve terminates a flow's TLS, hands it to the HTTP server, and comes back when nothing of it runs.
func (t *terminator) serve(f *flow) {
	base := &heardConn{Conn: f.client, heard: bytes.NewReader(f.said.raw), flow: f, closed: make(chan struct{})}
	conn := tls.Server(base, t.tls)
	ctx, cancel := context.WithTimeout(f.ctx, t.s.limits.HelloTime)
	err := conn.HandshakeContext(ctx)
	cancel()
	if err != nil {
		t.s.gate.metrics.failures.WithLabelValues("guest_tls").Inc()
		t.s.note(Decision{
			Kind: KindTCP, Name: f.ruling.name, Port: f.to.Port(), Verdict: Transformed, Rule: f.ruling.rule,
			Reason: "the guest did not complete the TLS handshake; does it trust the sandbox's CA?",
		})
		return
	}
	var serve net.Conn = conn
	if conn.ConnectionState().NegotiatedProtocol != "h2" {
		serve = newGuard(conn, f, t.s.limits.HelloBytes)
	}
	if t.conns.give(f.ctx, serve) {
		select {
		case <-base.closed:
		case <-f.ctx.Done():
		}
	}
	f.cancel()
	f.requests.drain()
}

// heardConn gives out first what was heard before.
type heardConn struct {
	net.Conn
	heard  *bytes.Reader
	flow   *flow
	once   sync.Once
	closed chan struct{}
}

func (c *heardConn) Read(p []byte) (int, error) {
	if c.heard.Len() > 0 {
		return c.heard.Read(p)
	}
	return c.Conn.Read(p)
}

func (c *heardConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// handover is a listener whose connections are given to it.
type handover struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newHandover() *handover { return &handover{conns: make(chan net.Conn), done: make(chan struct{})} }

func (h *handover) give(ctx context.Context, conn net.Conn) bool {
	select {
	case h.conns <- conn:
		return true
	case <-h.done:
	case <-ctx.Done():
	}
	return false
}

// Accept gives the next connection.
func (h *handover) Accept() (net.Conn, error) {
	select {
	case conn := <-h.conns:
		return conn, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (h *handover) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

// Addr is no address: nobody can connect to it.
func (h *handover) Addr() net.Addr { return &net.UnixAddr{Net: "handover"} }

type flowKey struct{}

func withFlow(ctx context.Context, conn net.Conn) context.Context {
	switch c := conn.(type) {
	case *guard:
		ctx = context.WithValue(ctx, guardKey{}, c)
		return context.WithValue(ctx, flowKey{}, c.flow)
	case *tls.Conn:
		if base, ok := c.NetConn().(*heardConn); ok {
			return context.WithValue(ctx, flowKey{}, base.flow)
		}
	}
	return ctx
}

type guardKey struct{}

// transport dials upstreams: for names that were decided, to addresses that are open, with a certificate that is
// the name's.
func (t *terminator) transport(h2 bool) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(h2)
	conf := &tls.Config{
		MinVersion: tls.VersionTLS12, RootCAs: t.s.gate.cfg.Roots, NextProtos: []string{"http/1.1"},
		ClientSessionCache: tls.NewLRUClientSessionCache(64),
	}
	if h2 {
		conf.NextProtos = []string{"h2", "http/1.1"}
	}
	return &http.Transport{
		DialTLSContext: func(_ context.Context, _, addr string) (net.Conn, error) { return t.dialUpstream(addr, conf) },
		// A request in clear is never sent, whatever it says.
		DialContext: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("not over TLS") },
		Protocols:   protocols, DisableCompression: true, IdleConnTimeout: upstreamIdle, MaxIdleConnsPerHost: 32,
		MaxIdleConns: 128, ExpectContinueTimeout: time.Second, MaxResponseHeaderBytes: upstreamHeads,
		ReadBufferSize: copyBytes, WriteBufferSize: copyBytes,
		HTTP2: &http.HTTP2Config{MaxReceiveBufferPerStream: 1 << 20, MaxReceiveBufferPerConnection: 4 << 20},
	}
}

// dialUpstream lives as long as the session allows, not as the request that asked: another may use the connection.
func (t *terminator) dialUpstream(addr string, conf *tls.Config) (net.Conn, error) {
	name, digits, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(digits, 10, 16)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(t.s.ctx, t.s.limits.DialTime)
	defer cancel()
	raw, err := t.s.dialName(ctx, name, uint16(port), func(a netip.Addr) (string, bool) {
		return t.s.Plan().Open(t.s.gate.floor(), a)
	})
	if err != nil {
		return nil, err
	}
	conf = conf.Clone()
	conf.ServerName = name
	conn := tls.Client(raw, conf)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		f := &failure{what: "tls", reason: "the TLS handshake with the upstream failed", cause: err}
		var unverified *tls.CertificateVerificationError
		if errors.As(err, &unverified) {
			f.reason = "the upstream's certificate is not valid for the name"
		}
		return nil, f
	}
	return conn, nil
}

// buffers lends the proxy its copying buffers.
type buffers struct{}

var bufferPool = sync.Pool{New: func() any { return new([copyBytes]byte) }}

// Get gives a buffer.
func (buffers) Get() []byte {
	if b, ok := bufferPool.Get().(*[copyBytes]byte); ok {
		return b[:]
	}
	return make([]byte, copyBytes)
}

// Put takes it back.
func (buffers) Put(b []byte) {
	if len(b) == copyBytes {
		bufferPool.Put((*[copyBytes]byte)(b))
	}
}

package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"

	"stillframe/fsm"
)

// The protocols of the port between nodes, told apart by ALPN.
const (
	protoRaft = "stillframe-raft"
	protoRPC  = "stillframe-rpc"
)

const (
	// handshakeTime bounds a handshake, of either side.
	handshakeTime = 10 * time.Second
	// maxHandshakes bounds connections that have shown no certificate yet; one more is closed at once.
	maxHandshakes = 128
	// accepted is the byte with which the listener ends the handshake. In TLS 1.3 the dialler is done before its
	// certificate is judged; with this byte a dial that succeeds is a connection that is used.
	accepted = 0x06
	// expelled is the byte in its place for a node that was removed from the cluster.
	expelled = 0x15
)

// port is the one TCP port that a node has for others: mutual TLS, then Raft or calls (HTTP).
type port struct {
	id       *Identity
	book     directory
	log      *slog.Logger
	listener net.Listener
	raft     chan net.Conn
	rpc      chan net.Conn
	routes   *http.ServeMux
	server   *http.Server
	client   *http.Client
	ctx      context.Context // ends with the port
	cancel   context.CancelFunc
	work     sync.WaitGroup

	mu    sync.Mutex
	heard map[fsm.NodeID]*atomic.Int64 // Unix nanoseconds of the last byte from a peer
	conns map[*peerConn]struct{}       // that are open
}

// openPort listens at addr (host:port; empty: the node's own address in the member list) and serves calls at once.
func openPort(id *Identity, addr string, book directory, log *slog.Logger) (*port, error) {
	if addr == "" {
		addr = id.Self().Addr
	}
	lc := net.ListenConfig{Control: control, KeepAliveConfig: keepAlive}
	l, err := lc.Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for other nodes: %w", err)
	}
	p := &port{
		id: id, book: book, log: log, listener: l, raft: make(chan net.Conn), rpc: make(chan net.Conn),
		routes: http.NewServeMux(), heard: map[fsm.NodeID]*atomic.Int64{},
		conns: map[*peerConn]struct{}{},
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.server = &http.Server{
		Handler: p.routes, ReadHeaderTimeout: handshakeTime, IdleTimeout: 2 * time.Minute,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	p.client = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			host, _, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			return p.dial(ctx, fsm.NodeID(host), protoRPC)
		},
		MaxIdleConnsPerHost: 64, IdleConnTimeout: time.Minute, DisableCompression: true,
	}}
	p.work.Go(p.accept)
	p.work.Go(func() { _ = p.server.Serve(newHalf(p, p.rpc)) }) // ends with close
	return p, nil
}

// keepAlive finds a peer that is gone without a word, on a connection that waits; control does on one that sends.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 3 * time.Second, Count: 3}

// sendPatience is how long sent bytes may stay without acknowledgement before the connection counts as dead.
const sendPatience = 15 * time.Second

func control(_, _ string, c syscall.RawConn) (err error) {
	ctl := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(sendPatience.Milliseconds()))
	})
	return errors.Join(ctl, err)
}

// addr is where the port listens.
func (p *port) addr() string { return p.listener.Addr().String() }

// close ends the port with every connection of it. Repeating it does nothing.
func (p *port) close() error {
	p.cancel()
	err := p.listener.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	err = errors.Join(err, p.server.Close())
	p.client.CloseIdleConnections()
	p.work.Wait()
	return err
}

// cut ends every connection of the port at once and takes no more, without waiting for anything: the others are to
// notice that this node is gone.
func (p *port) cut() {
	p.cancel()
	_ = p.listener.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.SetDeadline(time.Unix(1, 0)) // closing would say goodbye first
	}
}

func (p *port) accept() {
	slots := make(chan struct{}, maxHandshakes)
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			if p.ctx.Err() != nil {
				return
			}
			p.log.Warn("accepting a node's connection", "error", err)
			select {
			case <-p.ctx.Done():
				return
			case <-time.After(100 * time.Millisecond): // out of descriptors, most likely
				continue
			}
		}
		select {
		case slots <- struct{}{}:
		default:
			_ = conn.Close()
			continue
		}
		p.work.Go(func() {
			defer func() { <-slots }()
			if err := p.welcome(conn); err != nil {
				_ = conn.Close()
				if p.ctx.Err() == nil {
					p.log.Warn("connection refused", "remote", conn.RemoteAddr().String(), "error", err)
				}
			}
		})
	}
}

// welcome does the listener's part of a handshake and hands the connection to whoever serves its protocol.
func (p *port) welcome(raw net.Conn) error {
	ctx, cancel := context.WithTimeout(p.ctx, handshakeTime)
	defer cancel()
	conn := tls.Server(raw, p.id.server())
	if err := conn.HandshakeContext(ctx); err != nil {
		return err
	}
	cs := conn.ConnectionState()
	to := map[string]chan net.Conn{protoRaft: p.raft, protoRPC: p.rpc}[cs.NegotiatedProtocol]
	if to == nil {
		return errors.New("the peer named no protocol")
	}
	peer, err := nodeOf(cs.PeerCertificates[0])
	if err != nil {
		return err
	}
	verdict := byte(accepted)
	if p.isRemoved(peer) {
		verdict = expelled
	}
	if err := raw.SetWriteDeadline(time.Now().Add(handshakeTime)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte{verdict}); err != nil {
		return err
	}
	if verdict == expelled {
		_ = conn.Close() // with a word of goodbye, so that what was said is not lost
		return fmt.Errorf("node %s: %w", peer, errRemoved)
	}
	if err := raw.SetWriteDeadline(time.Time{}); err != nil {
		return err
	}
	welcomed := p.peerConn(conn, peer)
	select {
	case to <- welcomed:
		return nil
	case <-ctx.Done():
		return errors.Join(ctx.Err(), welcomed.Close())
	}
}

// dial connects to a node, wherever it may be, and makes sure that it is that node.
func (p *port) dial(ctx context.Context, node fsm.NodeID, proto string) (net.Conn, error) {
	addrs := p.addrs(node)
	if len(addrs) == 0 {
		return nil, fmt.Errorf("node %s is not in the member list", node)
	}
	if p.isRemoved(node) {
		return nil, fmt.Errorf("node %s: %w", node, errRemoved)
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	stop := context.AfterFunc(p.ctx, cancel)
	defer stop()
	deadline, _ := ctx.Deadline()
	var errs []error
	for i, addr := range addrs {
		// Each address has an equal part of the time that is left.
		part, cancel := context.WithTimeout(ctx, time.Until(deadline)/time.Duration(len(addrs)-i))
		conn, err := p.dialAt(part, node, addr, proto)
		cancel()
		if err == nil {
			return conn, nil
		}
		errs = append(errs, fmt.Errorf("node %s at %s: %w", node, addr, err))
		if errors.Is(err, errExpelled) && p.book.expelled != nil {
			p.book.expelled(node)
		}
	}
	return nil, errors.Join(errs...)
}

func (p *port) dialAt(ctx context.Context, node fsm.NodeID, addr, proto string) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: keepAlive, Control: control}
	raw, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, p.id.client(node, proto))
	if err := greet(ctx, conn); err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	return p.peerConn(conn, node), nil
}

// greet does the dialler's part of a handshake, to the byte that says that the listener is content too.
func greet(ctx context.Context, conn *tls.Conn) error {
	if err := conn.HandshakeContext(ctx); err != nil {
		return err
	}
	deadline, _ := ctx.Deadline()
	if err := conn.SetReadDeadline(deadline); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var b [1]byte
	if _, err := conn.Read(b[:]); err != nil {
		return fmt.Errorf("refused: %w", err)
	}
	switch b[0] {
	case accepted:
	case expelled:
		return errExpelled
	default:
		return errors.New("the peer does not speak this protocol")
	}
	if !stop() {
		return ctx.Err()
	}
	return conn.SetReadDeadline(time.Time{})
}

// hear gives the clock of a peer's last word.
func (p *port) hear(node fsm.NodeID) *atomic.Int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.heard[node] == nil {
		p.heard[node] = &atomic.Int64{}
	}
	return p.heard[node]
}

// lastContact is when this node last received anything from another; zero: not since it started.
func (p *port) lastContact(node fsm.NodeID) time.Time {
	if at := p.hear(node).Load(); at != 0 {
		return time.Unix(0, at)
	}
	return time.Time{}
}

// peerConn is a connection with a member of the cluster. It hides the *tls.Conn from net/http, which would take the
// protocol's name for one that it does not serve.
type peerConn struct {
	net.Conn
	port  *port
	peer  fsm.NodeID
	heard *atomic.Int64
}

func (p *port) peerConn(conn net.Conn, peer fsm.NodeID) *peerConn {
	c := &peerConn{Conn: conn, port: p, peer: peer, heard: p.hear(peer)}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns[c] = struct{}{}
	return c
}

// Close implements net.Conn.
func (c *peerConn) Close() error {
	c.port.mu.Lock()
	delete(c.port.conns, c)
	c.port.mu.Unlock()
	return c.Conn.Close()
}

// Read ends a connection whose peer has been removed since it was made.
func (c *peerConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 && c.port.isRemoved(c.peer) {
		return 0, errRemoved
	}
	if n > 0 {
		c.heard.Store(time.Now().UnixNano())
	}
	return n, err
}

// half is one protocol of the port as a listener. Closing it leaves the port as it is.
type half struct {
	p      *port
	conns  <-chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newHalf(p *port, conns <-chan net.Conn) *half {
	return &half{p: p, conns: conns, closed: make(chan struct{})}
}

// Accept implements net.Listener.
func (h *half) Accept() (net.Conn, error) {
	select {
	case conn := <-h.conns:
		return conn, nil
	case <-h.closed:
	case <-h.p.ctx.Done():
	}
	return nil, net.ErrClosed
}

// Close implements net.Listener.
func (h *half) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

// Addr implements net.Listener.
func (h *half) Addr() net.Addr { return h.p.listener.Addr() }

// raftStream is the Raft half of the port as the library wants it. Nodes are dialled by id, which is what the address
// provider of the transport gives for their address.
type raftStream struct {
	*half
	addr string // where others reach this node
}

// Addr implements net.Listener.
func (s raftStream) Addr() net.Addr { return stringAddr(s.addr) }

// stringAddr is host:port as a net.Addr.
type stringAddr string

// Network implements net.Addr.
func (stringAddr) Network() string { return "tcp" }

// String implements net.Addr.
func (a stringAddr) String() string { return string(a) }

// Dial implements raft.StreamLayer.
func (s raftStream) Dial(id raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(s.p.ctx, timeout)
	defer cancel()
	return s.p.dial(ctx, fsm.NodeID(id), protoRaft)
}

// byID gives the id as the address to dial: the port knows where that is now.
type byID struct{}

// ServerAddr implements raft.ServerAddressProvider.
func (byID) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	return raft.ServerAddress(id), nil
}

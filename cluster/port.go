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
)

// port is the one TCP port that a node has for others: mutual TLS, then Raft or calls (HTTP).
type port struct {
	id       *Identity
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
}

// openPort listens at addr (host:port; empty: the node's own address in the member list) and serves calls at once.
func openPort(id *Identity, addr string, log *slog.Logger) (*port, error) {
	if addr == "" {
		addr = id.Self().Addr
	}
	lc := net.ListenConfig{Control: control, KeepAliveConfig: keepAlive}
	l, err := lc.Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for other nodes: %w", err)
	}
	p := &port{
		id: id, log: log, listener: l, raft: make(chan net.Conn), rpc: make(chan net.Conn),
		routes: http.NewServeMux(), heard: map[fsm.NodeID]*atomic.Int64{},
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
	if err := raw.SetWriteDeadline(time.Now().Add(handshakeTime)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte{accepted}); err != nil {
		return err
	}
	if err := raw.SetWriteDeadline(time.Time{}); err != nil {
		return err
	}
	select {
	case to <- &peerConn{Conn: conn, heard: p.hear(peer)}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// dial connects to a node at the address that the member list has for it, and makes sure that it is that node.
func (p *port) dial(ctx context.Context, node fsm.NodeID, proto string) (net.Conn, error) {
	m, ok := p.id.Member(node)
	if !ok {
		return nil, fmt.Errorf("node %s is not in the member list", node)
	}
	addr := m.Addr
	if node == p.id.ID() {
		addr = p.addr()
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	stop := context.AfterFunc(p.ctx, cancel)
	defer stop()
	d := net.Dialer{KeepAliveConfig: keepAlive, Control: control}
	raw, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", node, err)
	}
	conn := tls.Client(raw, p.id.client(node, proto))
	if err := greet(ctx, conn); err != nil {
		return nil, errors.Join(fmt.Errorf("node %s at %s: %w", node, addr, err), raw.Close())
	}
	return &peerConn{Conn: conn, heard: p.hear(node)}, nil
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
	if b[0] != accepted {
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
	heard *atomic.Int64
}

func (c *peerConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
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
type raftStream struct{ *half }

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

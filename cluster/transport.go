package cluster

import (
	"errors"
	"io"
	"net"
	"sync"

	"github.com/hashicorp/raft"
)

// inbound is a stream layer that closes what it accepted when it is closed. The library leaves that to the peers, and
// its goroutines behind.
type inbound struct {
	raft.StreamLayer
	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	closed bool
}

// Accept implements net.Listener.
func (in *inbound) Accept() (net.Conn, error) {
	conn, err := in.StreamLayer.Accept()
	if err != nil {
		return nil, err
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return nil, errors.Join(net.ErrClosed, conn.Close())
	}
	in.conns[conn] = struct{}{}
	return &inboundConn{conn, in}, nil
}

// Close implements net.Listener.
func (in *inbound) Close() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return nil
	}
	in.closed = true
	err := in.StreamLayer.Close()
	for conn := range in.conns {
		_ = conn.Close() // its reader is what matters
	}
	return err
}

// inboundConn forgets a connection once its handler closes it.
type inboundConn struct {
	net.Conn
	in *inbound
}

// Read gives the end of the stream for a connection that was closed here, so that the library takes it for no error.
func (c *inboundConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if errors.Is(err, net.ErrClosed) {
		err = io.EOF
	}
	return n, err
}

func (c *inboundConn) Close() error {
	c.in.mu.Lock()
	delete(c.in.conns, c.Conn)
	c.in.mu.Unlock()
	return c.Conn.Close()
}

// transport is the library's, without the heartbeat fast path (see the package comment).
type transport struct{ *raft.NetworkTransport }

// Close ends the transport with all its connections, its own and its peers'. Repeating it does nothing.
func (t transport) Close() error {
	t.CloseStreams()
	return t.NetworkTransport.Close()
}

// SetHeartbeatHandler ignores the handler, so that heartbeats take the same queue as every request.
func (transport) SetHeartbeatHandler(func(raft.RPC)) {}

// EncodePeer keeps a node's address in what nodes tell of each other; the library would put what it dials in its place.
func (transport) EncodePeer(_ raft.ServerID, addr raft.ServerAddress) []byte { return []byte(addr) }

func newTransport(c Config, stream raft.StreamLayer) transport {
	return transport{raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream:                &inbound{StreamLayer: stream, conns: map[net.Conn]struct{}{}},
		ServerAddressProvider: byID{},
		MaxPool:               3,
		MaxRPCsInFlight:       1,
		Timeout:               c.IOTimeout,
		Logger:                newRaftLogger(c.Logger),
	})}
}

// campaign makes this node stand for election at once, by the request with which a leader hands over. Only the sole
// voter does it: no leader can be there to wait for.
func (t transport) campaign(id raft.ServerID) error {
	req := raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{
		ProtocolVersion: raft.ProtocolVersionMax,
		ID:              []byte(id),
		Addr:            t.EncodePeer(id, t.LocalAddr()),
	}}
	return t.TimeoutNow(id, t.LocalAddr(), &req, &raft.TimeoutNowResponse{})
}

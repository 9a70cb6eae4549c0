package cluster

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"

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

// transport is the library's, without the heartbeat fast path (see the package comment), with a gate before votes, and
// with the entry before a log known to it.
type transport struct {
	*raft.NetworkTransport
	rpcs   chan raft.RPC
	voting *atomic.Bool
	// beginning tells whether an entry is the last of the snapshot that the log goes on from. See anchor.
	beginning *atomic.Pointer[func(index, term uint64) bool]
	done      context.Context
	cancel    context.CancelFunc
}

var (
	_ raft.WithPreVote = transport{} // or the library goes without, in silence
	_ raft.WithClose   = transport{}
)

// Consumer implements raft.Transport.
func (t transport) Consumer() <-chan raft.RPC { return t.rpcs }

// admit lets this node vote.
func (t transport) admit() { t.voting.Store(true) }

func (t transport) admitted() bool { return t.voting.Load() }

// errUnproven is what a candidate hears from a node that may have forgotten (see fileUnproven).
var errUnproven = errors.New("this node does not vote: it may lack what it once had")

// RequestPreVote implements raft.WithPreVote. A node that may not vote does not stand for election either: with one
// that is behind, it would be a majority.
func (t transport) RequestPreVote(
	id raft.ServerID, at raft.ServerAddress, req *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse,
) error {
	if !t.admitted() {
		return errUnproven
	}
	return t.NetworkTransport.RequestPreVote(id, at, req, resp)
}

// RequestVote implements raft.Transport, as RequestPreVote.
func (t transport) RequestVote(
	id raft.ServerID, at raft.ServerAddress, req *raft.RequestVoteRequest, resp *raft.RequestVoteResponse,
) error {
	if !t.admitted() {
		return errUnproven
	}
	return t.NetworkTransport.RequestVote(id, at, req, resp)
}

// begins has the transport ask f which entry the log goes on from. Until then it takes none for it.
func (t transport) begins(f func(index, term uint64) bool) { t.beginning.Store(&f) }

// anchor spares the library a question that it cannot answer: whether the entry before those of a request is the one
// that it has. It looks in the log alone, where the last entry of a snapshot that was installed is not, unless nothing
// follows on it. A leader whose log begins at the same snapshot then has nothing to send but that snapshot, which
// changes nothing, again and again. What a snapshot ends with is committed: same index and same term is the same entry,
// and a request that begins at the very first entry asks for no more.
func (t transport) anchor(req *raft.AppendEntriesRequest) {
	begins := t.beginning.Load()
	if begins != nil && req.PrevLogEntry > 0 && (*begins)(req.PrevLogEntry, req.PrevLogTerm) {
		req.PrevLogEntry, req.PrevLogTerm = 0, 0
	}
}

// pass hands requests on to the library, but for votes that the node may not give.
func (t transport) pass() {
	for {
		var rpc raft.RPC
		select {
		case rpc = <-t.NetworkTransport.Consumer():
		case <-t.done.Done():
			return
		}
		if !t.admitted() {
			switch rpc.Command.(type) {
			case *raft.RequestVoteRequest, *raft.RequestPreVoteRequest, *raft.TimeoutNowRequest:
				rpc.Respond(nil, errUnproven)
				continue
			}
		}
		if req, ok := rpc.Command.(*raft.AppendEntriesRequest); ok {
			t.anchor(req)
		}
		select {
		case t.rpcs <- rpc:
		case <-t.done.Done():
			return
		}
	}
}

// Close ends the transport with all its connections, its own and its peers'. Repeating it does nothing.
func (t transport) Close() error {
	t.cancel()
	t.CloseStreams()
	return t.NetworkTransport.Close()
}

// SetHeartbeatHandler ignores the handler, so that heartbeats take the same queue as every request.
func (transport) SetHeartbeatHandler(func(raft.RPC)) {}

// EncodePeer keeps a node's address in what nodes tell of each other; the library would put what it dials in its place.
func (transport) EncodePeer(_ raft.ServerID, addr raft.ServerAddress) []byte { return []byte(addr) }

func newTransport(c Config, stream raft.StreamLayer) transport {
	t := transport{rpcs: make(chan raft.RPC), voting: &atomic.Bool{}}
	t.beginning = &atomic.Pointer[func(index, term uint64) bool]{}
	t.done, t.cancel = context.WithCancel(context.Background())
	t.NetworkTransport = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream:                &inbound{StreamLayer: stream, conns: map[net.Conn]struct{}{}},
		ServerAddressProvider: byID{},
		MaxPool:               3,
		MaxRPCsInFlight:       1,
		Timeout:               c.IOTimeout,
		Logger:                newRaftLogger(c.Logger),
	})
	go t.pass() // ends with Close
	return t
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

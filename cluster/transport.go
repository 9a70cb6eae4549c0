package cluster

import (
	"fmt"
	"net"
	"time"

	"github.com/hashicorp/raft"
)

// tcpStream is the plain TCP stream layer. It takes no part in who may connect: bind it to loopback only.
type tcpStream struct{ net.Listener }

// ListenTCP opens a plain TCP stream layer at host:port. The host must be one that others can dial, not a wildcard.
func ListenTCP(addr string) (raft.StreamLayer, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for other nodes: %w", err)
	}
	if tcp, ok := l.Addr().(*net.TCPAddr); !ok || tcp.IP.IsUnspecified() {
		_ = l.Close()
		return nil, fmt.Errorf("listen for other nodes: %s is not an address that they can dial", addr)
	}
	return tcpStream{l}, nil
}

// Dial implements raft.StreamLayer.
func (tcpStream) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return net.DialTimeout("tcp", string(addr), timeout)
}

// transport is the library's, without the heartbeat fast path (see the package comment).
type transport struct{ *raft.NetworkTransport }

// SetHeartbeatHandler ignores the handler, so that heartbeats take the same queue as every request.
func (transport) SetHeartbeatHandler(func(raft.RPC)) {}

func newTransport(c Config, stream raft.StreamLayer) transport {
	return transport{raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream:          stream,
		MaxPool:         3,
		MaxRPCsInFlight: 1,
		Timeout:         c.IOTimeout,
		Logger:          newRaftLogger(c.Logger),
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

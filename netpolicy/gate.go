package netpolicy

import (
	"context"
	"net"
	"net/netip"

	"stillframe/netpolicy/policy"
)

// Gate is what decides by name: the node's DNS server and TCP proxy.
type Gate interface {
	// Open serves a sandbox's listeners until the session is closed, which closes them.
	Open(Ports) (Session, error)
}

// Ports are the sockets of one sandbox, inside its namespace. Whatever comes in on them is this sandbox's.
type Ports struct {
	ID          string
	TCP         net.Listener   // what the guest opened to anywhere
	DNS         net.PacketConn // what it sent to port 53 of anywhere
	DNSTCP      net.Listener
	OriginalDst func(net.Conn) (netip.AddrPort, error) // where a connection of TCP was opened to
	CASeed      [32]byte
	Plan        *policy.Plan
}

// Session is one sandbox at the gate.
type Session interface {
	// Replace makes a plan the one that decides, from the next connection or question on.
	Replace(*policy.Plan)
	// Cut ends connections that the plan does not allow any more.
	Cut()
	Close() error
	Log(limit int) []Decision
	Check(ctx context.Context, host string, port uint16) Decision
	CACertPEM() []byte
}

// Decision is what the gate decided on a connection or a question, or would decide.
type Decision = any

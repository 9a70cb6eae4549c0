package hypervisor

import (
	"context"
	"net"

	"stillframe/fsm"
	"stillframe/hypervisor/guest"
)

// Guest gives the client of the agent in a sandbox of this node, for the calls that do not pass through the log:
// commands and files. Whether the sandbox may be used now is for the caller to judge by the log's state.
func (o *Owner) Guest(_ context.Context, id fsm.SandboxID) (*guest.Client, error) {
	m, err := o.machine(id)
	if err != nil {
		return nil, err
	}
	return m.guest, nil
}

// DialGuest opens a connection to the agent in a sandbox of this node, for another node's call to pass through.
func (o *Owner) DialGuest(ctx context.Context, id fsm.SandboxID) (net.Conn, error) {
	m, err := o.machine(id)
	if err != nil {
		return nil, err
	}
	return guest.Connect(ctx, m.dial)
}

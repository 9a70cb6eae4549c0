package hypervisor

import (
	"context"

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

package agent

import (
	"context"
	"log/slog"
	"net"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"stillframe/hypervisor/guest"
)

// startAgentHere serves the agent's calls on loopback, with the node's client to call them. What belongs to a machine
// of its own, such as setting the clock, is tested in one (vm_test.go of the package guest).
func startAgentHere(t *testing.T) *guest.Client {
	t.Helper()
	s, err := NewServer(slog.New(slog.DiscardHandler), t.TempDir())
	require.NoError(t, err)
	srv := httptest.NewServer(s.Handler())
	t.Cleanup(srv.Close)
	return guest.NewClient(func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, srv.Listener.Addr().String())
	})
}

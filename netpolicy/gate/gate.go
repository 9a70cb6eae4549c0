package gate

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"stillframe/netpolicy/policy"
)

// Config is what a gate needs of its node.
type Config struct {
	Floor policy.Floor // beneath every policy, until SetFloor
	// Resolvers are asked for names; empty means those of /etc/resolv.conf, read again when it changes.
	Resolvers []netip.AddrPort
	// Dial connects to an address from the node; nil means with the node's own network. The address has been decided.
	Dial func(context.Context, netip.AddrPort) (net.Conn, error)
	// Roots vouch for the upstreams of transforms; nil means the system's.
	Roots   *x509.CertPool
	Limits  Limits
	Logger  *slog.Logger          // nil logs nothing
	Metrics prometheus.Registerer // nil registers nothing
}

// Gate serves the sandboxes of one node. Safe for use by many at once.
type Gate struct {
	cfg     Config
	metrics *metrics
	names   *resolver
	beneath atomic.Pointer[policy.Floor]

	mu       sync.Mutex
	sessions map[*Session]struct{}
	closed   bool
}

// ErrClosed says that a gate or a session was closed.
var ErrClosed = errors.New("egress gate is closed")

// New gives a gate without sandboxes. It fails only when the metrics cannot be registered.
func New(cfg Config) (*Gate, error) {
	cfg.Limits = cfg.Limits.withDefaults()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Dial == nil {
		dialer := &net.Dialer{KeepAlive: 30 * time.Second}
		cfg.Dial = func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", to.String())
		}
	}
	m, err := newMetrics(cfg.Metrics)
	if err != nil {
		return nil, fmt.Errorf("egress gate: %w", err)
	}
	g := &Gate{cfg: cfg, metrics: m, names: newResolver(cfg.Resolvers), sessions: map[*Session]struct{}{}}
	g.SetFloor(cfg.Floor)
	return g, nil
}

// SetFloor makes another floor the one beneath every policy, from the next decision on. Connections that it does not
// allow go on until their session's Cut.
func (g *Gate) SetFloor(f policy.Floor) { g.beneath.Store(&f) }

func (g *Gate) floor() policy.Floor { return *g.beneath.Load() }

// Sandbox is what a session serves. The session closes the listeners when it is closed.
type Sandbox struct {
	ID     string
	TCP    net.Listener   // connections of the guest to anywhere
	UDP    net.PacketConn // DNS
	DNSTCP net.Listener   // DNS
	// OriginalDst gives the address and port that a connection of TCP was made to.
	OriginalDst func(net.Conn) (netip.AddrPort, error)
	CA          *CA          // may be nil for a plan without transforms
	Plan        *policy.Plan // nil denies everything
}

// Open begins to serve a sandbox. From its return on every connection and query is decided by the plan.
func (g *Gate) Open(sb Sandbox) (*Session, error) {
	if sb.TCP == nil || sb.UDP == nil || sb.DNSTCP == nil || sb.OriginalDst == nil {
		return nil, errors.New("egress gate: a sandbox needs its three listeners and OriginalDst")
	}
	if sb.CA == nil && sb.Plan.Transforms() {
		return nil, errors.New("egress gate: transforms need a CA")
	}
	s := newSession(g, sb)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, ErrClosed
	}
	g.sessions[s] = struct{}{}
	s.start()
	return s, nil
}

// Close closes every session and waits until nothing of them runs.
func (g *Gate) Close() error {
	g.mu.Lock()
	g.closed = true
	sessions := make([]*Session, 0, len(g.sessions))
	for s := range g.sessions {
		sessions = append(sessions, s)
	}
	g.mu.Unlock()
	var errs []error
	for _, s := range sessions {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

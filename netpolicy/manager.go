package netpolicy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"stillframe/netpolicy/policy"
)

// Config is what a Manager is made from.
type Config struct {
	// Instance tells the nodes of one machine apart: up to eight of a-z and 0-9, the same at every start.
	Instance string
	// Pool is where the addresses between the host and the sandboxes come from; DefaultPool if not set. Nodes of one
	// machine may share it.
	Pool netip.Prefix
	// Floor is what no policy opens, until SetFloor. It must hold what Reserved gives.
	Floor policy.Floor
	Gate  Gate
	// Bounds are those of each sandbox.
	Bounds Bounds
	// Ready is how many namespaces Run keeps ready; none if zero.
	Ready int
	// Interval is how often Run looks whether all is as it should be; five seconds if not set.
	Interval time.Duration
	Logger   *slog.Logger
	Metrics  prometheus.Registerer
}

var validInstance = regexp.MustCompile(`^[a-z0-9]{1,8}$`)

func (c *Config) check() error {
	if !validInstance.MatchString(c.Instance) {
		return fmt.Errorf("instance %q must be one to eight of a-z and 0-9", c.Instance)
	}
	if c.Gate == nil {
		return errors.New("there is no gate")
	}
	if c.Pool == (netip.Prefix{}) {
		c.Pool = DefaultPool
	}
	if err := holdsReserved(c.Floor, c.Pool); err != nil {
		return err
	}
	if c.Interval <= 0 {
		c.Interval = 5 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Bounds = c.Bounds.orDefault()
	return nil
}

// Manager makes and keeps the networks of a node's sandboxes. It is safe for concurrent use.
type Manager struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	kernel  kernel
	pool    *pool
	changed changed

	floor atomic.Pointer[policy.Floor]

	guarded   bool          // forwarding was off before us
	hostSeen  uint32        // generation of the host's rules that was last found right; of Run alone after NewManager
	hostFloor *policy.Floor // that they were written for

	turn int // number of the look, of Run alone

	mu       sync.Mutex
	networks map[string]*Network // by the name of the namespace
}

// NewManager prepares the host: its static rules, forwarding. It removes what an earlier process kept ready.
func NewManager(cfg Config) (*Manager, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("networks: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), toolDeadline)
	defer cancel()
	m := &Manager{
		cfg: cfg, log: cfg.Logger, metrics: newMetrics(cfg.Metrics), networks: map[string]*Network{},
		changed: changed{of: map[*Network]struct{}{}, some: make(chan struct{}, 1)},
	}
	m.floor.Store(&cfg.Floor)
	if err := m.prepare(ctx); err != nil {
		return nil, fmt.Errorf("networks: %w", err)
	}
	return m, nil
}

func (m *Manager) prepare(ctx context.Context) error {
	t, err := findTools(ctx)
	if err != nil {
		return err
	}
	pairs, err := newPairs(m.cfg.Pool)
	if err != nil {
		return err
	}
	if err := pairs.learn(); err != nil {
		return err
	}
	if err := shareDir(); err != nil {
		return fmt.Errorf("prepare %s: %w", Dir, err)
	}
	host, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	m.kernel = kernel{tools: t, pairs: pairs, host: host, bounds: m.cfg.Bounds}
	m.pool = newPool(m)
	err = m.installHost(ctx)
	if err == nil {
		err = m.pool.sweep(ctx)
	}
	if err != nil {
		return errors.Join(err, host.Close())
	}
	return nil
}

// Fill makes namespaces ready until there are as many as there should be, as Run does whenever some are missing.
func (m *Manager) Fill(ctx context.Context) error { return m.pool.fill(ctx) }

// Network finds one that was made or taken up by this process.
func (m *Manager) Network(name string) (*Network, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, ok := m.networks[name]
	return n, ok
}

func (m *Manager) all() []*Network {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]*Network, 0, len(m.networks))
	for _, n := range m.networks {
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b *Network) int { return compareNames(a.ns.name, b.ns.name) })
	return out
}

// Close lets go of every network and leaves it as it is: what needs the gate is refused from then on, what the kernel
// carries goes on under the same rules. Call it when Run has returned.
func (m *Manager) Close() error {
	var errs []error
	for _, n := range m.all() {
		errs = append(errs, n.release())
	}
	if err := m.kernel.host.Close(); !errors.Is(err, os.ErrClosed) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Destroy removes a network, whether or not this process has made it. One that is not there is no error.
func (m *Manager) Destroy(ctx context.Context, name string) error {
	if n, ok := m.Network(name); ok {
		if err := n.release(); err != nil {
			// The namespace must go all the same.
			m.log.Warn("a network's sockets could not be closed", "namespace", name, "error", err)
		}
	}
	return Destroy(ctx, name)
}

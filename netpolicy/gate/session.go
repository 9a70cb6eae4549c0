package gate

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"stillframe/netpolicy/policy"
)

// Session is one sandbox at the gate. Safe for use by many at once.
type Session struct {
	gate   *Gate
	sb     Sandbox
	log    *slog.Logger
	limits Limits
	ctx    context.Context //nolint:containedctx // the session's life: what ends everything that it runs
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	plan   *policy.Plan
	flows  map[*flow]struct{}
	closed bool

	journal *journal
	cache   cache
	opening *rate.Limiter // connections
	asking  *rate.Limiter // DNS queries
	pending chan struct{} // DNS queries that wait for a resolver
	dns     *dnsServer
	web     *terminator
}

func newSession(g *Gate, sb Sandbox) *Session {
	l := g.cfg.Limits
	s := &Session{
		gate: g, sb: sb, log: g.cfg.Logger.With("sandbox", sb.ID), limits: l, plan: sb.Plan, flows: map[*flow]struct{}{},
		journal: newJournal(l.LogSize), opening: rate.NewLimiter(rate.Limit(l.ConnectionRate), 2*l.ConnectionRate),
		asking: rate.NewLimiter(rate.Limit(l.DNSRate), 2*l.DNSRate), pending: make(chan struct{}, l.DNSPending),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.dns = newDNSServer(s)
	s.web = newTerminator(s)
	return s
}

func (s *Session) start() {
	s.wg.Go(s.accept)
	s.dns.start(&s.wg)
	s.web.start(&s.wg)
}

// Plan gives the plan that is in force.
func (s *Session) Plan() *policy.Plan {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.plan
}

// Replace puts another plan in force: for every connection and query not yet decided, and for the next request on each
// connection to a transform's domain. Connections that are open go on until Cut. It fails, with nothing changed, for
// transforms without a CA and on a closed session.
func (s *Session) Replace(plan *policy.Plan) error {
	if s.sb.CA == nil && plan.Transforms() {
		return errors.New("egress gate: transforms need a CA")
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	s.plan = plan
	s.mu.Unlock()
	s.web.closeIdle()
	return nil
}

// Cut ends the connections that the plan in force would not let in as they are: no longer allowed, to an address that
// is no longer open, or to a domain whose transform has changed. It gives how many. When it returns, nothing of them
// runs.
func (s *Session) Cut() int {
	s.mu.Lock()
	var cut []*flow
	for f := range s.flows {
		if !f.stands(s.plan) {
			cut = append(cut, f)
		}
	}
	s.mu.Unlock()
	for _, f := range cut {
		f.end()
		s.gate.metrics.cut.Inc()
	}
	for _, f := range cut {
		<-f.done
	}
	if len(cut) > 0 {
		s.log.Info("connections cut by policy", "connections", len(cut))
	}
	return len(cut)
}

// Close ends the session: listeners, connections, everything. It returns when nothing of it runs. A second Close does
// nothing.
func (s *Session) Close() error {
	s.mu.Lock()
	already := s.closed
	s.closed = true
	flows := make([]*flow, 0, len(s.flows))
	for f := range s.flows {
		flows = append(flows, f)
	}
	s.mu.Unlock()
	if already {
		s.wg.Wait()
		return nil
	}
	s.cancel()
	err := s.sb.TCP.Close()
	s.dns.close()
	for _, f := range flows {
		f.end()
	}
	s.web.close()
	s.wg.Wait()
	s.gate.mu.Lock()
	delete(s.gate.sessions, s)
	s.gate.mu.Unlock()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	return err
}

// Log gives up to limit decisions, the latest first; all that are kept for limit 0 or less.
func (s *Session) Log(limit int) []Decision { return s.journal.last(limit) }

// note adds a decision to the log and counts it.
func (s *Session) note(d Decision) *entry {
	d.Time = time.Now().UTC()
	e := &entry{Decision: d}
	s.journal.add(e)
	s.gate.metrics.decisions.WithLabelValues(d.Kind, d.Verdict).Inc()
	return e
}

// accept takes connections, each into a flow of its own, within the sandbox's limits.
func (s *Session) accept() {
	for {
		conn, err := s.sb.TCP.Accept()
		if err != nil {
			if s.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			s.log.Warn("egress accept failed", "error", err)
			select { // out of descriptors, mostly: others need time to give some back
			case <-s.ctx.Done():
				return
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		f, limit := s.admit(conn)
		if f == nil {
			reset(conn)
			s.gate.metrics.limited.WithLabelValues(limit).Inc()
			continue
		}
		s.wg.Go(f.run)
	}
}

// admit registers a flow for a connection, or says which limit stands against it.
func (s *Session) admit(conn net.Conn) (f *flow, limit string) {
	if !s.opening.Allow() {
		return nil, "connection_rate"
	}
	ctx, cancel := context.WithCancel(s.ctx)
	f = &flow{s: s, client: conn, ctx: ctx, cancel: cancel, done: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.flows) >= s.limits.Connections {
		cancel()
		return nil, "connections"
	}
	s.flows[f] = struct{}{}
	s.gate.metrics.connections.Inc()
	return f, ""
}

func (s *Session) forget(f *flow) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.flows, f)
	s.gate.metrics.connections.Dec()
}

package netpolicy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What is counted as drift besides tables.
const (
	driftLinks    = "links"
	driftSettings = "settings"
	driftHost     = "host"
	driftReady    = "ready"
)

// Run keeps namespaces ready and looks after the networks until ctx ends: at an interval, and whenever the kernel tells
// that rules or links of one have changed.
func (m *Manager) Run(ctx context.Context) error {
	var parts sync.WaitGroup
	parts.Go(func() { m.pool.run(ctx) })
	parts.Go(func() { m.watchNetworks(ctx) })
	parts.Wait()
	return ctx.Err()
}

// changed are the networks that the kernel told of, until somebody has looked.
type changed struct {
	mu   sync.Mutex
	of   map[*Network]struct{}
	some chan struct{}
}

func (c *changed) add(n *Network) {
	c.mu.Lock()
	c.of[n] = struct{}{}
	c.mu.Unlock()
	select {
	case c.some <- struct{}{}:
	default:
	}
}

func (c *changed) take() map[*Network]struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.of
	c.of = map[*Network]struct{}{}
	return out
}

func (m *Manager) watchNetworks(ctx context.Context) {
	t := time.NewTicker(m.cfg.Interval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.changed.some:
			for n := range m.changed.take() {
				n.look(ctx, lookLinks)
			}
		case <-t.C:
			m.Look(ctx)
		}
	}
}

// extent is how closely a network is looked at.
type extent int

const (
	lookRules extent = iota // one question
	lookLinks               // and what the kernel tells of by itself when it changes
	lookAll                 // and settings, for which the namespace has to be entered
)

// closelyEvery is in how many rounds every network is looked at closely once. The rest of the time one question is all
// that it takes, and a thousand networks are nothing.
const closelyEvery = 12

// Look looks at everything once, as Run does at its interval, and mends what is not as it should be. It is not for two
// at once.
func (m *Manager) Look(ctx context.Context) {
	began := time.Now()
	if mended, err := m.ensureHost(ctx); err != nil {
		m.log.Error("the host's rules could not be mended", "error", err)
	} else if mended {
		m.metrics.drift.WithLabelValues(driftHost).Inc()
		m.log.Warn("the host's rules were not as they should be")
	}
	m.turn++
	for i, n := range m.all() {
		if ctx.Err() != nil {
			return
		}
		what := lookRules
		if (i+m.turn)%closelyEvery == 0 {
			what = lookAll
		}
		n.look(ctx, what)
	}
	m.metrics.round(time.Since(began))
}

// look mends a network if it is not as it should be. If that fails it is sealed: a sandbox whose rules are in doubt
// reaches nothing that the gate does not carry. The next look tries again.
func (n *Network) look(ctx context.Context, what extent) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.released || ctx.Err() != nil {
		return
	}
	found, err := n.fault(what)
	if err == nil && n.floor != n.m.floor.Load() && !n.sealed { // what is sealed is mended first
		err = n.replace(ctx, n.plan, func(string) {})
	}
	if err == nil && found == nil {
		return
	}
	var drift []string
	if err == nil {
		drift, err = n.mend(ctx)
	}
	if found != nil && found.kind != "" {
		drift = append(drift, found.kind)
		n.m.log.Warn("a sandbox's network was not as it should be", "namespace", n.ns.name, "difference", found.what)
	}
	for _, d := range drift {
		n.m.metrics.drift.WithLabelValues(d).Inc()
	}
	if err == nil || ctx.Err() != nil {
		return
	}
	n.m.metrics.sealed.Inc()
	n.m.log.Error("a sandbox's network cannot be mended and is cut off", "namespace", n.ns.name,
		"error", errors.Join(err, n.seal()))
}

// fault is a reason to look closer. Its kind is empty if only the rules may have changed, which mend finds out.
type fault struct{ kind, what string }

// fault looks at a network without starting a program, for it is done for each of them every few seconds.
func (n *Network) fault(what extent) (*fault, error) {
	if n.sealed {
		return &fault{}, nil
	}
	if now, err := generation(n.watch.rules); err != nil {
		return nil, err
	} else if now != n.seen {
		return &fault{}, nil
	}
	if what < lookLinks {
		return nil, nil
	}
	if wrong, err := linkFault(n.watch.links); wrong != "" || err != nil {
		return &fault{driftLinks, wrong}, err
	}
	if what < lookAll {
		return nil, nil
	}
	var wrong error
	if err := n.ns.Do(func() error { wrong = sysctlDrift(policySysctls); return nil }); err != nil {
		return nil, err
	}
	if wrong != nil {
		return &fault{driftSettings, wrong.Error()}, nil //nolint:nilerr // that is the answer
	}
	return nil, nil
}

// linkFault says what is wrong with the links behind a handle.
func linkFault(h *netlink.Handle) (string, error) {
	for _, name := range []string{TapName, UplinkName} {
		link, err := h.LinkByName(name)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return name + " is gone", nil
		}
		if err != nil {
			return "", err
		}
		if link.Attrs().Flags&net.FlagUp == 0 {
			return name + " is down", nil
		}
		if name == UplinkName && link.Attrs().RawFlags&unix.IFF_LOWER_UP == 0 {
			return "the host's end is down", nil
		}
	}
	routes, err := h.RouteListFiltered(unix.AF_INET, &netlink.Route{Dst: nil}, netlink.RT_FILTER_DST)
	if err != nil {
		return "", fmt.Errorf("list routes: %w", err)
	}
	if len(routes) != 1 {
		return fmt.Sprintf("there are %d default routes", len(routes)), nil
	}
	return "", nil
}

package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"stillframe/httpd"
	"stillframe/netpolicy"
	"stillframe/netpolicy/policy"
)

// EgressConfig is what the operator says about the way from sandboxes to the outside. The zero value will do.
type EgressConfig struct {
	Pool         string   // CIDR that the addresses between the host and sandboxes are from; empty: netpolicy.DefaultPool
	Resolvers    []string // address or address:port of DNS servers; none: those of /etc/resolv.conf
	AllowPrivate []string // CIDRs of private ranges that policies may open as if they were public
	// Bounds of each sandbox; zero fields are defaults.
	Bounds netpolicy.Bounds
}

// readyNamespaces is how many closed networks are kept ready for sandboxes, so that a restore does not wait for one.
const readyNamespaces = 4

// parsed are the values of an EgressConfig.
type parsedEgress struct {
	pool      netip.Prefix
	resolvers []netip.AddrPort
	private   []netip.Prefix
}

func (c EgressConfig) parse() (p parsedEgress, err error) {
	p.pool = netpolicy.DefaultPool
	if c.Pool != "" {
		if p.pool, err = netip.ParsePrefix(c.Pool); err != nil {
			return p, fmt.Errorf("pool of sandboxes' addresses: %w", err)
		}
	}
	for _, r := range c.Resolvers {
		at, err := parseResolver(r)
		if err != nil {
			return p, err
		}
		p.resolvers = append(p.resolvers, at)
	}
	for _, s := range c.AllowPrivate {
		prefix, err := netip.ParsePrefix(s)
		if err != nil {
			return p, fmt.Errorf("private range to allow: %w", err)
		}
		p.private = append(p.private, prefix)
	}
	return p, nil
}

func parseResolver(s string) (netip.AddrPort, error) {
	if addr, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(addr, 53), nil
	}
	at, err := netip.ParseAddrPort(s)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("DNS server %q: want an address, or address:port", s)
	}
	return at, nil
}

// floorKeeper knows what no policy of this node's sandboxes opens: the node's own addresses, those of the other
// members, and where sandboxes are. Addresses change while a node runs, so it looks again.
type floorKeeper struct {
	n     *Node
	p     parsedEgress
	found map[string][]netip.Prefix // of members that are listed by name, as last looked up
}

// floorPause is between two looks at the addresses of this host and its peers.
const floorPause = 10 * time.Second

// look finds out the floor as it is now.
func (k *floorKeeper) look(ctx context.Context) (policy.Floor, error) {
	own, err := k.ownAddresses()
	if err != nil {
		return policy.Floor{}, err
	}
	f, err := policy.NewFloor(own, k.peerAddresses(ctx), netpolicy.Reserved(k.p.pool)).OpenPrivate(k.p.private...)
	if err != nil {
		return policy.Floor{}, fmt.Errorf("private range to allow: %w", err)
	}
	return f, nil
}

// keep looks again and again until ctx ends, and brings the gate and the networks to what has changed.
func (k *floorKeeper) keep(ctx context.Context, known policy.Floor) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(floorPause):
		}
		floor, err := k.look(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			k.n.cfg.Logger.Warn("the addresses that no sandbox may reach are not looked at", "error", err)
			continue
		}
		if slices.Equal(floor.Ranges(), known.Ranges()) {
			continue
		}
		k.n.gate.SetFloor(floor) // first, so that what the manager cuts does not come back
		if err := k.n.networks.SetFloor(floor); err != nil {
			k.n.cfg.Logger.Error("the networks of sandboxes do not know of changed addresses", "error", err)
			continue
		}
		k.n.cfg.Logger.Info("addresses of this host or its peers have changed; no sandbox reaches them")
		known = floor
	}
}

// ownAddresses are those of all interfaces of this host, but for the host's ends of sandboxes' links, which the pool
// stands for.
func (k *floorKeeper) ownAddresses() ([]netip.Prefix, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("addresses of this host: %w", err)
	}
	var own []netip.Prefix
	for _, a := range addrs {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil && !k.p.pool.Contains(prefix.Addr()) {
			own = append(own, single(prefix.Addr()))
		}
	}
	return sorted(own), nil
}

func single(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	return netip.PrefixFrom(a, a.BitLen())
}

// sorted gives each prefix once, in one order.
func sorted(in []netip.Prefix) []netip.Prefix {
	slices.SortFunc(in, netip.Prefix.Compare)
	return slices.Compact(in)
}

// peerLookup bounds finding out the addresses of one member that is listed by name.
const peerLookup = 2 * time.Second

// peerAddresses are where the other nodes listen, for nodes and for clients.
func (k *floorKeeper) peerAddresses(ctx context.Context) []netip.Prefix {
	hosts := map[string]bool{}
	add := func(hostPort string) {
		if host, _, err := net.SplitHostPort(hostPort); err == nil && host != "" {
			hosts[host] = true
		}
	}
	for _, m := range k.n.identity.Members() {
		add(m.Addr)
	}
	for _, m := range k.n.log.State().Nodes() {
		add(m.APIAddr)
	}
	var peers []netip.Prefix
	for host := range hosts {
		if addr, err := netip.ParseAddr(host); err == nil {
			peers = append(peers, single(addr))
			continue
		}
		peers = append(peers, k.lookUp(ctx, host)...)
	}
	return sorted(peers)
}

// lookUp gives the addresses of a name; where that fails now, those of the last time.
func (k *floorKeeper) lookUp(ctx context.Context, host string) []netip.Prefix {
	ctx, cancel := context.WithTimeout(ctx, peerLookup)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	known, asked := k.found[host]
	if err != nil {
		if !asked {
			k.n.cfg.Logger.Warn("the addresses of a member are not known, and not denied to sandboxes until they are",
				"member", host, "error", err)
			k.found[host] = nil
		}
		return known
	}
	k.found[host] = nil
	for _, a := range addrs {
		k.found[host] = append(k.found[host], single(a))
	}
	return k.found[host]
}

// instance tells this node from others on the same machine, in names of kernel objects.
func (n *Node) instance() string { return strings.ReplaceAll(string(n.id), "-", "")[:8] }

// startNetworks makes the manager of sandboxes' networks. Where this host cannot enforce policies the node runs
// without, and starts no sandbox: what is there already can still be looked at and deleted.
func (n *Node) startNetworks(ctx context.Context) error {
	p, err := n.cfg.Egress.parse()
	if err != nil {
		return err
	}
	keeper := &floorKeeper{n: n, p: p, found: map[string][]netip.Prefix{}}
	floor, err := keeper.look(ctx)
	if err != nil {
		return err
	}
	if n.gate, err = n.newGate(floor, p); err != nil {
		return err
	}
	n.networks, err = netpolicy.NewManager(netpolicy.Config{
		Instance: n.instance(), Pool: p.pool, Floor: floor, Gate: netpolicy.Through(n.gate), Bounds: n.cfg.Egress.Bounds,
		Ready: readyNamespaces, Logger: n.cfg.Logger.With("room", "netpolicy"), Metrics: n.registry,
	})
	if err != nil {
		n.noNetworks = err.Error()
		n.cfg.Logger.Error("no sandbox can be started here: network policies cannot be enforced", "error", err)
		return nil
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	n.stopNetworks, n.networksDone = cancel, make(chan struct{})
	go func() {
		defer close(n.networksDone)
		var parts sync.WaitGroup
		parts.Go(func() { _ = n.networks.Run(run) }) // ends with its context
		parts.Go(func() { keeper.keep(run, floor) })
		parts.Wait()
	}()
	return nil
}

// closeNetworks lets go of the networks; the rules of those that are there stay in force.
func (n *Node) closeNetworks() error {
	var errs []error
	if n.stopNetworks != nil {
		n.stopNetworks()
		<-n.networksDone
		errs = append(errs, n.networks.Close())
	}
	if n.gate != nil {
		errs = append(errs, n.gate.Close())
	}
	return errors.Join(errs...)
}

func (n *Node) egressStatus() httpd.EgressStatus {
	pool := n.cfg.Egress.Pool
	if pool == "" {
		pool = netpolicy.DefaultPool.String()
	}
	return httpd.EgressStatus{Enforced: n.networks != nil, Reason: n.noNetworks, Pool: pool}
}

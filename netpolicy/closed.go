package netpolicy

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
)

// kernel does what takes the kernel's or a tool's help, for one node.
type kernel struct {
	tools  tools
	pairs  *pairs
	host   *os.File // the host's network namespace
	bounds Bounds
}

// close makes a namespace in which everything is there and nothing passes: the rules of a policy that carries nothing,
// links that are down. It runs on a thread that is in the namespace, and can be repeated on one that a kill left half
// done. Rules come first, so that at no time there is a link without rules.
func (k *kernel) close(ctx context.Context) error {
	if err := k.restoreAll(ctx, nil); err != nil {
		return err
	}
	return k.furnish()
}

// restoreAll writes every table.
func (k *kernel) restoreAll(ctx context.Context, policies []forwarding) error {
	if _, err := run(ctx, k.tools.restore, filterTable(k.bounds, policies...)+fixedTables(k.bounds)); err != nil {
		return err
	}
	return k.restoreOther(ctx)
}

// restoreOther writes the tables of the other protocols.
func (k *kernel) restoreOther(ctx context.Context) error {
	if haveIPv6() {
		if _, err := run(ctx, k.tools.restore6, closedIPv6); err != nil {
			return err
		}
	}
	_, err := run(ctx, k.tools.restoreARP, closedARP)
	return err
}

func haveIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

// furnish makes what is missing of settings and links, and brings nothing up but lo.
func (k *kernel) furnish() error {
	if err := applySysctls(policySysctls); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	if _, err := netlink.LinkByName(TapName); errors.As(err, &netlink.LinkNotFoundError{}) {
		if err := createTap(); err != nil {
			return fmt.Errorf("make %s: %w", TapName, err)
		}
	} else if err != nil {
		return err
	}
	if err := nameTap(); err != nil {
		return fmt.Errorf("addresses of %s: %w", TapName, err)
	}
	if _, err := k.pairs.ensure(k.host); err != nil {
		return fmt.Errorf("way to the host: %w", err)
	}
	return nil
}

// raise brings the links of a namespace up, the guest's last. The host's end comes before the inner one: the end that
// comes up second has its queue at once, the other when a worker of the kernel gets to it, and what the guest sends
// first goes through the inner one.
func (k *kernel) raise(ns *Namespace) error {
	var p pair
	if err := ns.Do(func() (err error) { p, _, err = k.pairs.find(); return err }); err != nil {
		return err
	}
	if err := p.raiseHost(ns.name); err != nil {
		return err
	}
	return ns.Do(func() error {
		if err := p.raise(); err != nil {
			return err
		}
		if err := shapeTap(k.bounds); err != nil {
			return err
		}
		return raiseTap()
	})
}

// readAll reads every table of the calling thread's namespace.
func (k *kernel) readAll(ctx context.Context) (tableSet, error) {
	all := tableSet{}
	for _, t := range []struct{ family, path string }{
		{"", k.tools.save}, {"ip6 ", k.tools.save6}, {"arp ", k.tools.saveARP},
	} {
		if t.family == "ip6 " && !haveIPv6() {
			continue
		}
		text, err := run(ctx, t.path, "")
		if err != nil {
			return nil, err
		}
		for name, lines := range parseTables(text) {
			all[t.family+name] = lines
		}
	}
	return all, nil
}

// readFilter reads the table that the policy is in.
func (k *kernel) readFilter(ctx context.Context) (tableSet, error) {
	text, err := run(ctx, k.tools.save, "", "--table", "filter")
	if err != nil {
		return nil, err
	}
	return parseTables(text), nil
}

// meant is what readAll reads when all is as it should be.
func (k *kernel) meant(policies []forwarding) tableSet {
	all := parseTables(filterTable(k.bounds, policies...) + fixedTables(k.bounds))
	for name, lines := range parseTables(closedARP) {
		all["arp "+name] = lines
	}
	if haveIPv6() {
		for name, lines := range parseTables(closedIPv6) {
			all["ip6 "+name] = lines
		}
	}
	return all
}

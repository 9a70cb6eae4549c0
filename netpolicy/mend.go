package netpolicy

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// restoreFilter writes the table that the policy is in.
func (n *Network) restoreFilter(ctx context.Context) error {
	n.before, n.seen, n.written = n.seen, 0, filterTable(n.m.kernel.bounds, n.policies...)
	return n.ns.Do(func() error {
		_, err := run(ctx, n.m.kernel.tools.restore, n.written)
		return err
	})
}

// sameRules tells whether the policies make the rules that were written last.
func (n *Network) sameRules(policies []forwarding) bool {
	return n.written == filterTable(n.m.kernel.bounds, policies...)
}

// verify reads the rules back and compares them with what they should be, unless the kernel says that nothing has
// changed since that was done.
func (n *Network) verify(ctx context.Context) error {
	return n.ns.Do(func() error {
		generation, err := generation(nil)
		if err != nil {
			return err
		}
		if n.seen != 0 && n.seen == generation {
			return nil
		}
		k := &n.m.kernel
		want := k.meant(n.policies)
		read := k.readAll
		if n.before != 0 && generation == n.before+1 {
			// One change since all was right, which is ours: the other tables are as they were.
			want = tableSet{"filter": want["filter"]}
			read = k.readFilter
		}
		have, at, err := readStable(ctx, read)
		if err != nil {
			return err
		}
		if differ := have.diff(want); len(differ) > 0 {
			return fmt.Errorf("the rules are not what was written: %s", have.explain(differ[0], want))
		}
		n.before, n.seen = 0, at
		return nil
	})
}

// readStable reads tables of the calling thread's namespace, and the generation that they are of.
func readStable(ctx context.Context, read func(context.Context) (tableSet, error)) (tableSet, uint32, error) {
	for range 5 {
		before, err := generation(nil)
		if err != nil {
			return nil, 0, err
		}
		have, err := read(ctx)
		if err != nil {
			return nil, 0, err
		}
		after, err := generation(nil)
		if err != nil {
			return nil, 0, err
		}
		if before == after {
			return have, after, nil
		}
	}
	return nil, 0, errors.New("the rules change all the time")
}

// mend makes rules, settings and links what they should be, whatever they are, and tells which tables were not. Rules
// come before links, so that nothing is opened that no rule watches.
func (n *Network) mend(ctx context.Context) (drift []string, err error) {
	k := &n.m.kernel
	err = n.ns.Do(func() error {
		have, _, err := readStable(ctx, k.readAll)
		if err != nil {
			return err
		}
		want := k.meant(n.policies)
		drift = have.diff(want)
		for _, table := range drift {
			n.m.log.Warn("rules of a sandbox were not as they should be", "namespace", n.ns.name,
				"table", table, "difference", have.explain(table, want))
		}
		if err := k.rewrite(ctx, drift, have, n.policies); err != nil {
			return err
		}
		return k.furnish()
	})
	if err != nil {
		return drift, err
	}
	n.before, n.seen, n.written = 0, 0, filterTable(k.bounds, n.policies...)
	if err := n.flush(n.policies[0]); err != nil {
		return drift, err
	}
	if err := n.verify(ctx); err != nil {
		return drift, err
	}
	if err := k.raise(n.ns); err != nil {
		return drift, err
	}
	n.sealed = false
	return drift, nil
}

// rewrite writes the tables named, in the calling thread's namespace. A table that should not be there is emptied.
func (k *kernel) rewrite(ctx context.Context, tables []string, have tableSet, policies []forwarding) error {
	var ip4, ip6, arp strings.Builder
	fixed, closed := false, false
	for _, table := range tables {
		switch {
		case table == "filter":
			ip4.WriteString(filterTable(k.bounds, policies...))
		case table == "raw" || table == "nat" || table == "mangle":
			fixed = true
		case table == "ip6 filter" || table == "ip6 raw":
			closed = true
		case table == "arp filter":
			arp.WriteString(closedARP)
		case strings.HasPrefix(table, "ip6 "):
			ip6.WriteString(emptied(strings.TrimPrefix(table, "ip6 "), have[table]))
		default:
			ip4.WriteString(emptied(table, have[table]))
		}
	}
	if fixed {
		ip4.WriteString(fixedTables(k.bounds))
	}
	if closed {
		ip6.WriteString(closedIPv6)
	}
	for _, r := range []struct{ path, text string }{
		{k.tools.restore, ip4.String()}, {k.tools.restore6, ip6.String()}, {k.tools.restoreARP, arp.String()},
	} {
		if r.text == "" {
			continue
		}
		if _, err := run(ctx, r.path, r.text); err != nil {
			return err
		}
	}
	return nil
}

// emptied gives the text that leaves a table with its built-in chains, which let everything pass, and no rules.
func emptied(table string, lines []string) string {
	var r strings.Builder
	fmt.Fprintf(&r, "*%s\n", table)
	for _, l := range lines {
		chain, policy, _ := strings.Cut(l, " ")
		if strings.HasPrefix(chain, ":") && policy != "-" {
			fmt.Fprintf(&r, "%s ACCEPT [0:0]\n", chain)
		}
	}
	r.WriteString("COMMIT\n")
	return r.String()
}

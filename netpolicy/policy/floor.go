package policy

import (
	"fmt"
	"net/netip"
	"slices"
)

// Range is a range of addresses and the rule that it stands for.
type Range struct {
	Prefix netip.Prefix
	Rule   string
}

// always are the ranges that no sandbox reaches, whatever its policy and whatever its node.
var always = []Range{
	{netip.MustParsePrefix("0.0.0.0/8"), "floor unspecified"},
	{netip.MustParsePrefix("127.0.0.0/8"), "floor loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "floor link-local and metadata"},
	{netip.MustParsePrefix("224.0.0.0/4"), "floor multicast"},
	{netip.MustParsePrefix("240.0.0.0/4"), "floor reserved"},
	// Metadata services of clouds that are not at a link-local address.
	{netip.MustParsePrefix("100.100.100.200/32"), "floor metadata"},
	{netip.MustParsePrefix("168.63.129.16/32"), "floor metadata"},
	{netip.MustParsePrefix("192.0.0.192/32"), "floor metadata"},
	{netip.MustParsePrefix("fd00:ec2::254/128"), "floor metadata"},
	{netip.MustParsePrefix("::/128"), "floor unspecified"},
	{netip.MustParsePrefix("::1/128"), "floor loopback"},
	{netip.MustParsePrefix("fe80::/10"), "floor link-local"},
	{netip.MustParsePrefix("fec0::/10"), "floor site-local"},
	{netip.MustParsePrefix("ff00::/8"), "floor multicast"},
	// These carry an IPv4 address inside, which would not be looked at.
	{netip.MustParsePrefix("::/96"), "floor embedded IPv4"},
	{netip.MustParsePrefix("64:ff9b::/96"), "floor embedded IPv4"},
	{netip.MustParsePrefix("64:ff9b:1::/48"), "floor embedded IPv4"},
	{netip.MustParsePrefix("2001::/32"), "floor embedded IPv4"},
	{netip.MustParsePrefix("2002::/16"), "floor embedded IPv4"},
}

// private are the ranges that a policy opens only by naming a range in them.
var private = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("fc00::/7"),
}

// Floor is what lies below every policy: addresses that none opens, and private ranges. Immutable. The zero Floor knows
// the fixed ranges and nothing of its node.
type Floor struct {
	node   []Range        // own addresses, peers, pools
	opened []netip.Prefix // parts of private ranges that the node's operator opens
}

// NewFloor gives the floor of a node: its own addresses, its peers', and the pools that sandboxes' addresses come from.
// Bits beyond a prefix are ignored, so that an interface's address with its mask width stands for its network; give
// addresses as single-address prefixes.
func NewFloor(own, peers, pools []netip.Prefix) Floor {
	var f Floor
	for _, group := range []struct {
		rule     string
		prefixes []netip.Prefix
	}{{"floor node", own}, {"floor peer", peers}, {"floor sandboxes", pools}} {
		for _, p := range group.prefixes {
			if p.IsValid() {
				f.node = append(f.node, Range{Prefix: unmap(p).Masked(), Rule: group.rule})
			}
		}
	}
	return f
}

// OpenPrivate gives a floor on which parts of private ranges are reachable as public addresses are. It is the
// operator's choice for the node, not a policy's. A prefix that is not within a private range is an error: nothing else
// can be opened.
func (f Floor) OpenPrivate(prefixes ...netip.Prefix) (Floor, error) {
	out := Floor{node: f.node, opened: slices.Clone(f.opened)}
	for _, p := range prefixes {
		within := func(r netip.Prefix) bool { return r.Contains(p.Addr()) && r.Bits() <= p.Bits() }
		if !p.IsValid() || p != p.Masked() || !slices.ContainsFunc(private, within) {
			return Floor{}, fmt.Errorf("%s is not within a private range, which alone can be opened", p)
		}
		out.opened = append(out.opened, p)
	}
	return out, nil
}

// Denies tells whether no policy whatever opens an address, and by which rule.
func (f Floor) Denies(a netip.Addr) (rule string, denied bool) {
	if !a.IsValid() {
		return "floor unspecified", true
	}
	a = a.Unmap().WithZone("")
	for _, ranges := range [][]Range{always, f.node} {
		for _, r := range ranges {
			if r.Prefix.Contains(a) {
				return r.Rule, true
			}
		}
	}
	return "", false
}

// Private tells whether an address is private and not opened by the operator: reachable only where a policy's
// allow_cidrs names it.
func (f Floor) Private(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	contains := func(p netip.Prefix) bool { return p.Contains(a) }
	return slices.ContainsFunc(private, contains) && !slices.ContainsFunc(f.opened, contains)
}

// Ranges gives all that Denies denies, for the kernel's rules.
func (f Floor) Ranges() []Range { return slices.Concat(always, f.node) }

// PrivateRanges gives the private ranges, and Opened the parts of them that the operator opens.
func (f Floor) PrivateRanges() []netip.Prefix { return slices.Clone(private) }

// Opened gives the parts of the private ranges that the operator opens.
func (f Floor) Opened() []netip.Prefix { return slices.Clone(f.opened) }

func unmap(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p
}

package netpolicy

import (
	"net/netip"
	"slices"

	"stillframe/netpolicy/policy"
)

// everything is the range that holds every IPv4 address.
var everything = netip.PrefixFrom(netip.IPv4Unspecified(), 0)

// forwardingOf says what of a plan the kernel carries by itself. It agrees with Plan.Reach on every IPv4 address, and
// names of the floor only what the plan would otherwise open.
func forwardingOf(plan *policy.Plan, floor policy.Floor) forwarding {
	var open []netip.Prefix
	var f forwarding
	switch plan.Mode() {
	case policy.ModeAllowAll:
		open = []netip.Prefix{everything}
	case policy.ModeCustom:
		open = onlyIPv4(plan.CIDRs())
	}
	for _, p := range floorRanges(floor) {
		if overlapsAny(p, open) {
			f = append(f, verdict{to: p})
		}
	}
	if plan.Mode() == policy.ModeAllowAll {
		for _, p := range onlyIPv4(floor.Opened()) {
			f = append(f, verdict{to: p, allow: true})
		}
		for _, p := range onlyIPv4(floor.PrivateRanges()) {
			f = append(f, verdict{to: p})
		}
	}
	for _, p := range open {
		f = append(f, verdict{to: p, allow: true})
	}
	return f
}

// floorRanges gives the IPv4 ranges of a floor, without those that lie in another: a node's own addresses may be many
// of its pool, and change with every sandbox.
func floorRanges(floor policy.Floor) (out []netip.Prefix) {
	var all []netip.Prefix
	for _, r := range floor.Ranges() {
		all = append(all, r.Prefix)
	}
	all = onlyIPv4(all)
	slices.SortStableFunc(all, func(a, b netip.Prefix) int { return a.Bits() - b.Bits() })
	for _, p := range all {
		if !slices.ContainsFunc(out, func(o netip.Prefix) bool { return o.Overlaps(p) }) {
			out = append(out, p)
		}
	}
	return out
}

func onlyIPv4(in []netip.Prefix) (out []netip.Prefix) {
	for _, p := range in {
		if p.Addr().Is4() {
			out = append(out, p)
		}
	}
	return out
}

func overlapsAny(p netip.Prefix, others []netip.Prefix) bool {
	for _, o := range others {
		if o.Overlaps(p) {
			return true
		}
	}
	return false
}

// within tells whether f surely carries nothing that g does not. It looks at whole ranges, not at every address, so it
// may say no where a closer look would say yes; who asks then takes the longer way.
func (f forwarding) within(g forwarding) bool {
	if slices.Equal(f, g) {
		return true
	}
	for _, v := range f {
		if v.allow && !g.carriesAllOf(v.to, f) {
			return false
		}
	}
	return true
}

// carriesAllOf tells whether f surely carries all of p, but for what other refuses of it too.
func (f forwarding) carriesAllOf(p netip.Prefix, other forwarding) bool {
	for _, v := range f {
		switch {
		case !v.to.Overlaps(p):
		case v.allow:
			return v.to.Bits() <= p.Bits()
		case !other.refuses(v.to):
			return false
		}
	}
	return false
}

// refuses tells whether f surely carries nothing of p.
func (f forwarding) refuses(p netip.Prefix) bool {
	for _, v := range f {
		if !v.to.Overlaps(p) {
			continue
		}
		if v.allow {
			return false
		}
		if v.to.Bits() <= p.Bits() {
			return true
		}
	}
	return true
}

package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Action is what is done with a connection.
type Action int

// Actions. The zero one denies.
const (
	Deny      Action = iota
	Tunnel           // passed through unread
	Terminate        // TLS ends here, and the requests are changed by a Transform
)

func (a Action) String() string {
	switch a {
	case Tunnel:
		return "tunnel"
	case Terminate:
		return "terminate"
	case Deny:
	}
	return "deny"
}

// Verdict is what a plan says of a name.
type Verdict struct {
	Action    Action
	Rule      string     // the rule that decided, as people read it: "allow_domains *.example.com"
	Name      string     // the canonical name; empty when it has none
	Transform *Transform // for Terminate; read only
}

// Rules that are not an entry of a list.
const (
	RuleAllowAll = "mode allow-all"
	RuleDenyAll  = "mode deny-all"
	RuleNone     = "no rule allows it"
	RuleNoName   = "not a host name"
	RulePrivate  = "private range needs allow_cidrs"
)

// Plan is a compiled policy. Immutable; safe for use by many at once. A nil Plan denies everything.
type Plan struct {
	mode       string
	domains    names[struct{}]
	cidrs      []netip.Prefix
	transforms names[*Transform]
}

// names finds the entry for a name: the exact one, else the wildcard with the longest suffix.
type names[T any] struct {
	exact map[string]T
	below map[string]T // *.d by d
}

func (n *names[T]) add(pattern string, value T) {
	if n.exact == nil {
		n.exact, n.below = map[string]T{}, map[string]T{}
	}
	if d, wild := strings.CutPrefix(pattern, wildcard); wild {
		n.below[d] = value
	} else {
		n.exact[pattern] = value
	}
}

// find takes a canonical name.
func (n *names[T]) find(name string) (pattern string, value T, ok bool) {
	if value, ok = n.exact[name]; ok {
		return name, value, true
	}
	for rest := name; ; {
		_, parent, more := strings.Cut(rest, ".")
		if !more {
			return "", value, false
		}
		if value, ok = n.below[parent]; ok {
			return wildcard + parent, value, true
		}
		rest = parent
	}
}

// Compile makes the plan of a policy. Its error is the first Problem that Validate gives.
func Compile(p Policy) (*Plan, error) {
	p, problems := Canonical(p)
	if len(problems) > 0 {
		return nil, fmt.Errorf("network policy: %s %s", problems[0].Field, problems[0].Message)
	}
	plan := &Plan{mode: p.Mode}
	for _, d := range p.AllowDomains {
		plan.domains.add(d, struct{}{})
	}
	for _, s := range p.AllowCIDRs {
		plan.cidrs = append(plan.cidrs, netip.MustParsePrefix(s)) // canonical
	}
	slices.SortFunc(plan.cidrs, netip.Prefix.Compare)
	plan.cidrs = slices.Compact(plan.cidrs)
	for i := range p.Transforms {
		t := &p.Transforms[i]
		plan.transforms.add(t.Domain, t)
	}
	return plan, nil
}

// Mode gives the policy's mode; deny-all for a nil plan.
func (p *Plan) Mode() string {
	if p == nil || p.mode == "" {
		return ModeDenyAll
	}
	return p.mode
}

// Names tells whether a name can make a difference to what happens with a connection.
func (p *Plan) Names() bool {
	return p != nil && len(p.transforms.exact)+len(p.transforms.below)+len(p.domains.exact)+len(p.domains.below) > 0
}

// Transforms tells whether the policy has any transforms.
func (p *Plan) Transforms() bool {
	return p != nil && len(p.transforms.exact)+len(p.transforms.below) > 0
}

// CIDRs gives the ranges of allow_cidrs, sorted, each once.
func (p *Plan) CIDRs() []netip.Prefix {
	if p == nil {
		return nil
	}
	return slices.Clone(p.cidrs)
}

// Name decides by a name, as it came from whoever said it. Transforms come before allow_domains; in each, an exact name
// comes before a wildcard, and then the longest suffix. In mode allow-all, what has no canonical name is a tunnel too.
func (p *Plan) Name(name string) Verdict {
	mode := p.Mode()
	if mode == ModeDenyAll {
		canonical, _ := CanonicalName(name)
		return Verdict{Rule: RuleDenyAll, Name: canonical}
	}
	canonical, err := CanonicalName(name)
	if err == nil {
		if pattern, t, ok := p.transforms.find(canonical); ok {
			return Verdict{Action: Terminate, Rule: "transforms " + pattern, Name: canonical, Transform: t}
		}
	}
	switch {
	case mode == ModeAllowAll:
		return Verdict{Action: Tunnel, Rule: RuleAllowAll, Name: canonical}
	case err != nil:
		return Verdict{Rule: RuleNoName}
	}
	if pattern, _, ok := p.domains.find(canonical); ok {
		return Verdict{Action: Tunnel, Rule: "allow_domains " + pattern, Name: canonical}
	}
	return Verdict{Rule: RuleNone, Name: canonical}
}

// Addr decides by an address alone: mode allow-all, or the most specific range of allow_cidrs that holds it. The floor
// is not looked at; Reach does both.
func (p *Plan) Addr(a netip.Addr) (rule string, ok bool) {
	switch p.Mode() {
	case ModeAllowAll:
		return RuleAllowAll, true
	case ModeDenyAll:
		return RuleDenyAll, false
	}
	return p.listed(a)
}

func (p *Plan) listed(a netip.Addr) (rule string, ok bool) {
	if p == nil || !a.IsValid() {
		return RuleNone, false
	}
	a = a.Unmap().WithZone("")
	bits := -1
	for _, c := range p.cidrs {
		if c.Contains(a) && c.Bits() > bits {
			rule, ok, bits = "allow_cidrs "+c.String(), true, c.Bits()
		}
	}
	if !ok {
		return RuleNone, false
	}
	return rule, true
}

// Open tells whether the floor lets this plan connect to an address that it has allowed, be it by a name that resolved
// there or by the address: not below the floor, and if in a private range, then in one of allow_cidrs or one that the
// operator opens. The rule is the one that stands against it.
func (p *Plan) Open(f Floor, a netip.Addr) (rule string, ok bool) {
	if rule, denied := f.Denies(a); denied {
		return rule, false
	}
	if f.Private(a) {
		if _, listed := p.listed(a); !listed {
			return RulePrivate, false
		}
	}
	return "", true
}

// Reach decides by an address alone, above a floor: Addr and Open in one.
func (p *Plan) Reach(f Floor, a netip.Addr) (rule string, ok bool) {
	rule, ok = p.Addr(a)
	if !ok {
		return rule, false
	}
	if against, open := p.Open(f, a); !open {
		return against, false
	}
	return rule, true
}

// String shows a plan, one rule a line in the order of precedence, without the values that it injects. Equal plans have
// equal strings, unless they differ in nothing but such values.
func (p *Plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "mode %s\n", p.Mode())
	if p == nil {
		return b.String()
	}
	for _, group := range []struct {
		prefix string
		m      map[string]*Transform
	}{{"", p.transforms.exact}, {wildcard, p.transforms.below}} {
		for _, d := range slices.Sorted(maps.Keys(group.m)) {
			t := group.m[d]
			fmt.Fprintf(&b, "transform %s%s inject %s strip %s\n", group.prefix, d,
				slices.Sorted(maps.Keys(lowerKeys(t.Inject))), lowerSorted(t.Strip))
		}
	}
	for _, d := range slices.Sorted(maps.Keys(p.domains.exact)) {
		fmt.Fprintf(&b, "domain %s\n", d)
	}
	for _, d := range slices.Sorted(maps.Keys(p.domains.below)) {
		fmt.Fprintf(&b, "domain %s%s\n", wildcard, d)
	}
	for _, c := range p.cidrs {
		fmt.Fprintf(&b, "cidr %s\n", c)
	}
	return b.String()
}

// GoString is String: %#v must not show secrets.
func (p *Plan) GoString() string { return p.String() }

package policy

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Bounds of a policy's lists.
const (
	MaxDomains    = 50
	MaxCIDRs      = 10
	MaxTransforms = 20
	MaxHeaders    = 50 // injected, and stripped, by one transform
)

// Problem is one fault of a policy. Field is the JSON field within the policy, as transforms[0].inject_headers.X.
// Message continues it to a sentence and holds no header value.
type Problem struct {
	Field   string
	Message string
}

// Validate gives every fault of a policy, in the order of its fields; none for a policy that Compile takes.
func Validate(p Policy) []Problem {
	_, problems := Canonical(p)
	return problems
}

// Canonical gives a policy with its names and ranges in canonical form, and its faults as Validate does. What has a
// fault is left as it is given. The policy given is not changed, and shares nothing with the result.
func Canonical(p Policy) (Policy, []Problem) {
	var c checker
	out := Policy{Mode: p.Mode}
	switch p.Mode {
	case ModeAllowAll, ModeDenyAll:
		if len(p.AllowDomains) > 0 {
			c.add("allow_domains", errCustomOnly)
		}
		if len(p.AllowCIDRs) > 0 {
			c.add("allow_cidrs", errCustomOnly)
		}
		if p.Mode == ModeDenyAll && len(p.Transforms) > 0 {
			c.add("transforms", errors.New("allows its domains, which mode deny-all rules out"))
		}
	case ModeCustom:
	default:
		c.add("mode", errors.New("must be allow-all, deny-all or custom"))
	}
	out.AllowDomains = c.list("allow_domains", p.AllowDomains, MaxDomains, canonicalPattern)
	out.AllowCIDRs = c.list("allow_cidrs", p.AllowCIDRs, MaxCIDRs, canonicalCIDR)
	out.Transforms = c.transforms(p.Transforms)
	return out, c.problems
}

var errCustomOnly = errors.New("is for mode custom only")

// checker collects problems.
type checker struct{ problems []Problem }

func (c *checker) add(field string, err error) {
	if err != nil {
		c.problems = append(c.problems, Problem{Field: field, Message: err.Error()})
	}
}

// tooMany notes a list over its limit; its entries are then not looked at, so that work is bounded.
func (c *checker) tooMany(field string, n, limit int) bool {
	if n > limit {
		c.add(field, fmt.Errorf("must have at most %d entries, has %d", limit, n))
	}
	return n > limit
}

func (c *checker) list(field string, in []string, limit int, canonical func(string) (string, error)) []string {
	out := slices.Clone(in)
	if c.tooMany(field, len(in), limit) {
		return out
	}
	for i, s := range in {
		v, err := canonical(s)
		if err != nil {
			c.add(fmt.Sprintf("%s[%d]", field, i), err)
			continue
		}
		out[i] = v
	}
	return out
}

func (c *checker) transforms(in []Transform) []Transform {
	if c.tooMany("transforms", len(in), MaxTransforms) {
		return slices.Clone(in)
	}
	var out []Transform
	seen := map[string]bool{}
	for i, t := range in {
		field := fmt.Sprintf("transforms[%d]", i)
		canonical := t.clone()
		name, err := canonicalPattern(t.Domain)
		switch {
		case err != nil:
			c.add(field+".domain", err)
		case seen[name]:
			c.add(field+".domain", errors.New("has a transform already"))
		default:
			canonical.Domain, seen[name] = name, true
		}
		c.inject(field+".inject_headers", t.Inject)
		c.strip(field+".strip_headers", t.Strip)
		out = append(out, *canonical)
	}
	return out
}

func (c *checker) inject(field string, headers map[string]string) {
	if c.tooMany(field, len(headers), MaxHeaders) {
		return
	}
	seen := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		err := checkHeaderName(name, seen)
		if err == nil {
			err = checkHeaderValue(headers[name])
		}
		c.add(field+"."+name, err)
	}
}

func (c *checker) strip(field string, names []string) {
	if c.tooMany(field, len(names), MaxHeaders) {
		return
	}
	seen := map[string]bool{}
	for i, name := range names {
		c.add(fmt.Sprintf("%s[%d]", field, i), checkHeaderName(name, seen))
	}
}

// canonicalCIDR refuses bits beyond the prefix: they say that somebody meant another range than would be opened.
func canonicalCIDR(s string) (string, error) {
	p, err := parseCIDR(s)
	if err != nil {
		return "", err
	}
	return p.String(), nil
}

func parseCIDR(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil || strings.Contains(s, "%"):
		return netip.Prefix{}, errors.New("must be an IPv4 or IPv6 range in CIDR form, such as 192.0.2.0/24")
	case p.Addr().Is4In6():
		return netip.Prefix{}, errors.New("must be written as an IPv4 range")
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("has bits set beyond its prefix; the range is %s", p.Masked())
	}
	return p, nil
}

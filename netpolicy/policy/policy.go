package policy

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
)

// Modes of a policy.
const (
	ModeAllowAll = "allow-all"
	ModeDenyAll  = "deny-all"
	ModeCustom   = "custom"
)

// Policy is an egress policy as the API takes it, with header values in clear. An omitted policy is AllowAll.
type Policy struct {
	Mode         string
	AllowDomains []string // mode custom only; host names, or *. and a host name
	AllowCIDRs   []string // mode custom only
	Transforms   []Transform
}

// Transform is what is done to requests to a domain. Its domain is allowed without being listed.
type Transform struct {
	Domain string            // as in AllowDomains
	Inject map[string]string // header name to value; the values are secrets
	Strip  []string          // header names
}

// AllowAll is the policy of a sandbox that was given none.
func AllowAll() Policy { return Policy{Mode: ModeAllowAll} }

// String shows a transform without the values that it injects.
func (t Transform) String() string {
	return fmt.Sprintf("%s inject %s strip %s", t.Domain, slices.Sorted(maps.Keys(t.Inject)), t.Strip)
}

// GoString is String: %#v must not show secrets either.
func (t Transform) GoString() string { return t.String() }

// LogValue is String, for log/slog.
func (t Transform) LogValue() slog.Value { return slog.StringValue(t.String()) }

// String shows a policy without the values that it injects.
func (p Policy) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "mode %s domains %s cidrs %s", p.Mode, p.AllowDomains, p.AllowCIDRs)
	for _, t := range p.Transforms {
		fmt.Fprintf(&b, " transform (%s)", t)
	}
	return b.String()
}

// GoString is String: %#v must not show secrets either.
func (p Policy) GoString() string { return p.String() }

// LogValue is String, for log/slog.
func (p Policy) LogValue() slog.Value { return slog.StringValue(p.String()) }

// Same tells whether two transforms do the same to the same domain; nil is the same as nil only. Header names compare
// without case, and their order does not matter.
func (t *Transform) Same(o *Transform) bool {
	if t == nil || o == nil {
		return t == o
	}
	return t.Domain == o.Domain && maps.Equal(lowerKeys(t.Inject), lowerKeys(o.Inject)) &&
		slices.Equal(lowerSorted(t.Strip), lowerSorted(o.Strip))
}

func (t *Transform) clone() *Transform {
	return &Transform{Domain: t.Domain, Inject: maps.Clone(t.Inject), Strip: slices.Clone(t.Strip)}
}

func lowerKeys(m map[string]string) map[string]string {
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[strings.ToLower(k)] = v
	}
	return out
}

func lowerSorted(names []string) []string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = strings.ToLower(n)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

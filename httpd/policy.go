package httpd

import (
	"net/netip"
	"strings"

	"stillframe/fsm"
)

// Bounds of a network policy.
const (
	maxDomains     = 50
	maxCIDRs       = 10
	maxTransforms  = 20
	maxHeaders     = 50      // injected, and stripped, by one transform
	maxHeaderName  = 128     // bytes
	maxHeaderValue = 8 << 10 // bytes
	redacted       = "[redacted]"
)

// policy reads a network policy; nil when omitted. Names of domains come out in lower case, the one form that is
// compared later.
func (o *object) policy(name string) *fsm.NetworkPolicy {
	c := o.child(name)
	if c == nil {
		return nil
	}
	p := &fsm.NetworkPolicy{}
	p.Mode, _ = c.required("mode")
	switch p.Mode {
	case "", "allow-all", "deny-all", "custom":
	default:
		c.bad("mode", "must be allow-all, deny-all or custom")
	}
	p.AllowDomains = c.strings("allow_domains", maxDomains, c.errs.domain)
	p.AllowCIDRs = c.strings("allow_cidrs", maxCIDRs, c.errs.cidr)
	p.Transforms = c.transforms("transforms")
	if p.Mode == "allow-all" || p.Mode == "deny-all" {
		if len(p.AllowDomains) > 0 {
			c.bad("allow_domains", "is for mode custom only")
		}
		if len(p.AllowCIDRs) > 0 {
			c.bad("allow_cidrs", "is for mode custom only")
		}
	}
	if p.Mode == "deny-all" && len(p.Transforms) > 0 {
		c.bad("transforms", "allows its domains, which mode deny-all rules out")
	}
	return p
}

func (o *object) transforms(name string) []fsm.Transform {
	var out []fsm.Transform
	domains := map[string]bool{}
	for _, c := range o.children(name, maxTransforms) {
		var t fsm.Transform
		if domain, ok := c.required("domain"); ok {
			t.Domain = c.errs.domain(c.field("domain"), domain)
			if domains[t.Domain] {
				c.bad("domain", "has a transform already")
			}
			domains[t.Domain] = true
		}
		t.InjectHeaders = c.injected("inject_headers")
		t.StripHeaders = c.stripped("strip_headers")
		out = append(out, t)
	}
	return out
}

// injected reads header names and their secret values; no error holds a value.
func (o *object) injected(name string) map[string]string {
	c := o.child(name)
	if c == nil || len(c.members) == 0 {
		return nil
	}
	if len(c.members) > maxHeaders {
		o.bad(name, "must have at most %d entries, has %d", maxHeaders, len(c.members))
		return nil
	}
	out := make(map[string]string, len(c.members))
	seen := map[string]bool{}
	for _, header := range c.names() {
		value, ok := c.str(header)
		if wrong := headerNameError(header, seen); wrong != "" {
			c.bad(header, "%s", wrong)
		}
		if !ok {
			continue
		}
		if wrong := headerValueError(value); wrong != "" {
			c.bad(header, "%s", wrong)
		}
		out[header] = value
	}
	return out
}

func (o *object) stripped(name string) []string {
	seen := map[string]bool{}
	return o.strings(name, maxHeaders, func(field, header string) string {
		if wrong := headerNameError(header, seen); wrong != "" {
			o.errs.add(field, "%s", wrong)
		}
		return header
	})
}

// ownHeaders belong to a connection or to the framing of a message; to change them would change where a request ends or
// whom it is for.
var ownHeaders = map[string]bool{
	"connection": true, "keep-alive": true, "proxy-authenticate": true, "proxy-authorization": true,
	"proxy-connection": true, "te": true, "trailer": true, "transfer-encoding": true, "upgrade": true,
	"host": true, "content-length": true,
}

// headerNameError says what is wrong with a header's name, empty for nothing, and notes it in seen.
func headerNameError(name string, seen map[string]bool) string {
	lower := strings.ToLower(name)
	defer func() { seen[lower] = true }()
	switch {
	case name == "" || len(name) > maxHeaderName || strings.ContainsFunc(name, notToken):
		return "is no header name"
	case ownHeaders[lower]:
		return "may not be changed: it belongs to the connection or to the framing"
	case seen[lower]:
		return "is given twice (header names compare without case)"
	}
	return ""
}

func notToken(r rune) bool {
	letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
	return !letter && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
}

func headerValueError(value string) string {
	switch {
	case value == redacted:
		return "is the placeholder " + redacted + " that answers carry in place of a secret: send the value itself"
	case len(value) > maxHeaderValue:
		return "is too long for a header value"
	case strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }):
		return "holds a control character, such as a line break"
	}
	return ""
}

// domain checks a host name or *. and a host name, and gives it in lower case.
func (e *fieldErrors) domain(field, value string) string {
	host := strings.TrimPrefix(value, "*.")
	if wrong := hostError(host); wrong != "" {
		e.add(field, "%s", wrong)
	}
	return strings.ToLower(value)
}

func hostError(host string) string {
	if len(host) > 253 {
		return "is longer than 253 characters"
	}
	if strings.ContainsFunc(host, func(r rune) bool { return r > 0x7e }) {
		return "must be ASCII: write an international name in its xn-- form"
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return "must be a host name; addresses go into allow_cidrs"
	}
	labels := strings.Split(host, ".")
	if len(labels) < 2 {
		return "must be a host name of at least two labels, or *. and one"
	}
	for _, l := range labels {
		if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' || strings.ContainsFunc(l, notLabel) {
			return "must be a host name: labels of 1 to 63 letters, digits and inner dashes; no port, no final dot"
		}
	}
	// Resolvers read 127.1 or 0x7f.0.0.1 as an address, so a name whose last label is a number is none.
	if last := labels[len(labels)-1]; isNumber(last) {
		return "must be a host name, which does not end in a number"
	}
	return ""
}

func notLabel(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-'
}

func isNumber(label string) bool {
	lower := strings.ToLower(label)
	if hex, ok := strings.CutPrefix(lower, "0x"); ok {
		return !strings.ContainsFunc(hex, func(r rune) bool { return !strings.ContainsRune("0123456789abcdef", r) })
	}
	return !strings.ContainsFunc(lower, func(r rune) bool { return r < '0' || r > '9' })
}

// cidr checks an address range and gives it in its canonical form. Bits beyond the prefix are refused: they say that
// somebody meant another range than the one that would be opened.
func (e *fieldErrors) cidr(field, value string) string {
	p, err := netip.ParsePrefix(value)
	switch {
	case err != nil:
		e.add(field, "must be an IPv4 or IPv6 range in CIDR form, such as 192.0.2.0/24")
		return value
	case p.Addr().Is4In6():
		e.add(field, "must be written as an IPv4 range")
		return value
	case p != p.Masked():
		e.add(field, "has bits set beyond its prefix; the range is %s", p.Masked())
	}
	return p.String()
}

// injectsHeaders names the first transform that injects headers, empty for none.
func injectsHeaders(p *fsm.NetworkPolicy) (index int, found bool) {
	if p == nil {
		return 0, false
	}
	for i, t := range p.Transforms {
		if len(t.InjectHeaders) > 0 {
			return i, true
		}
	}
	return 0, false
}

// redactPolicy is a policy as answers show it: the names of injected headers, not their values.
func redactPolicy(p *fsm.NetworkPolicy) *fsm.NetworkPolicy {
	if p == nil {
		return nil
	}
	out := *p
	out.Transforms = make([]fsm.Transform, len(p.Transforms))
	for i, t := range p.Transforms {
		if t.InjectHeaders != nil {
			hidden := make(map[string]string, len(t.InjectHeaders))
			for name := range t.InjectHeaders {
				hidden[name] = redacted
			}
			t.InjectHeaders = hidden
		}
		out.Transforms[i] = t
	}
	return &out
}

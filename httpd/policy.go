package httpd

import (
	"fmt"
	"strings"

	"stillframe/fsm"
	"stillframe/netpolicy/policy"
)

// policy reads a network policy; nil when omitted. Names and ranges come out in canonical form, header values in clear.
func (o *object) policy(name string) *fsm.NetworkPolicy {
	c := o.child(name)
	if c == nil {
		return nil
	}
	return c.asPolicy()
}

// asPolicy reads the object itself as a network policy. What JSON can get wrong is found here; what the policy means,
// and what is wrong with that, is for package policy, whose word counts for the gate, too.
func (o *object) asPolicy() *fsm.NetworkPolicy {
	var given policy.Policy
	given.Mode, _ = o.required("mode")
	given.AllowDomains = o.positions("allow_domains", policy.MaxDomains)
	given.AllowCIDRs = o.positions("allow_cidrs", policy.MaxCIDRs)
	for i, c := range o.policyTransforms() {
		t := policy.Transform{}
		if c != nil {
			t.Domain, _ = c.required("domain")
			t.Inject = c.injected("inject_headers")
			t.Strip = c.positions("strip_headers", policy.MaxHeaders)
		} else {
			o.errs.known(fmt.Sprintf("%stransforms[%d].domain", o.prefix, i))
		}
		given.Transforms = append(given.Transforms, t)
	}
	canonical, problems := policy.Canonical(given)
	for _, p := range problems {
		o.errs.addOnce(o.policyField(p.Field), p.Message)
	}
	return fromPolicy(canonical)
}

// positions is strings, with an empty one in the place of what is no string, so that indexes stay what the client
// knows.
func (o *object) positions(name string, most int) []string {
	var out []string
	for i, raw := range o.list(name, most) {
		s, ok := decodeString(raw)
		if !ok {
			o.errs.add(fmt.Sprintf("%s[%d]", o.field(name), i), "must be a string")
		}
		out = append(out, s)
	}
	return out
}

// policyTransforms gives the transforms as objects, with nil in the place of what is none.
func (o *object) policyTransforms() []*object {
	var out []*object
	for i, raw := range o.list("transforms", policy.MaxTransforms) {
		field := fmt.Sprintf("%s[%d]", o.field("transforms"), i)
		c := &object{prefix: field + ".", errs: o.errs}
		if !c.fill(raw) {
			o.errs.add(field, "must be an object")
			c = nil
		}
		out = append(out, c)
	}
	return out
}

// injected reads header names and their secret values; no error holds a value.
func (o *object) injected(name string) map[string]string {
	c := o.child(name)
	if c == nil || len(c.members) == 0 {
		return nil
	}
	if len(c.members) > policy.MaxHeaders {
		o.bad(name, "must have at most %d entries, has %d", policy.MaxHeaders, len(c.members))
		return nil
	}
	out := make(map[string]string, len(c.members))
	for _, header := range c.names() {
		out[header], _ = c.str(header)
	}
	return out
}

// policyField is a field of a policy as errors of this package name it: a header's name, which is the client's, may be
// long or odd.
func (o *object) policyField(field string) string {
	const headers = ".inject_headers."
	if at, header, ok := strings.Cut(field, headers); ok {
		c := object{prefix: o.prefix + at + headers}
		return c.field(header)
	}
	return o.prefix + field
}

func fromPolicy(p policy.Policy) *fsm.NetworkPolicy {
	out := &fsm.NetworkPolicy{Mode: p.Mode, AllowDomains: p.AllowDomains, AllowCIDRs: p.AllowCIDRs}
	for _, t := range p.Transforms {
		out.Transforms = append(out.Transforms, fsm.Transform{
			Domain: t.Domain, InjectHeaders: t.Inject, StripHeaders: t.Strip,
		})
	}
	return out
}

// injectsHeaders tells whether a policy holds secrets.
func injectsHeaders(p *fsm.NetworkPolicy) bool {
	if p == nil {
		return false
	}
	for _, t := range p.Transforms {
		if len(t.InjectHeaders) > 0 {
			return true
		}
	}
	return false
}

// seal makes a policy fit for the log. The hash of a request with secrets must not help in guessing them; it stays the
// same for a retry, while what is sealed does not.
func (s *Server) seal(c *call, p *fsm.NetworkPolicy, rq *fsm.Request) (*fsm.NetworkPolicy, error) {
	if !injectsHeaders(p) {
		return p, nil
	}
	if rq.Key != "" {
		rq.BodyHash = s.cfg.Secrets.RequestHash(rq.BodyHash)
	}
	return s.cfg.Secrets.SealPolicy(c.org.ID, p)
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
				hidden[name] = policy.Redacted
			}
			t.InjectHeaders = hidden
		}
		out.Transforms[i] = t
	}
	return &out
}

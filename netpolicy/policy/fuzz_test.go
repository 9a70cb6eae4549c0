package policy_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stillframe/netpolicy/policy"
)

// Whatever string a guest sends for a name: canonical is canonical, and holds nothing that anybody reads differently.
func FuzzCanonicalName(f *testing.F) {
	for _, s := range []string{"example.com", "A.b.", "a\x00.b", "1.2.3.4", "xn--bcher-kva.example", "bücher.example",
		"a..b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, err := policy.CanonicalName(s)
		if err != nil {
			require.Empty(t, name)
			if len(s) > 12 {
				require.NotContains(t, err.Error(), s)
			}
			return
		}
		again, err := policy.CanonicalName(name)
		require.NoError(t, err)
		require.Equal(t, name, again)
		require.True(t, strings.EqualFold(strings.TrimSuffix(s, "."), name))
		require.Empty(t, strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-."))
		require.LessOrEqual(t, len(name), 253)
		_, err = netip.ParseAddr(name)
		require.Error(t, err)
	})
}

// The matcher against a slow one that reads the rule as it is written.
func FuzzMatcher(f *testing.F) {
	f.Add("example.com", "*.example.com", "a.example.com", "api.example.com")
	f.Add("a.b", "*.a.b", "*.c.a.b", "x.c.a.b.")
	f.Add("*.a.b", "a.b", "*.x.a.b", "X.a.B")
	f.Fuzz(func(t *testing.T, domain, transform, other, name string) {
		p := policy.Policy{Mode: policy.ModeCustom, AllowDomains: []string{domain},
			Transforms: []policy.Transform{{Domain: transform}, {Domain: other}}}
		plan, err := policy.Compile(p)
		if err != nil {
			return
		}
		canonical, problems := policy.Canonical(p)
		require.Empty(t, problems)
		v := plan.Name(name)
		want := policy.Deny
		if n, err := policy.CanonicalName(name); err == nil {
			if matches(canonical.AllowDomains[0], n) {
				want = policy.Tunnel
			}
			best := ""
			for _, tr := range canonical.Transforms {
				if matches(tr.Domain, n) && (tr.Domain == n || best != n && len(tr.Domain) > len(best)) {
					best, want = tr.Domain, policy.Terminate
				}
			}
			if want == policy.Terminate {
				require.Equal(t, best, v.Transform.Domain)
			}
		}
		require.Equal(t, want, v.Action)
	})
}

func matches(pattern, name string) bool {
	if d, wild := strings.CutPrefix(pattern, "*."); wild {
		return strings.HasSuffix(name, "."+d)
	}
	return name == pattern
}

// Validate and Compile agree, and neither shows a value.
func FuzzValidate(f *testing.F) {
	f.Add("custom", "a.example", "10.0.0.0/8", "b.example", "X-Key", "value", "Cookie")
	f.Add("allow-all", "", "", "*.b.example", "Host", "a\r\nb", "x y")
	f.Add("deny-all", "1.2.3.4", "10.0.0.1/8", "", "", "[redacted]", "TE")
	f.Fuzz(func(t *testing.T, mode, domain, cidr, target, header, value, strip string) {
		p := policy.Policy{Mode: mode, Transforms: []policy.Transform{
			{Domain: target, Inject: map[string]string{header: "s3cret-" + value}, Strip: []string{strip}}}}
		if domain != "" {
			p.AllowDomains = []string{domain}
		}
		if cidr != "" {
			p.AllowCIDRs = []string{cidr}
		}
		problems := policy.Validate(p)
		plan, err := policy.Compile(p)
		require.Equal(t, len(problems) == 0, err == nil)
		for _, problem := range problems {
			require.NotContains(t, problem.Message, "s3cret-")
		}
		if err != nil {
			require.Nil(t, plan)
			return
		}
		require.NotContains(t, plan.String(), "s3cret-")
		canonical, _ := policy.Canonical(p)
		again, err := policy.Compile(canonical)
		require.NoError(t, err)
		require.Equal(t, plan.String(), again.String())
		for h, v := range canonical.Transforms[0].Inject {
			require.NotContains(t, h+v, "\n")
			require.NotContains(t, h+v, "\r")
			require.NotContains(t, h+v, "\x00")
		}
	})
}

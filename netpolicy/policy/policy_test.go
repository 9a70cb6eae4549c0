package policy_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stillframe/netpolicy/policy"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

func prefixes(ss ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func compile(t testing.TB, p policy.Policy) *policy.Plan {
	t.Helper()
	plan, err := policy.Compile(p)
	require.NoError(t, err)
	return plan
}

func TestCanonicalName(t *testing.T) {
	label63 := strings.Repeat("a", 63)
	long := strings.Repeat("a.", 126) + "a" // 253
	for given, want := range map[string]string{
		"example.com": "example.com", "EXAMPLE.com": "example.com", "example.com.": "example.com", "a.b": "a.b",
		"xn--bcher-kva.example": "xn--bcher-kva.example", "XN--BCHER-KVA.Example.": "xn--bcher-kva.example",
		"a-b.c1.example": "a-b.c1.example", "1.example": "1.example", "a.1a": "a.1a", label63 + ".com": label63 + ".com",
		"127.0.0.1.nip.io": "127.0.0.1.nip.io", long: long, long + ".": long, "a.0xg": "a.0xg",
	} {
		got, err := policy.CanonicalName(given)
		require.NoError(t, err, given)
		require.Equal(t, want, got)
	}
	for _, bad := range []string{
		"", ".", "..", "*", "*.example.com", "com", "com.", "localhost", ".example.com", "example.com..", "a..b", "-a.com",
		"a-.com", "a_b.com", "example.com:443", "https://example.com", "example.com/", "a b.com", " example.com",
		"example.com ", "exa*mple.com", "bücher.example", "ｅxample.com", "example。com", "example.com\x00",
		"example.com\x00.evil.com", "1.2.3.4", "1.2.3.4.", "1.2", "127.1", "0x7f.1", "0x7f.0.0.0x1", "a.0x", "a.0", "a.010",
		"2130706433", "[::1]", "::1", "::ffff:1.2.3.4", "fe80::1%eth0", label63 + "a.com", long + "a", "a.com\n", "a.com\r",
		"a%2ecom.com", "user@a.com", "\u0131.com", "\u212a.com", "a.com\u200d", "a.com\x7f", "a.com,b.com",
	} {
		_, err := policy.CanonicalName(bad)
		require.Error(t, err, "%q", bad)
	}
}

func TestNames(t *testing.T) {
	plan := compile(t, policy.Policy{
		Mode: policy.ModeCustom, AllowDomains: []string{"example.com", "*.Wild.example.", "*.deep.wild.example",
			"both.tf.example"},
		Transforms: []policy.Transform{{Domain: "*.tf.example"}, {Domain: "api.tf.example"}, {Domain: "*.a.tf.example"}},
	})
	for name, want := range map[string]string{
		"example.com": "tunnel allow_domains example.com", "Example.COM.": "tunnel allow_domains example.com",
		"www.example.com": "deny no rule allows it", "notexample.com": "deny no rule allows it",
		"example.com.evil.net": "deny no rule allows it", "example.com..": "deny not a host name",
		"wild.example": "deny no rule allows it", "a.wild.example": "tunnel allow_domains *.wild.example",
		"a.b.c.wild.example": "tunnel allow_domains *.wild.example", "awild.example": "deny no rule allows it",
		"x.deep.wild.example": "tunnel allow_domains *.deep.wild.example",
		"deep.wild.example":   "tunnel allow_domains *.wild.example", ".wild.example": "deny not a host name",
		"api.tf.example": "terminate transforms api.tf.example", "b.tf.example": "terminate transforms *.tf.example",
		"x.api.tf.example": "terminate transforms *.tf.example", "a.tf.example": "terminate transforms *.tf.example",
		"x.a.tf.example": "terminate transforms *.a.tf.example", "tf.example": "deny no rule allows it",
		"both.tf.example": "terminate transforms *.tf.example", "": "deny not a host name", "1.2.3.4": "deny not a host name",
		"example.com\x00": "deny not a host name", "*.wild.example": "deny not a host name",
	} {
		v := plan.Name(name)
		require.Equal(t, want, v.Action.String()+" "+v.Rule, name)
		require.Equal(t, v.Action == policy.Terminate, v.Transform != nil, name)
		if v.Transform != nil {
			require.Equal(t, "transforms "+v.Transform.Domain, v.Rule)
		}
	}
}

func TestModes(t *testing.T) {
	addr := netip.MustParseAddr("192.0.2.1")
	for _, c := range []struct {
		policy     policy.Policy
		name, addr bool
	}{
		{policy.AllowAll(), true, true},
		{policy.Policy{Mode: policy.ModeDenyAll}, false, false},
		{policy.Policy{Mode: policy.ModeCustom}, false, false},
		{policy.Policy{Mode: policy.ModeCustom, AllowCIDRs: []string{"192.0.2.0/24"}}, false, true},
		{policy.Policy{Mode: policy.ModeCustom, AllowCIDRs: []string{"0.0.0.0/0"}}, false, true},
		{policy.Policy{Mode: policy.ModeCustom, AllowDomains: []string{"a.example"}}, true, false},
	} {
		plan := compile(t, c.policy)
		require.Equal(t, c.name, plan.Name("a.example").Action == policy.Tunnel, c.policy)
		_, ok := plan.Addr(addr)
		require.Equal(t, c.addr, ok, c.policy)
	}
	for _, none := range []*policy.Plan{nil, {}} {
		require.Equal(t, policy.ModeDenyAll, none.Mode())
		require.Equal(t, policy.Deny, none.Name("a.example").Action)
		_, ok := none.Addr(addr)
		require.False(t, ok)
		_, ok = none.Reach(policy.Floor{}, addr)
		require.False(t, ok)
	}
	all := compile(t, policy.Policy{Mode: policy.ModeAllowAll, Transforms: []policy.Transform{{Domain: "a.example"}}})
	require.Equal(t, policy.Terminate, all.Name("A.example.").Action)
	require.Equal(t, policy.Tunnel, all.Name("_srv._tcp.b.example").Action, "needs no canonical name")
}

func TestMostSpecificRange(t *testing.T) {
	plan := compile(t, policy.Policy{Mode: policy.ModeCustom, AllowCIDRs: []string{"192.0.2.0/24", "0.0.0.0/0",
		"2001:db8::/32"}})
	for addr, want := range map[string]string{
		"192.0.2.9": "allow_cidrs 192.0.2.0/24", "192.0.3.9": "allow_cidrs 0.0.0.0/0",
		"::ffff:192.0.2.9": "allow_cidrs 192.0.2.0/24", "2001:db8::1": "allow_cidrs 2001:db8::/32",
		"2001:db8::1%eth0": "allow_cidrs 2001:db8::/32", "2001:db9::1": policy.RuleNone,
	} {
		rule, ok := plan.Addr(netip.MustParseAddr(addr))
		require.Equal(t, want, rule, addr)
		require.Equal(t, want != policy.RuleNone, ok)
	}
	_, ok := plan.Addr(netip.Addr{})
	require.False(t, ok)
}

func TestFloor(t *testing.T) {
	floor := policy.NewFloor(prefixes("198.51.100.7/32", "2001:db8::7/128"), prefixes("198.51.100.8/32",
		"::ffff:203.0.113.8/128"),
		prefixes("172.30.0.0/16"))
	plans := map[string]*policy.Plan{
		"all":    compile(t, policy.AllowAll()),
		"custom": compile(t, policy.Policy{Mode: policy.ModeCustom, AllowCIDRs: []string{"0.0.0.0/0", "::/0"}}),
	}
	for _, a := range []string{
		"0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.0.1", "::ffff:127.0.0.1", "169.254.169.254", "::ffff:169.254.169.254",
		"224.0.0.1", "239.1.1.1", "255.255.255.255", "240.0.0.1", "198.51.100.7", "::ffff:198.51.100.7", "198.51.100.8",
		"203.0.113.8", "172.30.4.4", "100.100.100.200", "168.63.129.16", "::", "::1", "::1%lo", "fe80::1", "fe80::1%eth0",
		"ff02::1", "fd00:ec2::254", "2001:db8::7", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::1",
		"2001:0:1::1", "fec0::1",
	} {
		for name, plan := range plans {
			rule, ok := plan.Reach(floor, netip.MustParseAddr(a))
			require.False(t, ok, "%s %s", name, a)
			require.True(t, strings.HasPrefix(rule, "floor "), rule)
			_, ok = plan.Open(floor, netip.MustParseAddr(a))
			require.False(t, ok)
		}
	}
	_, denied := floor.Denies(netip.Addr{})
	require.True(t, denied)
	for _, a := range []string{"192.0.2.1", "198.51.100.9", "2001:db8::8", "2606::1"} {
		for name, plan := range plans {
			_, ok := plan.Reach(floor, netip.MustParseAddr(a))
			require.True(t, ok, "%s %s", name, a)
		}
	}
}

func TestPrivateRanges(t *testing.T) {
	var floor policy.Floor
	all := compile(t, policy.AllowAll())
	named := compile(t, policy.Policy{Mode: policy.ModeCustom, AllowDomains: []string{"a.example"},
		AllowCIDRs: []string{"10.1.0.0/16"}})
	for _, a := range []string{"10.1.2.3", "10.2.0.1", "172.16.0.1", "172.31.9.9", "192.168.1.1", "100.64.0.1", "fd00::1",
		"::ffff:10.1.2.3"} {
		addr := netip.MustParseAddr(a)
		rule, ok := all.Reach(floor, addr)
		require.False(t, ok, a)
		require.Equal(t, policy.RulePrivate, rule)
		_, ok = named.Open(floor, addr) // a name that resolved there
		require.Equal(t, strings.HasSuffix(a, "10.1.2.3"), ok, a)
	}
	opened, err := floor.OpenPrivate(prefixes("10.2.0.0/16")...)
	require.NoError(t, err)
	_, ok := all.Reach(opened, netip.MustParseAddr("10.2.0.1"))
	require.True(t, ok)
	_, ok = all.Reach(opened, netip.MustParseAddr("10.1.2.3"))
	require.False(t, ok)
	_, ok = all.Reach(floor, netip.MustParseAddr("10.2.0.1"))
	require.False(t, ok, "the floor that it was made from is unchanged")
	for _, bad := range []string{"127.0.0.0/8", "0.0.0.0/0", "10.0.0.0/7", "192.0.2.0/24", "169.254.0.0/16", "::/0"} {
		_, err := floor.OpenPrivate(prefixes(bad)...)
		require.Error(t, err, bad)
	}
	_, err = floor.OpenPrivate(netip.Prefix{})
	require.Error(t, err)
	// What the operator opens does not reach below the floor.
	mine, err := policy.NewFloor(prefixes("10.2.0.7/32"), nil, nil).OpenPrivate(prefixes("10.2.0.0/16")...)
	require.NoError(t, err)
	_, ok = all.Reach(mine, netip.MustParseAddr("10.2.0.7"))
	require.False(t, ok)
}

func TestProblems(t *testing.T) {
	many := func(n int) (out []string) {
		for i := range n {
			out = append(out, fmt.Sprintf("h%d.example", i))
		}
		return out
	}
	headers := map[string]string{}
	for i := range 51 {
		headers[fmt.Sprintf("X-%d", i)] = "v"
	}
	transforms := func(n int) (out []policy.Transform) {
		for i := range n {
			out = append(out, policy.Transform{Domain: fmt.Sprintf("h%d.example", i)})
		}
		return out
	}
	for _, c := range []struct {
		p    policy.Policy
		want []string
	}{
		{policy.Policy{}, []string{"mode"}},
		{policy.Policy{Mode: "Custom"}, []string{"mode"}},
		{policy.Policy{Mode: "allow-all", AllowDomains: []string{"a.b"}, AllowCIDRs: []string{"1.0.0.0/8"}},
			[]string{"allow_domains", "allow_cidrs"}},
		{policy.Policy{Mode: "deny-all", Transforms: transforms(1)}, []string{"transforms"}},
		{policy.Policy{Mode: "allow-all", Transforms: transforms(1)}, nil},
		{policy.Policy{Mode: "custom", AllowDomains: many(50), Transforms: transforms(20)}, nil},
		{policy.Policy{Mode: "custom", AllowDomains: many(51)}, []string{"allow_domains"}},
		{policy.Policy{Mode: "custom", Transforms: transforms(21)}, []string{"transforms"}},
		{policy.Policy{Mode: "custom", AllowCIDRs: many(11)}, []string{"allow_cidrs"}},
		{policy.Policy{Mode: "custom", AllowDomains: []string{"a.b", "*", "*.c.d", "*.com", "1.2.3.4", "e.f:1", "*.*.a.b"}},
			[]string{"allow_domains[1]", "allow_domains[3]", "allow_domains[4]", "allow_domains[5]", "allow_domains[6]"}},
		{policy.Policy{Mode: "custom", AllowCIDRs: []string{"10.0.0.0/8", "10.0.0.1/8", "x", "1.2.3.4", "::ffff:1.2.3.0/120",
			"fe80::%eth0/64", "10.0.0.0/08", "010.0.0.0/8", "10.0.0.0/8 "}},
			[]string{"allow_cidrs[1]", "allow_cidrs[2]", "allow_cidrs[3]", "allow_cidrs[4]", "allow_cidrs[5]", "allow_cidrs[6]",
				"allow_cidrs[7]", "allow_cidrs[8]"}},
		{policy.Policy{Mode: "custom", Transforms: []policy.Transform{{Domain: "a.b"}, {Domain: "A.b."}, {Domain: ""}}},
			[]string{"transforms[1].domain", "transforms[2].domain"}},
		{policy.Policy{Mode: "custom", Transforms: []policy.Transform{{Domain: "a.b", Inject: headers, Strip: many(51)}}},
			[]string{"transforms[0].inject_headers", "transforms[0].strip_headers"}},
		{policy.Policy{Mode: "custom", Transforms: []policy.Transform{{Domain: "a.b",
			Inject: map[string]string{"A": "ok", "Host": "x", "b c": "x", "N": "a\r\nb", "R": "[redacted]", "a": "x",
				"Z": "x\x00",
				"S": " x", "content-length": "1", "": "x", "Trailer": "y"},
			Strip: []string{"A", "a", "Connection", "B"}}}},
			[]string{"transforms[0].inject_headers.", "transforms[0].inject_headers.Host", "transforms[0].inject_headers.N",
				"transforms[0].inject_headers.R", "transforms[0].inject_headers.S", "transforms[0].inject_headers.Trailer",
				"transforms[0].inject_headers.Z", "transforms[0].inject_headers.a", "transforms[0].inject_headers.b c",
				"transforms[0].inject_headers.content-length", "transforms[0].strip_headers[1]",
				"transforms[0].strip_headers[2]"}},
	} {
		var got []string
		for _, p := range policy.Validate(c.p) {
			got = append(got, p.Field)
			require.NotEmpty(t, p.Message)
		}
		require.Equal(t, c.want, got)
		_, err := policy.Compile(c.p)
		require.Equal(t, len(c.want) == 0, err == nil)
		if err != nil {
			require.Contains(t, err.Error(), c.want[0], "names the field")
		}
	}
}

func TestCanonicalPolicyIsACopy(t *testing.T) {
	given := policy.Policy{Mode: "custom", AllowDomains: []string{"A.Example."}, AllowCIDRs: []string{"2001:DB8:0::/48"},
		Transforms: []policy.Transform{{Domain: "*.B.Example", Inject: map[string]string{"X": "1"}, Strip: []string{"Y"}}}}
	got, problems := policy.Canonical(given)
	require.Empty(t, problems)
	require.Equal(t, policy.Policy{Mode: "custom", AllowDomains: []string{"a.example"},
		AllowCIDRs: []string{"2001:db8::/48"},
		Transforms: []policy.Transform{{Domain: "*.b.example", Inject: map[string]string{"X": "1"},
			Strip: []string{"Y"}}}}, got)
	got.Transforms[0].Inject["X"], got.Transforms[0].Strip[0], got.AllowDomains[0] = "2", "Z", "c.d"
	require.Equal(t, "1", given.Transforms[0].Inject["X"])
	require.Equal(t, "Y", given.Transforms[0].Strip[0])
	require.Equal(t, "A.Example.", given.AllowDomains[0])
}

func TestNoSecretIsShown(t *testing.T) {
	p := policy.Policy{Mode: "custom", Transforms: []policy.Transform{
		{Domain: "a.b", Inject: map[string]string{"Authorization": "s3cret", "Bad": "s3cret\n", "Host": "s3cret"}}}}
	shown := fmt.Sprintf("%v %+v %#v %s %v %#v %v", p, p, p, p, p.Transforms[0], p.Transforms, p.LogValue())
	for _, problem := range policy.Validate(p) {
		shown += problem.Field + problem.Message
	}
	p.Transforms[0].Inject = map[string]string{"Authorization": "s3cret"}
	plan := compile(t, p)
	shown += fmt.Sprintf("%v %+v %#v %v %+v", plan, plan, plan, plan.Name("a.b"), plan.Name("a.b").Transform)
	require.NotContains(t, shown, "s3cret")
	require.Contains(t, shown, "Authorization")
}

func TestSame(t *testing.T) {
	base := policy.Transform{Domain: "a.b", Inject: map[string]string{"X-A": "1"}, Strip: []string{"B", "c"}}
	same := policy.Transform{Domain: "a.b", Inject: map[string]string{"x-a": "1"}, Strip: []string{"C", "b"}}
	require.True(t, base.Same(&same))
	for _, other := range []policy.Transform{
		{Domain: "a.c", Inject: base.Inject, Strip: base.Strip}, {Domain: "a.b", Strip: base.Strip},
		{Domain: "a.b", Inject: map[string]string{"X-A": "2"}, Strip: base.Strip}, {Domain: "a.b", Inject: base.Inject},
	} {
		require.False(t, base.Same(&other))
	}
	require.False(t, base.Same(nil))
	var none *policy.Transform
	require.True(t, none.Same(nil))
}

// Each testdata/plans/*.json is a policy; beside it is the plan that it compiles to.
func TestPlansAreAsWritten(t *testing.T) {
	files, err := filepath.Glob("testdata/plans/*.json")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		raw, err := os.ReadFile(file)
		require.NoError(t, err)
		var p struct {
			Mode         string
			AllowDomains []string `json:"allow_domains"`
			AllowCIDRs   []string `json:"allow_cidrs"`
			Transforms   []struct {
				Domain string
				Inject map[string]string `json:"inject_headers"`
				Strip  []string          `json:"strip_headers"`
			}
		}
		require.NoError(t, json.Unmarshal(raw, &p))
		in := policy.Policy{Mode: p.Mode, AllowDomains: p.AllowDomains, AllowCIDRs: p.AllowCIDRs}
		for _, tr := range p.Transforms {
			in.Transforms = append(in.Transforms, policy.Transform{Domain: tr.Domain, Inject: tr.Inject, Strip: tr.Strip})
		}
		golden := strings.TrimSuffix(file, ".json") + ".plan"
		plan := compile(t, in).String()
		if *rewrite {
			require.NoError(t, os.WriteFile(golden, []byte(plan), 0o644))
		}
		want, err := os.ReadFile(golden)
		require.NoError(t, err)
		require.Equal(t, string(want), plan, "%s; -rewrite writes it anew", golden)
		for range 20 {
			require.Equal(t, plan, compile(t, in).String(), "deterministic")
		}
	}
}

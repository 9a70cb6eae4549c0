package httpd

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"stillframe/fsm"
	"stillframe/netpolicy/policy"
)

// FuzzBody reads anything as every body there is. Whatever is accepted keeps the bounds and fits into the log, whatever
// is refused says why, and nothing panics.
func FuzzBody(f *testing.F) {
	for _, seed := range []string{
		"", "{}", "null", "[]", `{"template_name":"a","vcpu":1}`, `{"template_name":"a","template_name":"b"}`,
		`{"template_name":"a","vcpu":1.5,"memory":"1024","timeout":-0,"env_vars":{"A":"b","":"c"}}`,
		`{"network_policy":{"mode":"custom","allow_domains":["a.com","*.b.com"],"allow_cidrs":["10.0.0.0/8","::/0"],` +
			`"transforms":[{"domain":"c.com","inject_headers":{"A":"[redacted]"},"strip_headers":["B"]}]}}`,
		`{"snapshot_name":"a","name":"b","path":"/c","command":"d","exclude":["e"],"offset":1}`,
		`{"a":{"a":{"a":[[[]]]}}}`, "{\"\\ud800\":1}", `{"vcpu":1e400}`, "{\"a\":\"\xff\"}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		errs := &fieldErrors{}
		o, err := parseBody(body, errs)
		if err != nil {
			if len(body) == 0 || json.Valid(body) && utf8.Valid(body) && body[0] == '{' {
				t.Fatalf("a valid object is refused: %q", body)
			}
			return
		}
		cmd := fsm.CreateSandbox{
			TemplateName: o.templateName("template_name"), VCPU: int(o.integer("vcpu", 1, 1, 8)),
			MemoryMiB: o.integer("memory", 1024, 512, 8192), EnvVars: o.env("env_vars"), AutoPause: o.boolean("auto_pause"),
			NetworkPolicy: o.policy("network_policy"),
		}
		o.path("path", true)
		o.required("command")
		o.count("offset")
		o.strings("exclude", maxExclude, nil)
		if errs.err() != nil {
			for _, e := range errs.list {
				if e.Field == "" || e.Error == "" || !utf8.ValidString(e.Field) || len(e.Field) > 1000 {
					t.Fatalf("a bad answer: %q", e)
				}
			}
			return
		}
		if cmd.VCPU < 1 || cmd.VCPU > 8 || cmd.MemoryMiB < 512 || cmd.MemoryMiB > 8192 || cmd.TemplateName == "" {
			t.Fatalf("out of bounds: %+v", cmd)
		}
		checkPolicy(t, cmd.NetworkPolicy)
		if _, err := fsm.Encode(cmd); err != nil && asAPIError(err).kind != fsm.KindTooLarge {
			t.Fatalf("accepted, and does not fit into the log: %v", err)
		}
	})
}

// checkPolicy states again what an accepted policy must be.
func checkPolicy(t *testing.T, p *fsm.NetworkPolicy) {
	if p == nil {
		return
	}
	if len(p.AllowDomains) > 50 || len(p.AllowCIDRs) > 10 || len(p.Transforms) > 20 {
		t.Fatalf("too long: %+v", p)
	}
	if p.Mode != "custom" && len(p.AllowDomains)+len(p.AllowCIDRs) > 0 {
		t.Fatalf("lists outside custom: %+v", p)
	}
	for _, tr := range p.Transforms {
		for name, value := range tr.InjectHeaders {
			if strings.ContainsAny(name+value, "\r\n\x00") || value == policy.Redacted || strings.EqualFold(name, "host") {
				t.Fatalf("a bad header: %q: %q", name, value)
			}
		}
	}
}

// FuzzNames tries snapshot names; hosts and headers are those of package policy.
func FuzzNames(f *testing.F) {
	for _, seed := range []string{
		"", "a", "A.b_c-d", "-a", "a/b", strings.Repeat("x", 65), "*.example.com", "example.com.", "1.2.3.4", "10.0.0.0/8",
		"::ffff:1.2.3.0/120", "x-api-key", "Host", "bücher.example", "a\x00b", "xn--a.b",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if validSnapshotName(s) && (s == "" || len(s) > 64 || strings.ContainsAny(s, "/ \n\x00") || s[0] == '.') {
			t.Fatalf("snapshot name %q", s)
		}
	})
}

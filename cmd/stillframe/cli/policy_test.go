package cli_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/cmd/stillframe/cli"
)

const policyJSON = `{"mode":"custom","allow_domains":["*.debian.org"],"allow_cidrs":["192.0.2.0/24"],"transforms":` +
	`[{"domain":"api.example.com","inject_headers":{"X-B":"[redacted]","X-A":"[redacted]"},"strip_headers":["Cookie"]}]}`

// withPolicy is the JSON of a sandbox with a policy.
func withPolicy(policy, status string) string {
	return strings.Replace(strings.Replace(sandboxJSON, `{"mode":"deny-all"}`, policy, 1), `"isolated"`, status, 1)
}

func TestPolicyGet(t *testing.T) {
	w := newWorld(t)
	w.answer("GET /v1/sandbox/sbx-aaaa", 200, withPolicy(policyJSON, `"enforced"`))
	require.Equal(t, ""+
		"Sandbox     sbx-aaaa\n"+
		"Mode        custom\n"+
		"Domains     *.debian.org\n"+
		"CIDRs       192.0.2.0/24\n"+
		"Transform   api.example.com, sets X-A X-B, takes away Cookie\n"+
		"In force    enforced\n", w.does("policy", "get", "sbx-aaaa"))
	require.Equal(t, policyJSON+"\n", w.does("policy", "get", "sbx-aaaa", "-o", "json"), "as the node has it")

	w.answer("GET /v1/sandbox/sbx-aaaa", 200, withPolicy(`null`, `"denied","network_note":"rules went bad"`))
	require.Equal(t, "Sandbox    sbx-aaaa\nMode       allow-all\nIn force   denied\nWhy        rules went bad\n",
		w.does("policy", "get", "sbx-aaaa"))
	require.Equal(t, "{\"mode\":\"allow-all\"}\n", w.does("policy", "get", "sbx-aaaa", "-o", "json"))
	require.Equal(t, cli.ExitNotFound, w.run("policy", "get", "sbx-x"))
	require.Contains(t, w.err.String(), "stillframe sandbox list")
}

func TestPolicySet(t *testing.T) {
	w := newWorld(t)
	const path = "PUT /v1/sandbox/sbx-aaaa/network-policy"
	w.answer(path, 200, withPolicy(`{"mode":"deny-all"}`, `"enforced"`))
	w.vars["TOKEN"], w.vars["OTHER"] = "Bearer s3cret", "0ther"
	file := filepath.Join(t.TempDir(), "policy.json")
	require.NoError(t, os.WriteFile(file, []byte(policyJSON), 0o600))
	for _, tc := range []struct{ args, want string }{
		{"--mode deny-all", `{"mode":"deny-all"}`},
		{"--mode custom", `{"mode":"custom"}`},
		{"--allow-domain a.example.com --allow-domain *.debian.org --allow-cidr 192.0.2.0/24 --allow-cidr 2001:db8::/32",
			`{"mode":"custom","allow_domains":["a.example.com","*.debian.org"],"allow_cidrs":["192.0.2.0/24","2001:db8::/32"]}`},
		{"--inject api.example.com:Authorization=TOKEN --inject api.example.com:X-A=OTHER --inject b.example.com:X=OTHER",
			`{"mode":"custom","transforms":[{"domain":"api.example.com","inject_headers":{"Authorization":"Bearer s3cret",` +
				`"X-A":"0ther"}},{"domain":"b.example.com","inject_headers":{"X":"0ther"}}]}`},
		{"--mode allow-all --inject b.example.com:X=OTHER",
			`{"mode":"allow-all","transforms":[{"domain":"b.example.com","inject_headers":{"X":"0ther"}}]}`},
		{"--file " + file, policyJSON},
		{"--file -", `{"mode":"deny-all", "x":1}`},
	} {
		w.in = strings.NewReader(`{"mode":"deny-all", "x":1}`)
		before := len(w.requests())
		out := w.does(append([]string{"policy", "set", "sbx-aaaa"}, strings.Split(tc.args, " ")...)...)
		require.Contains(t, out, "Mode       deny-all\n", "what the node says is in force")
		require.NotContains(t, out+w.err.String(), "s3cret")
		asked := w.requests()[before:]
		require.Len(t, asked, 1)
		require.Equal(t, path, asked[0].line)
		require.Equal(t, tc.want, asked[0].body, tc.args)
		require.NotEmpty(t, asked[0].idempotency)
	}
	for args, want := range map[string]string{
		"": "say what it may reach",
		"--mode deny-all --allow-domain a.example.com":                  "exclude each other",
		"--file x --allow-domain a.example.com":                         "exclude each other",
		"--file x --inject a.example.com:X=TOKEN":                       "exclude each other",
		"--file /does/not/exist":                                        "no such file",
		"--mode off":                                                    "want one of",
		"--inject a.example.com:X":                                      "DOMAIN:HEADER=VAR",
		"--inject a.example.com=TOKEN":                                  "DOMAIN:HEADER=VAR",
		"--inject a.example.com:X=s3cret":                               "name of a variable",
		"--inject a.example.com:X=TOKEN --inject a.example.com:X=OTHER": "given twice",
	} {
		line := append([]string{"policy", "set", "sbx-aaaa"}, strings.Fields(args)...)
		require.Equal(t, cli.ExitUsage, w.run(line...), args)
		require.Contains(t, w.err.String(), want, args)
		require.NotContains(t, w.err.String(), "s3cret", "what may be a secret is not repeated")
	}
	w.answer(path, 409, `{"message":"sandbox sbx-aaaa is snapshotting"}`)
	require.Equal(t, cli.ExitConflict, w.run("policy", "set", "sbx-aaaa", "--mode", "deny-all"))
}

func TestPolicyOfNewSandboxes(t *testing.T) {
	w := newWorld(t)
	w.answer("POST /v1/sandbox", 201, sandboxJSON)
	w.answer("POST /v1/snapshot/restore", 201, sandboxJSON)
	for _, command := range []string{"sandbox create --template t", "snapshot restore warm"} {
		before := len(w.requests())
		w.does(append(strings.Fields(command), "--allow-domain", "a.example.com", "--allow-cidr", "192.0.2.0/24")...)
		require.Contains(t, w.requests()[before].body,
			`"network_policy":{"mode":"custom","allow_domains":["a.example.com"],"allow_cidrs":["192.0.2.0/24"]}`)
	}
}

func TestPolicyCheck(t *testing.T) {
	w := newWorld(t)
	const decision = `{"action":"deny","rule":"default","reason":"no rule allows it","name":"a.example.com",` +
		`"bytes_sent":0,"bytes_received":0}`
	w.answer("GET /v1/sandbox/sbx-aaaa/network-policy/check", 200, decision)
	require.Equal(t, "Action   deny\nRule     default\nWhy      no rule allows it\nName     a.example.com\n",
		w.does("policy", "check", "sbx-aaaa", "a.example.com"))
	require.Equal(t, decision+"\n", w.does("policy", "check", "sbx-aaaa", "a.example.com", "-o", "json"))
	for given, want := range map[string]string{
		"a.example.com":      "host=a.example.com",
		"a.example.com:8443": "host=a.example.com&port=8443",
		"192.0.2.7:22":       "host=192.0.2.7&port=22",
		"2001:db8::1":        "host=2001%3Adb8%3A%3A1",
		"[2001:db8::1]:22":   "host=2001%3Adb8%3A%3A1&port=22",
		"[2001:db8::1]":      "host=2001%3Adb8%3A%3A1",
	} {
		before := len(w.requests())
		if given == "[2001:db8::1]" { // the last colon is within the address
			require.Equal(t, cli.ExitUsage, w.run("policy", "check", "sbx-aaaa", given))
			continue
		}
		w.does("policy", "check", "sbx-aaaa", given)
		require.Equal(t, "GET /v1/sandbox/sbx-aaaa/network-policy/check?"+want, w.requests()[before].line)
	}
	for _, bad := range []string{"a.example.com:0", "a.example.com:https", "a:b:c", "a.example.com:65536"} {
		require.Equal(t, cli.ExitUsage, w.run("policy", "check", "sbx-aaaa", bad), bad)
	}
}

func decisionJSON(second, name string) string {
	return `{"time":"2026-01-02T11:59:` + second + `Z","action":"allow","rule":"allow_domains[0]","protocol":"tls",` +
		`"name":"` + name + `","address":"192.0.2.1:443","bytes_sent":1536,"bytes_received":10}`
}

func TestPolicyLog(t *testing.T) {
	w := newWorld(t)
	w.answer("GET /v1/sandbox/sbx-aaaa/network-policy/log?limit=5", 200,
		`{"items":[`+decisionJSON("01", "a.example.com")+`],"total_items":1}`)
	require.Equal(t, ""+
		"TIME                       ACTION   PROTOCOL   NAME            ADDRESS         SENT      RECEIVED   RULE"+
		"               WHY\n"+
		"2026-01-02T11:59:01.000Z   allow    tls        a.example.com   192.0.2.1:443   1.5 KiB   10 B       "+
		"allow_domains[0]   -\n", w.does("policy", "log", "sbx-aaaa", "--limit", "5"))
	require.JSONEq(t, `{"items":[`+decisionJSON("01", "a.example.com")+`],"total_items":1}`,
		w.does("policy", "log", "sbx-aaaa", "--limit", "5", "-o", "json"))
	require.Equal(t, cli.ExitUsage, w.run("policy", "log", "sbx-aaaa", "--limit", "0"))
}

// Following shows each decision once, the ones that come later too, until it is interrupted.
func TestPolicyLogFollow(t *testing.T) {
	w := newWorld(t)
	const path = "GET /v1/sandbox/sbx-aaaa/network-policy/log"
	first, second, third := decisionJSON("01", "a.example.com"), decisionJSON("02", "b.example.com"),
		decisionJSON("02", "c.example.com")
	w.answer(path, 200, `{"items":[`+first+`,`+second+`],"total_items":2}`)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan int, 1)
	go func() { done <- cli.Run(ctx, w.env(), []string{"policy", "log", "sbx-aaaa", "-f", "-o", "json"}) }()
	asked := func(n int) func() bool { return func() bool { return len(w.requests()) >= n } }
	require.Eventually(t, asked(2), time.Minute, 10*time.Millisecond)
	w.answer(path, 200, `{"items":[`+second+`,`+third+`],"total_items":2}`)
	seen := len(w.requests())
	require.Eventually(t, asked(seen+2), time.Minute, 10*time.Millisecond)
	cancel()
	require.Equal(t, cli.ExitInterrupted, <-done)
	require.Equal(t, strings.Join([]string{first, second, third}, "\n")+"\n", w.out.String())
}

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/fsm"
	"stillframe/httpd/client"
	"stillframe/hypervisor"
	"stillframe/netpolicy"
)

// credential is what a transform injects. It must be at the far side, and nowhere in the guest.
const credential = "Bearer e2e-credential-1b7d2f"

func rawPolicy(p client.NetworkPolicy) json.RawMessage {
	raw, err := json.Marshal(p)
	if err != nil {
		panic(err)
	}
	return raw
}

var denyAll = client.NetworkPolicy{Mode: "deny-all"}

// debian asks for the smallest sandbox with the usual programs in it.
func debian(p client.NetworkPolicy) client.CreateSandbox {
	return client.CreateSandbox{
		TemplateName: "system/debian:bookworm", Memory: 512, Timeout: 3600, NetworkPolicy: rawPolicy(p),
	}
}

// ask sends a request as it is, once, and gives the status of the answer, and its body.
func (n *node) ask(method, path string, body []byte, headers ...string) (int, string) {
	n.t.Helper()
	req, err := http.NewRequestWithContext(within(n.t), method, "http://"+n.addr+path, bytes.NewReader(body))
	require.NoError(n.t, err)
	req.Header.Set("Authorization", "Bearer "+n.key)
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(answer)
}

// put replaces the policy of a sandbox.
func (n *node) put(id string, p client.NetworkPolicy, key string) (int, string) {
	n.t.Helper()
	var headers []string
	if key != "" {
		headers = []string{"Idempotency-Key", key}
	}
	return n.ask(http.MethodPut, "/v1/sandbox/"+id+"/network-policy", rawPolicy(p), headers...)
}

// get reads what is answered at a path.
func (n *node) get(path string) []byte {
	n.t.Helper()
	status, body := n.ask(http.MethodGet, path, nil)
	require.Equal(n.t, http.StatusOK, status, "%s", body)
	return []byte(body)
}

// try runs a command and gives its exit code with what it said.
func (n *node) try(id, command string) (int, string) {
	n.t.Helper()
	res, err := n.api.Exec(within(n.t), id, client.Exec{Command: command, Timeout: 60})
	require.NoError(n.t, err, "%s\n%s", command, n.output())
	return res.ExitCode, res.Stdout + res.Stderr
}

const (
	curl = "curl -sSf --max-time 40 "
	// What curl says when it was refused, not when it waited in vain (28).
	curlUnresolved, curlTLS, curlReset = 6, 35, 56
)

// TestEgressPolicy follows a policy through the life of sandboxes, with a guest that only knows curl.
func TestEgressPolicy(t *testing.T) {
	world := newFarWorld(t)
	n := newNodeOutside(t, world)
	custom := client.NetworkPolicy{
		Mode: "custom", AllowDomains: []string{"good.test"}, AllowCIDRs: []string{listedAddr + "/32"},
		Transforms: []client.Transform{{
			Domain: "api.test", InjectHeaders: map[string]string{"Authorization": credential}, StripHeaders: []string{"X-Mine"},
		}},
	}
	sb, err := n.api.CreateSandbox(within(t), debian(custom))
	require.NoError(t, err, n.output())
	outsideCA, err := os.ReadFile(world.caFile)
	require.NoError(t, err)
	require.NoError(t, n.api.WriteFile(within(t), sb.ID, "/dev/shm/outside.pem", "", outsideCA))

	t.Run("allowed", func(t *testing.T) { requireGood(t, n, sb.ID) })
	t.Run("denied, at once and with the reason", func(t *testing.T) { requireDenied(t, n, world, sb.ID) })
	t.Run("transformed", func(t *testing.T) { requireTransformed(t, n, world, sb.ID) })
	t.Run("explained", func(t *testing.T) { explained(t, n, sb.ID) })
	t.Run("kept with the snapshot, or overridden", func(t *testing.T) { policyOfClones(t, n, sb.ID) })
	t.Run("replaced", func(t *testing.T) { replaced(t, n, sb.ID) })
	t.Run("after a restart", func(t *testing.T) {
		n.kill()
		n.start()
		requireGood(t, n, sb.ID)
		requireDenied(t, n, world, sb.ID)
	})
	raw, err := os.ReadFile(n.log)
	require.NoError(t, err)
	require.NotContains(t, string(raw), credential)
	requireNotInFiles(t, n.dir, credential)
}

// requireGood: the listed name answers over HTTPS, verified by the guest itself, end to end.
func requireGood(t *testing.T, n *node, id string) {
	code, out := n.try(id, curl+"--cacert /dev/shm/outside.pem https://good.test/")
	require.Zero(t, code, "%s\n%s", out, n.output())
	require.Equal(t, "hello from good.test\n", out)
}

func requireDenied(t *testing.T, n *node, world *farWorld, id string) {
	world.Reset()
	code, out := n.try(id, curl+"https://evil.test/")
	require.Equal(t, curlUnresolved, code, out)
	for _, to := range []string{
		"--resolve evil.test:443:203.0.113.66 https://evil.test/", // a name that is not listed, by the guest's own address
		"-k https://203.0.113.66/",                                // no name
		"http://203.0.113.66/",
		"http://192.0.2.1/", // the node
		"http://169.254.169.254/latest/meta-data/",
	} {
		code, out := n.try(id, curl+to)
		require.NotZero(t, code, "%s: %s", to, out)
		require.NotEqual(t, 28, code, "%s: it waited in vain: %s", to, out)
	}
	require.Empty(t, world.seen(), "packets outside the policy")
}

// requireTransformed: the far side gets the credential, over a connection that the guest's programs trust without being
// told to, and in the guest there is no trace of it.
func requireTransformed(t *testing.T, n *node, world *farWorld, id string) {
	code, out := n.try(id, curl+"-H 'X-Mine: x' -H 'Authorization: mine' https://api.test/")
	require.Zero(t, code, "%s\n%s", out, n.output())
	require.Equal(t, "hello from api.test\n", out)
	got := world.requests("api.test")
	require.NotEmpty(t, got)
	last := got[len(got)-1]
	require.Equal(t, []string{credential}, last.Header.Values("Authorization"))
	require.Empty(t, last.Header.Values("X-Mine"))
	code, out = n.try(id, curl+"http://api.test/")
	require.NotZero(t, code, "in clear: %s", out)
	require.Len(t, world.requests("api.test"), len(got), "never over plain HTTP")
	code, _ = n.try(id, "env | grep -q e2e-credential")
	require.NotZero(t, code)
}

// explained: what was decided, and what would be, by which rule, and no header's value.
func explained(t *testing.T, n *node, id string) {
	for host, want := range map[string][2]string{
		"good.test":       {"allow", "allow_domains good.test"},
		"api.test":        {"transform", "transforms api.test"},
		"evil.test":       {"deny", ""},
		listedAddr:        {"allow", "allow_cidrs " + listedAddr + "/32"},
		"169.254.169.254": {"deny", ""},
	} {
		var d struct{ Action, Rule string }
		require.NoError(t, json.Unmarshal(n.get("/v1/sandbox/"+id+"/network-policy/check?host="+host), &d))
		require.Equal(t, want[0], d.Action, host)
		if want[1] != "" {
			require.Equal(t, want[1], d.Rule, host)
		}
	}
	var list struct {
		Items []struct {
			Action, Name string
			Received     int64 `json:"bytes_received"`
		} `json:"items"`
	}
	raw := n.get("/v1/sandbox/" + id + "/network-policy/log")
	require.NotContains(t, string(raw), "e2e-credential")
	require.NoError(t, json.Unmarshal(raw, &list))
	found := map[string]bool{}
	for _, d := range list.Items {
		found[d.Action+" "+d.Name] = true
	}
	for _, want := range []string{"allow good.test", "deny evil.test", "transform api.test"} {
		require.True(t, found[want], "%s is not among %s", want, raw)
	}
}

// policyOfClones: two clones of one snapshot at once, one with its policy and one with another.
func policyOfClones(t *testing.T, n *node, id string) {
	_, err := n.api.CreateSnapshot(within(t), id, client.CreateSnapshot{Name: "policy"})
	require.NoError(t, err)
	same, err := n.api.RestoreSnapshot(within(t), client.RestoreSnapshot{SnapshotName: "policy", Timeout: 3600})
	require.NoError(t, err, n.output())
	other, err := n.api.RestoreSnapshot(within(t), client.RestoreSnapshot{
		SnapshotName: "policy", Timeout: 3600, NetworkPolicy: rawPolicy(client.NetworkPolicy{
			Mode: "custom", AllowDomains: []string{"other.test"},
		}),
	})
	require.NoError(t, err, n.output())
	require.Equal(t, "custom", same.NetworkPolicy.Mode)
	require.Equal(t, "[redacted]", same.NetworkPolicy.Transforms[0].InjectHeaders["Authorization"])
	requireGood(t, n, same.ID)
	// The same authority as before, so that the same guest trusts it on.
	code, out := n.try(same.ID, curl+"https://api.test/")
	require.Zero(t, code, "%s\n%s", out, n.output())
	code, out = n.try(other.ID, curl+"--cacert /dev/shm/outside.pem https://other.test/")
	require.Zero(t, code, "%s\n%s", out, n.output())
	code, out = n.try(other.ID, curl+"https://good.test/")
	require.Equal(t, curlUnresolved, code, out)
	for _, sb := range []string{same.ID, other.ID} {
		require.NoError(t, n.api.DeleteSandbox(within(t), sb))
	}
	n.deleteSnapshotNamed("policy")
}

// replaced: a tighter policy ends what it does not allow; a policy that is none changes nothing.
func replaced(t *testing.T, n *node, id string) {
	before, err := n.api.Sandbox(within(t), id)
	require.NoError(t, err)
	done := make(chan client.ExecResult, 1)
	go func() {
		res, err := n.api.Exec(within(t), id, client.Exec{
			Command: "curl -sS -N --cacert /dev/shm/outside.pem https://good.test/drip > /dev/shm/drip", Timeout: 600,
		})
		if err != nil {
			res.ExitCode = -1
		}
		done <- res
	}()
	n.exec(id, "while ! [ -s /dev/shm/drip ]; do sleep 0.1; done")
	status, body := n.put(id, client.NetworkPolicy{Mode: "custom", AllowDomains: []string{"https://no.name"}}, "")
	require.Equal(t, http.StatusBadRequest, status, body)
	require.Contains(t, body, "allow_domains[0]")
	requireGood(t, n, id)
	status, body = n.put(id, client.NetworkPolicy{Mode: "custom", AllowDomains: []string{"other.test"}}, "")
	require.Equal(t, http.StatusOK, status, "%s\n%s", body, n.output())
	select {
	case res := <-done:
		require.NotZero(t, res.ExitCode, "the download was cut")
	case <-time.After(patience):
		t.Fatal("a connection outlives the policy that allowed it")
	}
	code, out := n.try(id, curl+"https://good.test/")
	require.Equal(t, curlUnresolved, code, out)
	status, body = n.put(id, denyAll, "")
	require.Equal(t, http.StatusOK, status, body)
	code, out = n.try(id, curl+"https://other.test/")
	require.Equal(t, curlUnresolved, code, out)
	status, body = n.put(id, client.NetworkPolicy{
		Mode: "custom", AllowDomains: before.NetworkPolicy.AllowDomains, AllowCIDRs: before.NetworkPolicy.AllowCIDRs,
	}, "")
	require.Equal(t, http.StatusOK, status, body)
	requireGood(t, n, id)
}

// requireNotInFiles looks through the data folder's small files: the log, records, manifests.
func requireNotInFiles(t *testing.T, dir, secret string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		info, err := entry.Info()
		if err != nil || info.Size() > 64<<20 {
			return err
		}
		raw, err := os.ReadFile(path)
		require.NotContains(t, string(raw), secret, path)
		return err
	})
	require.NoError(t, err)
}

// flood is a program that sends all sorts of packets to all sorts of places, one of which policies list, for ever.
const flood = `
import os, socket, struct
def csum(b):
    b += b'\0' * (len(b) % 2)
    s = sum(struct.unpack('!%dH' % (len(b) // 2), b))
    s = (s >> 16) + (s & 0xffff)
    return ~(s + (s >> 16)) & 0xffff
listed, second = '198.51.100.1', '198.51.100.2'
others = ['203.0.113.66', '8.8.8.8', '192.0.2.1', '192.0.2.2', '10.9.8.7', '169.254.169.254', '100.126.0.1']
others += ['224.0.0.9', '255.255.255.255']
me = socket.inet_aton('10.111.0.2')
def ip(proto, src, dst, body):
    head = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 20 + len(body), 1, 0, 64, proto, 0, src, dst)
    return head[:10] + struct.pack('!H', csum(head)) + head[12:] + body
def syn(src, dst, port):
    t = struct.pack('!HHIIBBHHH', 4444, port, 7, 0, 0x50, 2, 1024, 0, 0)
    c = csum(src + dst + struct.pack('!BBH', 0, 6, len(t)) + t)
    return t[:16] + struct.pack('!H', c) + t[18:]
echo = struct.pack('!BBHHH', 8, 0, 0, 1, 1)
echo = echo[:2] + struct.pack('!H', csum(echo)) + echo[4:]
query = b'\0\1\1\0\0\1\0\0\0\0\0\0\4evil\4test\0\0\1\0\1'
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
n = 0
while True:
    for to in [listed, second] + others:
        dst = socket.inet_aton(to)
        frames = [ip(6, me, dst, syn(me, dst, p)) for p in (80, 443)]
        frames += [ip(1, me, dst, echo), ip(47, me, dst, b'\0\0\x08\0'), ip(132, me, dst, b'x' * 16)]
        frames += [ip(17, socket.inet_aton('10.111.0.77'), dst, struct.pack('!HHHH', 9, 9, 8, 0))]
        for send in [lambda: udp.sendto(b'flood', (to, 9)), lambda: udp.sendto(b'flood', (to, 443)),
                     lambda: udp.sendto(query, (to, 53))] + [lambda f=f: raw.sendto(f, (to, 0)) for f in frames]:
            try:
                send()
            except OSError:
                pass
    n += 1
    with open('/dev/shm/rounds.new', 'w') as f:
        f.write(str(n))
    os.rename('/dev/shm/rounds.new', '/dev/shm/rounds')
`

func listed(addrs ...string) client.NetworkPolicy {
	p := client.NetworkPolicy{Mode: "custom"}
	for _, a := range addrs {
		p.AllowCIDRs = append(p.AllowCIDRs, a+"/32")
	}
	return p
}

// newFlood makes a sandbox that floods, under a policy that lists one address.
func newFlood(t *testing.T, n *node) string {
	t.Helper()
	sb, err := n.api.CreateSandbox(within(t), debian(listed(listedAddr)))
	require.NoError(t, err, n.output())
	require.NoError(t, n.api.WriteFile(within(t), sb.ID, "/dev/shm/flood.py", "", []byte(flood)))
	n.exec(sb.ID, "setsid python3 /dev/shm/flood.py > /dev/shm/flood.log 2>&1 < /dev/null & ")
	n.requireFloods(sb.ID)
	return sb.ID
}

// requireFloods waits until the guest has gone round twice from now: whatever it sends, it has sent.
func (n *node) requireFloods(id string) {
	n.t.Helper()
	n.exec(id, `n=0; while ! [ -s /dev/shm/rounds ]; do sleep 0.05; done
from=$(cat /dev/shm/rounds); while [ $(cat /dev/shm/rounds) -lt $((from + 2)) ]; do sleep 0.05; done`)
}

// requireOnly fails unless packets arrived for each of the addresses given, and for no other.
func (o *farWorld) requireOnly(t *testing.T, what string, addrs ...string) {
	t.Helper()
	seen := o.seen()
	for _, a := range addrs {
		require.Positive(t, seen[a], "%s: nothing arrives at %s, which is allowed: the test counts nothing", what, a)
		delete(seen, a)
	}
	require.Empty(t, seen, "%s: packets outside the policy", what)
}

// restores is how often the window between restoring and the policy is looked for.
func restores(t *testing.T) int {
	t.Helper()
	times := 10
	if s := os.Getenv("STILLFRAME_RESTORES"); s != "" {
		_, err := fmt.Sscan(s, &times)
		require.NoError(t, err)
	}
	return times
}

// TestNoWindow restores a snapshot of a guest that floods while it is captured, again and again: not one packet may
// arrive that the policy does not allow, from before the VM runs to after it is gone, nor when the daemon dies
// meanwhile.
func TestNoWindow(t *testing.T) {
	world := newFarWorld(t)
	n := newNodeOutside(t, world)
	source := newFlood(t, n)
	world.requireOnly(t, "the source", listedAddr)
	_, err := n.api.CreateSnapshot(within(t), source, client.CreateSnapshot{Name: "flood", KillSandboxAfter: true})
	require.NoError(t, err)
	n.requireGone(source)
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	for i := range restores(t) {
		in, allowed := client.RestoreSnapshot{SnapshotName: "flood", Timeout: 3600}, []string{listedAddr}
		switch i % 3 {
		case 1:
			in.NetworkPolicy, allowed = rawPolicy(denyAll), nil
		case 2:
			in.NetworkPolicy, allowed = rawPolicy(listed(secondAddr)), []string{secondAddr}
		}
		world.Reset()
		sb, err := n.api.RestoreSnapshot(ctx, in)
		require.NoError(t, err, n.output())
		n.requireFloods(sb.ID)
		require.NoError(t, n.api.DeleteSandbox(ctx, sb.ID))
		world.requireOnly(t, fmt.Sprintf("restore %d", i), allowed...)
	}
	for _, step := range append([]string{string(hypervisor.StepNetwork)}, netpolicy.CreateSteps...) {
		at := place(fsm.IntentRestore, step, "before")
		in := client.RestoreSnapshot{SnapshotName: "flood", Timeout: 3600, IdempotencyKey: at}
		world.Reset()
		_ = n.dieAt(at, func() error { _, err := n.api.RestoreSnapshot(ctx, in); return err })
		world.requireOnly(t, at+", no daemon")
		n.start()
		sb, err := n.api.RestoreSnapshot(ctx, in)
		require.NoError(t, err, n.output())
		n.requireFloods(sb.ID)
		require.NoError(t, n.api.DeleteSandbox(ctx, sb.ID))
		world.requireOnly(t, at, listedAddr)
	}
}

// TestKilledWhilePolicyChanges kills the daemon in every step of replacing a policy under a guest that floods.
func TestKilledWhilePolicyChanges(t *testing.T) {
	world := newFarWorld(t)
	n := newNodeOutside(t, world)
	id := newFlood(t, n)
	for i, p := range points(fsm.IntentSetPolicy) {
		status, body := n.put(id, listed(listedAddr, secondAddr), "")
		require.Equal(t, http.StatusOK, status, "%s\n%s", body, n.output())
		world.Reset()
		n.requireFloods(id)
		world.requireOnly(t, "loosened", listedAddr, secondAddr)
		key := fmt.Sprintf("tighten-%d", i)
		world.Reset()
		_ = n.dieAt(p.String(), func() error { n.put(id, listed(listedAddr), key); return nil })
		time.Sleep(200 * time.Millisecond) // what the kernel carries by itself, it carries on
		seen := world.seen()
		delete(seen, listedAddr)
		delete(seen, secondAddr)
		require.Empty(t, seen, "%s: outside both policies", p)
		n.start()
		status, body = n.put(id, listed(listedAddr), key)
		require.Equal(t, http.StatusOK, status, "%s: %s\n%s", p, body, n.output())
		world.Reset()
		n.requireFloods(id)
		world.requireOnly(t, p.String()+", tightened", listedAddr)
		sb, err := n.api.Sandbox(within(t), id)
		require.NoError(t, err)
		require.Equal(t, []string{listedAddr + "/32"}, sb.NetworkPolicy.AllowCIDRs)
		require.Contains(t, rules(t, id), listedAddr)
		require.NotContains(t, rules(t, id), secondAddr)
		n.requireExact()
	}
}

// rules are those of a sandbox as the kernel has them.
func rules(t *testing.T, id string) string {
	t.Helper()
	netns := "--net=" + filepath.Join(netpolicy.Dir, "sf-"+id)
	out, err := exec.Command("nsenter", netns, "iptables-save").CombinedOutput()
	require.NoError(t, err, "%s", out)
	return string(out)
}

// TestEgressPolicyWithoutKeys starts a daemon that cannot open what the policy of a running sandbox needs: the VM is
// kept, nothing is let through, both are said, and another policy mends it.
func TestEgressPolicyWithoutKeys(t *testing.T) {
	n := newNode(t)
	in := small("")
	in.NetworkPolicy = rawPolicy(listed(listedAddr))
	sb, err := n.api.CreateSandbox(within(t), in)
	require.NoError(t, err, n.output())
	require.Contains(t, rules(t, sb.ID), listedAddr)
	n.stop()
	require.Contains(t, rules(t, sb.ID), listedAddr, "a daemon that ends changes no rule")
	keys, err := filepath.Glob(filepath.Join(n.dir, "cluster", "*", "secrets.json"))
	require.NoError(t, err)
	keys = append(keys, filepath.Join(n.dir, "cluster", "secrets.json"))
	require.Len(t, keys, 2)
	for _, k := range keys {
		require.NoError(t, os.Remove(k))
	}
	n.start() // which makes other keys
	require.NotContains(t, rules(t, sb.ID), listedAddr, "nothing is let through")
	require.Equal(t, sb.ID, n.exec(sb.ID, "hostname"), "the VM is kept")
	require.Contains(t, string(n.get("/metrics")), "\nstillframe_policy_lost_total 1\n")
	status, body := n.ask(http.MethodGet, "/v1/sandbox/"+sb.ID+"/network-policy/check?host="+listedAddr, nil)
	require.Equal(t, http.StatusServiceUnavailable, status, body)
	require.Contains(t, body, "could not be put in force")

	code, body := n.put(sb.ID, listed(listedAddr), "")
	require.Equal(t, http.StatusOK, code, body)
	require.Contains(t, rules(t, sb.ID), listedAddr)
	check := n.get("/v1/sandbox/" + sb.ID + "/network-policy/check?host=" + listedAddr)
	require.Contains(t, string(check), `"allow"`)
}

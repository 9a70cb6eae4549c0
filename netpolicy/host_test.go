package netpolicy_test

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"stillframe/netpolicy"
	"stillframe/netpolicy/farside"
)

func mustPrefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// ownRules are the lines of iptables-save that are not ours, without counters.
func operatorsRules(t *testing.T) (out []string) {
	t.Helper()
	for line := range strings.Lines(save(t)) {
		if !strings.Contains(line, "SF-") && !strings.HasPrefix(line, "#") {
			before, _, _ := strings.Cut(line, " [")
			out = append(out, strings.TrimSpace(before))
		}
	}
	return out
}

// clean gives the host back the tables that it had, once the test has ended.
func clean(t *testing.T) {
	t.Helper()
	text := save(t)
	t.Cleanup(func() { restore(t, "iptables-nft-restore", text) })
}

func TestHostKeepsTheOperatorsRules(t *testing.T) {
	clean(t)
	restore(t, "iptables-nft-restore", `*filter
:INPUT ACCEPT
:FORWARD DROP
:OUTPUT ACCEPT
:MINE -
-A INPUT -p tcp --dport 22 -j ACCEPT
-A FORWARD -j MINE
-A MINE -d 203.0.113.66 -j DROP
COMMIT
*nat
:POSTROUTING ACCEPT
-A POSTROUTING -s 192.168.7.0/24 -j MASQUERADE
COMMIT
*raw
:PREROUTING ACCEPT
-A PREROUTING -s 192.0.2.99 -j DROP
COMMIT
`)
	before := operatorsRules(t)
	reg := prometheus.NewRegistry()
	r := newRig(t, cidrs("203.0.113.0/24"), func(c *netpolicy.Config) { c.Metrics = reg })
	require.Equal(t, before, operatorsRules(t))
	installed := save(t)
	second := newManager(t)
	require.NoError(t, second.Close())
	require.Equal(t, withoutCounters(installed), withoutCounters(save(t)), "a second time changes nothing")

	// Forwarded although the operator's policy is DROP, but not against a rule of theirs.
	passes(t, r.w, r.g, farside.Frame{Dst: allowed, Payload: hello()})
	silent(t, r.w, r.g, farside.Frame{Dst: "203.0.113.66", Payload: hello()})

	// The operator's tools put their rules anew, which is noticed, and stays.
	running(t, r.m)
	restore(t, "iptables-nft-restore", "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n"+
		"-A FORWARD -s 192.168.9.0/24 -j ACCEPT\nCOMMIT\n")
	before = operatorsRules(t)
	require.Eventually(t, func() bool { return counted(t, reg, driftTotal, "host") > 0 }, soon, time.Millisecond)
	require.Equal(t, before, operatorsRules(t))
	require.Equal(t, 1, strings.Count(save(t), "-A FORWARD -j SF-test-REFUSE"))
	require.NoError(t, os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0))
	require.Eventually(t, func() bool { return counted(t, reg, driftTotal, "host") > 1 }, soon, time.Millisecond)
	passes(t, r.w, r.g, farside.Frame{Dst: allowed, Payload: hello()})
}

func withoutCounters(text string) (out []string) {
	for line := range strings.Lines(text) {
		before, _, _ := strings.Cut(line, " [")
		if !strings.HasPrefix(line, "#") {
			out = append(out, strings.TrimSpace(before))
		}
	}
	return out
}

// A rule of the operator's that lets everything pass does not open what the host refuses.
func TestHostRefusesBeforeTheOperatorPermits(t *testing.T) {
	clean(t)
	r := newRig(t, cidrs("0.0.0.0/0"))
	restore(t, "iptables-nft-restore", "*filter\n-A FORWARD -j ACCEPT\nCOMMIT\n", "--noflush")
	require.NoError(t, r.n.Namespace().Do(func() error {
		// As if the rules inside were wrong: everything is let through, and masqueraded.
		restore(t, "iptables-nft-restore", "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n")
		return nil
	}))
	passes(t, r.w, r.g, farside.Frame{Dst: allowed, Payload: hello()})
	for _, to := range []string{"169.254.169.254", "198.51.100.77", "100.126.0.0", "100.126.9.9", "240.0.0.1"} {
		silent(t, r.w, r.g, farside.Frame{Dst: to, Payload: hello()})
	}
	silent(t, r.w, r.g, farside.Frame{Dst: denied, Protocol: 6,
		Payload: farside.TCP(netpolicy.GuestIP, denied, 5000, 443, 0x10)})
}

// Where nothing was forwarded before, nothing but sandboxes' packets is forwarded now.
func TestHostThatForwardedNothingStillForwardsNothingElse(t *testing.T) {
	const forward = "/proc/sys/net/ipv4/ip_forward"
	read := func() string {
		b, err := os.ReadFile(forward)
		require.NoError(t, err)
		return strings.TrimSpace(string(b))
	}
	const guard = "! -i sfv+ ! -o sfv+ -j DROP"
	for was, guarded := range map[string]bool{"0": true, "1": false} {
		t.Run("ip_forward="+was, func(t *testing.T) {
			clean(t)
			restore(t, "iptables-nft-restore", openTables)
			require.NoError(t, os.WriteFile(forward, []byte(was), 0))
			for range 2 { // the second finds it turned on, by the first
				require.NoError(t, newManager(t).Close())
				require.Equal(t, "1", read())
				require.Equal(t, guarded, strings.Contains(save(t), guard))
			}
		})
	}
}

package netpolicy

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// The host's own namespace holds only rules that never change with a policy. They are in chains of ours; a built-in
// chain has one jump to each. Refusals are jumped to first, so that no rule of the operator's lets pass what they
// refuse, and the one permission last, so that the operator's refusals hold.

// hostJump is a rule of a built-in chain that leads to one of ours.
type hostJump struct {
	table, chain, to string
	first            bool
}

func (m *Manager) chain(name string) string { return "SF-" + m.cfg.Instance + "-" + name }

func (m *Manager) hostJumps() []hostJump {
	return []hostJump{
		{"raw", "PREROUTING", m.chain("RAW"), true},
		{"filter", "INPUT", m.chain("INPUT"), true},
		{"filter", "FORWARD", m.chain("REFUSE"), true},
		{"filter", "FORWARD", m.chain("PASS"), false},
		{"nat", "POSTROUTING", m.chain("NAT"), false},
	}
}

// hostChains gives the rules of each of our chains, by table and chain. guarded says that forwarding was off before we
// came, so that nothing but what is ours may be forwarded now that it is on.
func (m *Manager) hostChains(guarded bool) map[string]map[string][]string {
	in, out := "-i "+HostLinkPrefix+"+", "-o "+HostLinkPrefix+"+"
	// What is invalid to the connection table would not be masqueraded.
	refuse := []string{in + " " + out + " -j DROP", in + " -m conntrack --ctstate INVALID -j DROP"}
	// TCP is carried by the gate, which dials from here. What comes out of a sandbox has lost its rules.
	refuse = append(refuse, in+" -p tcp -j DROP")
	for _, p := range floorRanges(*m.floor.Load()) {
		refuse = append(refuse, saved("-d", p)+in+" -j REJECT --reject-with icmp-admin-prohibited")
	}
	refuse = append(refuse, out+" -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP")
	if guarded {
		refuse = append(refuse, "! -i "+HostLinkPrefix+"+ ! -o "+HostLinkPrefix+"+ -j DROP")
	}
	return map[string]map[string][]string{
		"raw": {m.chain("RAW"): {in + " -m rpfilter --invert -j DROP"}},
		"filter": {
			m.chain("INPUT"):  {in + " -j DROP"},
			m.chain("REFUSE"): refuse,
			m.chain("PASS"):   {in + " -j ACCEPT", out + " -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"},
		},
		"nat": {m.chain("NAT"): {saved("-s", m.cfg.Pool) + "! " + out + " -j MASQUERADE"}},
	}
}

// saved writes an address match as iptables-save does, with a space after it.
func saved(option string, p netip.Prefix) string { return option + " " + p.String() + " " }

// installHost puts the host's rules in place and turns forwarding on.
func (m *Manager) installHost(ctx context.Context) error {
	was, err := readSysctl(forward.name)
	if err != nil {
		return err
	}
	text, err := run(ctx, m.kernel.tools.save, "")
	if err != nil {
		return err
	}
	// An earlier start may have turned it on: then the guard is there to tell.
	m.guarded = was != forward.value || strings.Contains(text, m.guardRule())
	if was != forward.value {
		m.log.Info("forwarding is turned on, for sandboxes only")
	}
	if _, err := m.ensureHost(ctx); err != nil {
		return fmt.Errorf("rules of the host: %w", err)
	}
	return nil
}

// forward is the one setting of the host's that is changed.
var forward = sysctl{"ipv4/ip_forward", "1"}

// guardRule is the rule that tells that forwarding was off.
func (m *Manager) guardRule() string {
	return fmt.Sprintf("-A %s ! -i %s+ ! -o %s+ -j DROP", m.chain("REFUSE"), HostLinkPrefix, HostLinkPrefix)
}

// ensureHost writes the host's rules if they are not in place, and tells whether they no longer were. Rules that are
// not ours stay as they are and where they are.
func (m *Manager) ensureHost(ctx context.Context) (mended bool, err error) {
	first := m.hostSeen == 0
	if mended, err = m.ensureHostRules(ctx); err != nil {
		return false, err
	}
	// After the rules, which say what may be forwarded.
	if sysctlDrift([]sysctl{forward}) != nil {
		return !first, applySysctls([]sysctl{forward})
	}
	return mended, nil
}

func (m *Manager) ensureHostRules(ctx context.Context) (mended bool, err error) {
	now, err := generation(nil)
	if err != nil {
		return false, err
	}
	floor := m.floor.Load()
	if m.hostSeen != 0 && now == m.hostSeen && floor == m.hostFloor {
		return false, nil
	}
	text, err := run(ctx, m.kernel.tools.save, "")
	if err != nil {
		return false, err
	}
	change := m.hostChange(parseLoose(text))
	if change != "" {
		if _, err := run(ctx, m.kernel.tools.restore, change, "--noflush"); err != nil {
			return false, err
		}
		if text, err = run(ctx, m.kernel.tools.save, ""); err != nil {
			return false, err
		}
		if left := m.hostChange(parseLoose(text)); left != "" {
			return false, fmt.Errorf("the rules are not what was written; left to do:\n%s", left)
		}
		if now, err = generation(nil); err != nil {
			return false, err
		}
	}
	mended = change != "" && m.hostSeen != 0 && floor == m.hostFloor
	m.hostSeen, m.hostFloor = now, floor
	return mended, nil
}

// parseLoose reads the text of iptables-save: the rules of each table and chain, in order.
func parseLoose(text string) map[string]map[string][]string {
	tables := map[string]map[string][]string{}
	name := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if after, ok := strings.CutPrefix(line, "*"); ok {
			name = after
			tables[name] = map[string][]string{}
			continue
		}
		if after, ok := strings.CutPrefix(line, ":"); ok {
			chain, _, _ := strings.Cut(after, " ")
			tables[name][chain] = []string{}
			continue
		}
		if after, ok := strings.CutPrefix(line, "-A "); ok {
			chain, rule, _ := strings.Cut(normalRule(after), " ")
			tables[name][chain] = append(tables[name][chain], rule)
		}
	}
	return tables
}

// hostChange gives what iptables-restore --noflush must be told so that the host's rules are in place; nothing if they
// are. A table is written in one step: there is no instant without our refusals.
func (m *Manager) hostChange(have map[string]map[string][]string) string {
	var all strings.Builder
	want := m.hostChains(m.guarded)
	for _, table := range []string{"raw", "filter", "nat"} {
		var chains, rules strings.Builder
		names := make([]string, 0, len(want[table]))
		for chain := range want[table] {
			names = append(names, chain)
		}
		slices.Sort(names)
		for _, chain := range names {
			if slices.Equal(have[table][chain], want[table][chain]) {
				continue
			}
			fmt.Fprintf(&chains, ":%s - [0:0]\n", chain) // which empties it
			for _, rule := range want[table][chain] {
				fmt.Fprintf(&rules, "-A %s %s\n", chain, rule)
			}
		}
		for _, j := range m.hostJumps() {
			if j.table == table {
				rules.WriteString(j.change(have[table][j.chain]))
			}
		}
		if chains.Len()+rules.Len() > 0 {
			fmt.Fprintf(&all, "*%s\n%s%sCOMMIT\n", table, chains.String(), rules.String())
		}
	}
	return all.String()
}

// change gives the lines that put a jump where it belongs. Jumps of other instances may stand before those of ours.
func (j hostJump) change(have []string) string {
	rule := "-j " + j.to
	at := slices.Index(have, rule)
	count := 0
	for _, r := range have {
		if r == rule {
			count++
		}
	}
	others := have[:max(at, 0)]
	if !j.first && at >= 0 {
		others = have[at+1:]
	}
	foreign := slices.ContainsFunc(others, func(r string) bool { return !strings.HasPrefix(r, "-j SF-") })
	if count == 1 && !foreign {
		return ""
	}
	var r strings.Builder
	for range count {
		fmt.Fprintf(&r, "-D %s %s\n", j.chain, rule)
	}
	if j.first {
		fmt.Fprintf(&r, "-I %s 1 %s\n", j.chain, rule)
	} else {
		fmt.Fprintf(&r, "-A %s %s\n", j.chain, rule)
	}
	return r.String()
}

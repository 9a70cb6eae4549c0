package netpolicy

import (
	"os"
	"path/filepath"

	"stillframe/netpolicy/policy"
)

// RestoreFrom has iptables-restore started through a link in a folder, which can be led elsewhere while Run runs.
func (m *Manager) RestoreFrom(dir string) (lead func(program string) error, program string, err error) {
	program = m.kernel.tools.restore
	link := filepath.Join(dir, filepath.Base(program)) // the program goes by the name that it is called by
	m.kernel.tools.restore = link
	lead = func(to string) error {
		if err := os.Symlink(to, link+".new"); err != nil {
			return err
		}
		return os.Rename(link+".new", link)
	}
	return lead, program, lead(program)
}

// RulesText gives the rules of a policy, as iptables-restore takes them.
func RulesText(p policy.Policy) string {
	plan, err := policy.Compile(p)
	if err != nil {
		panic(err)
	}
	b := Bounds{}.orDefault()
	return filterTable(b, forwardingOf(plan, policy.Floor{})) + fixedTables(b)
}

package netpolicy

import (
	"fmt"
	"net/netip"

	"stillframe/netpolicy/policy"
)

// SetFloor makes another floor the one beneath every policy: the node's addresses or its peers' have changed. Networks
// that are made from now on stand on it; those that are there, and the host's rules, are brought to it by Run, at once.
// The gate has its own and must be told before.
func (m *Manager) SetFloor(f policy.Floor) error {
	if err := holdsReserved(f, m.cfg.Pool); err != nil {
		return fmt.Errorf("networks: %w", err)
	}
	m.floor.Store(&f)
	for _, n := range m.all() {
		m.changed.add(n)
	}
	return nil
}

func holdsReserved(f policy.Floor, pool netip.Prefix) error {
	for _, p := range Reserved(pool) {
		if _, denied := f.Denies(p.Addr()); !denied {
			return fmt.Errorf("the floor does not hold %s, which sandboxes' own addresses are in", p)
		}
	}
	return nil
}

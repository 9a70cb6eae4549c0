package fsm

// TypeSetOrgLimits is the command type of this file.
const TypeSetOrgLimits CommandType = 18

// SetOrgLimits changes limits of an organization; what is nil stays as it is, 0 is no bound. A bound below what the
// organization has already keeps it from having more, and takes nothing away.
type SetOrgLimits struct {
	Now          Time  `codec:"now"`
	Org          OrgID `codec:"o"`
	MaxSandboxes *int  `codec:"ms,omitempty"`
	MaxSnapshots *int  `codec:"mn,omitempty"`
	MaxRequests  *int  `codec:"mr,omitempty"`
}

func (SetOrgLimits) commandType() CommandType { return TypeSetOrgLimits }

func (d *draft) applySetOrgLimits(c SetOrgLimits) *Error {
	var p problems
	p.now(c.Now)
	p.id("the organization's id", string(c.Org))
	if p.err != nil {
		return p.err
	}
	org, ok := d.Org(c.Org)
	if !ok {
		return Errorf(KindNotFound, "organization %s not found", c.Org)
	}
	for _, change := range []struct {
		to    *int
		limit *int
	}{{c.MaxSandboxes, &org.MaxSandboxes}, {c.MaxSnapshots, &org.MaxSnapshots}, {c.MaxRequests, &org.MaxRequests}} {
		if change.to == nil {
			continue
		}
		if *change.to < 0 {
			return Errorf(KindInvalid, "a limit must not be negative")
		}
		*change.limit = *change.to
	}
	d.putOrg(org)
	return nil
}

// OrgUse gives how much an organization has of what its limits bound.
func (s *State) OrgUse(id OrgID) (sandboxes, snapshots int) {
	n, _ := s.orgCounts.Get([]byte(id))
	return n.sandboxes, n.snapshots
}

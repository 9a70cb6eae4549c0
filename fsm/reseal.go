package fsm

import (
	"bytes"
	"slices"
)

// Reseal puts values that were sealed anew, under another key, in the place of the ones before, in one sandbox,
// snapshot or open intent. It is a compare-and-swap: refused as a conflict, with nothing changed, unless every value
// that it names is still there. So it may be repeated, and never undoes a change that was made meanwhile. What the
// values mean stays the same, which only the proposer can know.
type Reseal struct {
	Now      Time        `codec:"now"`
	Sandbox  SandboxID   `codec:"sb,omitempty"` // exactly one of these three
	Snapshot SnapshotID  `codec:"sn,omitempty"`
	Intent   IntentID    `codec:"in,omitempty"`
	Headers  []SealSwap  `codec:"h,omitempty"`
	CA       *SealSwapCA `codec:"ca,omitempty"`
}

// SealSwap is a header's sealed value before and after.
type SealSwap struct {
	Was string `codec:"w"`
	Is  string `codec:"i"`
}

// SealSwapCA is a sealed CA seed before and after.
type SealSwapCA struct {
	Was []byte `codec:"w"`
	Is  []byte `codec:"i"`
}

func (Reseal) commandType() CommandType { return TypeReseal }

// Sealed is a thing of the state that holds sealed values. Exactly one of the ids is set.
type Sealed struct {
	Org      OrgID
	Sandbox  SandboxID
	Snapshot SnapshotID
	Intent   IntentID
	Policy   *NetworkPolicy
	CA       []byte
}

// Sealed gives everything in the state that holds sealed values.
func (s *State) Sealed() []Sealed {
	var out []Sealed
	add := func(v Sealed) {
		if len(v.CA) > 0 || v.Policy.injects() {
			out = append(out, v)
		}
	}
	for sb := range s.sandboxes.rows() {
		add(Sealed{Org: sb.Org, Sandbox: sb.ID, Policy: sb.NetworkPolicy, CA: sb.CA})
	}
	for sn := range s.snapshots.rows() {
		add(Sealed{Org: sn.Org, Snapshot: sn.ID, Policy: sn.NetworkPolicy, CA: sn.CA})
	}
	for id := range s.openIntents.rows() {
		in, _ := s.Intent(*id)
		add(Sealed{Org: in.Org, Intent: in.ID, Policy: in.NetworkPolicy})
	}
	return out
}

func (p *NetworkPolicy) injects() bool {
	return p != nil && slices.ContainsFunc(p.Transforms, func(t Transform) bool { return len(t.InjectHeaders) > 0 })
}

func (d *draft) applyReseal(c Reseal) *Error {
	var p problems
	p.now(c.Now)
	given := 0
	for _, id := range []string{string(c.Sandbox), string(c.Snapshot), string(c.Intent)} {
		if id != "" {
			given++
		}
	}
	p.addf(given == 1, "one sandbox, snapshot or intent must be named, not %d", given)
	if c.CA != nil {
		p.sealedCA(c.CA.Is)
		p.addf(len(c.CA.Is) > 0, "a sealed CA is empty")
	}
	if p.err != nil {
		return p.err
	}
	switch {
	case c.Sandbox != "":
		sb, ok := d.Sandbox(c.Sandbox)
		if !ok || !c.swap(&sb.NetworkPolicy, &sb.CA) {
			return errResealed
		}
		d.putSandbox(sb)
	case c.Snapshot != "":
		sn, ok := d.Snapshot(c.Snapshot)
		if !ok || !c.swap(&sn.NetworkPolicy, &sn.CA) {
			return errResealed
		}
		d.putSnapshot(sn)
	default:
		in, ok := d.Intent(c.Intent)
		var none []byte
		if !ok || in.State != IntentOpen || !c.swap(&in.NetworkPolicy, &none) {
			return errResealed
		}
		d.putIntent(in)
	}
	return nil
}

var errResealed = Errorf(KindConflict, "what was to be sealed anew has changed meanwhile")

// swap puts the new values into a policy and a CA; false, with nothing changed, when a value is not there.
func (c Reseal) swap(policy **NetworkPolicy, ca *[]byte) bool {
	if c.CA != nil && !bytes.Equal(*ca, c.CA.Was) {
		return false
	}
	fresh := make(map[string]string, len(c.Headers))
	for _, h := range c.Headers {
		fresh[h.Was] = h.Is
	}
	found := map[string]bool{}
	next := (*policy).mapSecrets(func(was string) string {
		is, ok := fresh[was]
		if !ok {
			return was
		}
		found[was] = true
		return is
	})
	if len(found) != len(fresh) {
		return false
	}
	*policy = next
	if c.CA != nil {
		*ca = c.CA.Is
	}
	return true
}

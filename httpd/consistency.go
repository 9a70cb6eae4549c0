package httpd

import (
	"strconv"
	"time"

	"stillframe/fsm"
)

// Headers of reads: the first is the client's wish, and with the answer says what it is; the others tell of a stale
// answer how old it is at most, and which log entry it stands at.
const (
	headerConsistency = "Stillframe-Consistency"
	headerAge         = "Stillframe-Age-Ms"
	headerPosition    = "Stillframe-Position"
)

const (
	linearizable = "linearizable"
	stale        = "stale"
	ageUnknown   = "unknown" // the node has not known what is acknowledged since it started
)

// consistency reads what a request wants of a read. Nothing else can be asked to be stale: that would look like a
// promise about the call's effect.
func (c *call) consistency(r route) error {
	values := c.fc.Request().Header.PeekAll(headerConsistency)
	if len(values) == 0 {
		return nil
	}
	errs := &fieldErrors{}
	switch wish := string(values[0]); {
	case len(values) > 1, wish != linearizable && wish != stale:
		errs.add(headerConsistency, "must be given once, as %s or %s", linearizable, stale)
	case wish == stale && !r.read:
		errs.add(headerConsistency, "%s is for reads of sandboxes, snapshots and templates only", stale)
	default:
		c.stale = wish == stale
	}
	return errs.err()
}

// state is what a read is answered from: by default it has everything that was acknowledged before the call; stale, it
// is what this node has, with its age told.
func (s *Server) state(c *call) (*fsm.State, error) {
	if !c.stale {
		return s.read(c.ctx)
	}
	state, position, asOf := s.log.StateAsOf()
	c.fc.Set(headerConsistency, stale)
	c.fc.Set(headerPosition, strconv.FormatUint(position, 10))
	c.fc.Set(headerAge, ageView(s.cfg.Now(), asOf))
	return state, nil
}

// ageView is an age in milliseconds, rounded up. Where the monotonic clock (which a suspended host stops) and the wall
// clock (which may be set back) disagree, the larger counts: an answer is never older than it says.
func ageView(now, asOf time.Time) string {
	if asOf.IsZero() {
		return ageUnknown
	}
	age := max(now.Sub(asOf), now.Round(0).Sub(asOf.Round(0)), 0)
	return strconv.FormatInt(int64((age+time.Millisecond-1)/time.Millisecond), 10)
}

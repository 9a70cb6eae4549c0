package httpd

import (
	"math"
	"strconv"
	"sync"
	"time"

	"stillframe/fsm"
)

// rates bounds how many requests a minute each organization sends to this node. A bucket holds a minute's worth and is
// filled evenly, so that who was quiet for a minute may send that many at once. Nodes count for themselves: with n
// nodes an organization that spreads its requests gets n times its bound.
type rates struct {
	mu      sync.Mutex
	buckets map[fsm.OrgID]bucket // of organizations that have a bound and have sent something
}

type bucket struct {
	tokens float64
	at     time.Time // when tokens was right
}

func newRates() *rates { return &rates{buckets: map[fsm.OrgID]bucket{}} }

// take spends one request of an organization, or says how long it has to wait for the next.
func (r *rates) take(org fsm.Org, now time.Time) (wait time.Duration, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if org.MaxRequests == 0 {
		delete(r.buckets, org.ID)
		return 0, true
	}
	most := float64(org.MaxRequests)
	perSecond := most / 60
	b, known := r.buckets[org.ID]
	if !known {
		b = bucket{most, now}
	}
	if passed := now.Sub(b.at); passed > 0 { // a clock that was set back gives nothing
		b.tokens += passed.Seconds() * perSecond
	}
	b.tokens, b.at = min(b.tokens, most), now
	if b.tokens >= 1 {
		b.tokens--
		wait, ok = 0, true
	} else {
		wait = time.Duration((1 - b.tokens) / perSecond * float64(time.Second))
	}
	r.buckets[org.ID] = b
	return wait, ok
}

// admit refuses a request beyond its organization's bound.
func (s *Server) admit(c *call) error {
	wait, ok := s.rates.take(c.org, s.cfg.Now())
	if ok {
		return nil
	}
	e := failf(fsm.KindLimit, "the organization has sent its %d requests of this minute to this node",
		c.org.MaxRequests)
	e.after = strconv.Itoa(max(1, int(math.Ceil(wait.Seconds()))))
	return e
}

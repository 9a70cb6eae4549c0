package gate

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Kinds of decisions.
const (
	KindDNS  = "dns"
	KindTCP  = "tcp"  // a connection; Name is set where it said one
	KindHTTP = "http" // a request that was read: one to a transform's domain, or the first of a connection in clear
)

// Verdicts.
const (
	Allowed     = "allowed"
	Denied      = "denied"
	Transformed = "transformed"
)

// Decision is one line of a sandbox's log. It never holds paths, header values or bodies.
type Decision struct {
	Time    time.Time  `json:"time"`
	Kind    string     `json:"kind"`
	Name    string     `json:"name,omitempty"` // canonical
	Addr    netip.Addr `json:"addr,omitzero"`  // that was dialled; the guest's destination where none was
	Port    uint16     `json:"port,omitempty"`
	Verdict string     `json:"verdict"`
	Rule    string     `json:"rule"`
	Reason  string     `json:"reason,omitempty"` // why it failed though allowed, or more about a denial
	Up      int64      `json:"bytes_up"`         // from the guest
	Down    int64      `json:"bytes_down"`       // to the guest
}

// entry is a Decision whose bytes are still being counted. All but the counters belongs to the log once it was added.
type entry struct {
	Decision
	up, down atomic.Int64
}

// journal keeps the last decisions of one sandbox.
type journal struct {
	mu   sync.Mutex
	ring []*entry // next is the oldest, once it is full
	next int
	size int
}

func newJournal(size int) *journal { return &journal{size: size} }

func (j *journal) add(e *entry) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.ring) < j.size {
		j.ring = append(j.ring, e)
		return
	}
	j.ring[j.next] = e
	j.next = (j.next + 1) % j.size
}

// amend notes what became of a decision after it was added.
func (j *journal) amend(e *entry, change func(*Decision)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	change(&e.Decision)
}

// last gives up to limit decisions, the latest first; all that are kept for limit 0 or less.
func (j *journal) last(limit int) []Decision {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := len(j.ring)
	if limit <= 0 || limit > n {
		limit = n
	}
	out := make([]Decision, 0, limit)
	for i := range limit {
		e := j.ring[(j.next+n-1-i)%n]
		d := e.Decision
		d.Up, d.Down = e.up.Load(), e.down.Load()
		out = append(out, d)
	}
	return out
}

package fsm

import (
	"encoding/binary"
	"slices"

	iradix "github.com/hashicorp/go-immutable-radix/v2"
)

// Due says what a Tick at now would do: how many sandboxes are beyond their timeout, which is how many IntentIDs it
// wants, and whether anything at all is due. A cluster where nothing is due needs no Tick.
func (s *State) Due(now Time) (expired int, due bool) {
	expired = len(dueBy(s.sandboxTimeouts, now))
	return expired, expired > 0 || anyDue(s.closedIntents, now) || anyDue(s.requestExpiries, now)
}

func (d *draft) applyTick(c Tick) *Error {
	var p problems
	p.now(c.Now)
	if p.err != nil {
		return p.err
	}
	expired := dueBy(d.sandboxTimeouts, c.Now)
	slices.Sort(expired)
	ids := c.IntentIDs
	for _, sandbox := range expired {
		var id IntentID
		if id, ids = d.takeIntentID(ids); id == "" {
			break
		}
		sb, _ := d.Sandbox(sandbox)
		d.openDelete(c.Now, id, sb)
	}
	for _, key := range dueBy(d.requestExpiries, c.Now) {
		d.dropRequest(key)
	}
	for _, id := range dueBy(d.closedIntents, c.Now) {
		d.dropIntent(id) // its record, where it has one, expired no later: see openIntent
	}
	return nil
}

// takeIntentID takes the first id that is good and new; none is the empty id.
func (d *draft) takeIntentID(ids []IntentID) (IntentID, []IntentID) {
	for i, id := range ids {
		if validID(string(id)) && d.newIntentID(id) == nil {
			return id, ids[i+1:]
		}
	}
	return "", nil
}

// dueBy gives the entries of an index by time that are not after now.
func dueBy[T any](index *iradix.Tree[T], now Time) []T {
	var out []T
	it := index.Root().Iterator()
	for key, v, ok := it.Next(); ok && timeOf(key) <= now; key, v, ok = it.Next() {
		out = append(out, v)
	}
	return out
}

func anyDue[T any](index *iradix.Tree[T], now Time) bool {
	key, _, ok := index.Root().Minimum()
	return ok && timeOf(key) <= now
}

// timeOf reads the time that timed put at the start of a key.
func timeOf(key []byte) Time { return Time(binary.BigEndian.Uint64(key) ^ 1<<63) }

package fsm

import (
	"encoding/binary"
	"slices"
)

// maxTickRows bounds how many rows of a table one Tick drops: what comes after it in the log must not wait for long.
// The next Tick goes on.
const maxTickRows = 5000

// Due says what a Tick at now would do: how many sandboxes are beyond their timeout, which is how many IntentIDs it
// wants, and whether anything at all is due. A cluster where nothing is due needs no Tick.
func (s *State) Due(now Time) (expired int, due bool) {
	expired = countDue(s.sandboxTimeouts, now)
	return expired, expired > 0 || anyDue(s.closedIntents, now) || anyDue(s.requestExpiries, now)
}

func (d *draft) applyTick(c Tick) *Error {
	var p problems
	p.now(c.Now)
	if p.err != nil {
		return p.err
	}
	expired := dueBy(d.sandboxTimeouts, c.Now, d.sandboxTimeouts.Len())
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
	records := dueBy(d.requestExpiries, c.Now, maxTickRows)
	for _, key := range records {
		d.dropRequest(key)
	}
	if len(records) == maxTickRows {
		return nil // intents stay until no record that names one can be left: see openIntent
	}
	for _, id := range dueBy(d.closedIntents, c.Now, maxTickRows) {
		d.dropIntent(id)
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

// dueBy gives the first entries of an index by time that are not after now.
func dueBy[T any](index *tree[T], now Time, most int) []T {
	var out []T
	c := index.cursor(0)
	for key, v, ok := c.next(); ok && timeOf(key) <= now && len(out) < most; key, v, ok = c.next() {
		out = append(out, *v)
	}
	return out
}

func anyDue[T any](index *tree[T], now Time) bool {
	key, _, ok := index.cursor(0).next()
	return ok && timeOf(key) <= now
}

// countDue counts the entries of an index by time that are not after now.
func countDue[T any](index *tree[T], now Time) int { return index.rank(timed(now+1, "")) }

// timeOf reads the time that timed put at the start of a key.
func timeOf(key string) Time { return Time(binary.BigEndian.Uint64([]byte(key[:8])) ^ 1<<63) }

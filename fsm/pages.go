package fsm

import (
	"iter"
	"slices"
	"strings"
)

// Sandboxes gives the sandboxes of an organization in every state, oldest first.
func (s *State) Sandboxes(org OrgID) iter.Seq[Sandbox] { return values(s.orgSandboxes, org) }

// Snapshots gives the ready snapshots of an organization, oldest first.
func (s *State) Snapshots(org OrgID) iter.Seq[Snapshot] { return values(s.readySnapshots, org) }

// Page says which part of a list is wanted: at most Limit things after the first Offset, oldest first or newest first.
// Neither may be negative.
type Page struct {
	Offset, Limit int
	NewestFirst   bool
}

// SandboxQuery selects sandboxes and orders them by creation, or by state and then creation.
type SandboxQuery struct {
	State   SandboxState // empty: any
	ByState bool
}

// ListSandboxes gives a page of an organization's sandboxes and how many there are on all pages. Where all are wanted
// in the order of their creation, it takes no time in proportion to that; else it looks at each of the organization's.
func (s *State) ListSandboxes(org OrgID, q SandboxQuery, p Page) (items []Sandbox, total int) {
	var keep func(*Sandbox) bool
	if q.State != "" {
		keep = func(sb *Sandbox) bool { return sb.State == q.State }
	}
	var by func(*Sandbox) string
	if q.ByState {
		by = func(sb *Sandbox) string { return string(sb.State) }
	}
	return list(s.orgSandboxes, org, keep, by, p)
}

// SnapshotQuery selects ready snapshots and orders them by creation, or by template and then creation.
type SnapshotQuery struct {
	NamePart   string // only names that contain it
	ByTemplate bool
}

// ListSnapshots gives a page of an organization's ready snapshots, as ListSandboxes does.
func (s *State) ListSnapshots(org OrgID, q SnapshotQuery, p Page) (items []Snapshot, total int) {
	var keep func(*Snapshot) bool
	if q.NamePart != "" {
		keep = func(sn *Snapshot) bool { return strings.Contains(sn.Name, q.NamePart) }
	}
	var by func(*Snapshot) string
	if q.ByTemplate {
		by = func(sn *Snapshot) string { return string(sn.Template) }
	}
	return list(s.readySnapshots, org, keep, by, p)
}

// Held counts the sandboxes and the snapshots of a node, in every state.
func (s *State) Held(id NodeID) (sandboxes, snapshots int) {
	from, to := s.nodeSandboxes.span(joined(string(id), ""))
	first, last := s.nodeSnapshots.span(joined(string(id), ""))
	return to - from, last - first
}

func values[T any](index *tree[T], org OrgID) iter.Seq[T] {
	return func(yield func(T) bool) {
		c := index.from(joined(string(org), ""))
		for _, v, ok := c.next(); ok; _, v, ok = c.next() {
			if !yield(*v) {
				return
			}
		}
	}
}

// list gives a page of what an index has of an organization: what keep takes (nil: all), in the order of by and then of
// the index (nil: of the index), newest first exactly the reverse of oldest first.
func list[T any](index *tree[T], org OrgID, keep func(*T) bool, by func(*T) string, p Page) ([]T, int) {
	from, to := index.span(joined(string(org), ""))
	if keep == nil && by == nil {
		return pageOf(index, from, to, p)
	}
	var found []*T // rows in their place: a million pointers are nothing beside a million rows
	c := index.cursor(from)
	for range to - from {
		if _, v, _ := c.next(); keep == nil || keep(v) {
			found = append(found, v)
		}
	}
	if by != nil {
		slices.SortStableFunc(found, func(a, b *T) int { return strings.Compare(by(a), by(b)) })
	}
	n := max(0, min(p.Limit, len(found)-p.Offset))
	items := make([]T, n)
	for i := range items {
		at := p.Offset + i
		if p.NewestFirst {
			at = len(found) - 1 - at
		}
		items[i] = *found[at]
	}
	return items, len(found)
}

// pageOf gives the part of an index between two ranks that a page wants.
func pageOf[T any](index *tree[T], from, to int, p Page) ([]T, int) {
	n := max(0, min(p.Limit, to-from-p.Offset))
	items := make([]T, n)
	c, step := index.cursor(from+p.Offset), (*cursor[T]).next
	if p.NewestFirst {
		c, step = index.cursor(to-1-p.Offset), (*cursor[T]).previous
	}
	for i := range items {
		_, v, _ := step(c)
		items[i] = *v
	}
	return items, to - from
}

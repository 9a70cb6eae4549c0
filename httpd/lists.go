package httpd

import (
	"cmp"
	"iter"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"stillframe/fsm"
)

// query reads a request's query. An empty value means omitted: that is how some clients send what is not set.
type query struct {
	c    *call
	errs fieldErrors
}

func (q *query) text(name string, most int) string {
	v := q.c.fc.Query(name)
	if !utf8.ValidString(v) || utf8.RuneCountInString(v) > most {
		q.errs.add(name, "must be at most %d characters of UTF-8", most)
	}
	return v
}

func (q *query) choice(name, def string, allowed ...string) string {
	v := q.c.fc.Query(name)
	if v == "" {
		return def
	}
	if !slices.Contains(allowed, v) {
		q.errs.add(name, "must be one of %s", strings.Join(allowed, ", "))
	}
	return v
}

func (q *query) integer(name string, def, lowest, highest int) int {
	v := q.c.fc.Query(name)
	if v == "" {
		return def
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < lowest || n > highest {
		q.errs.add(name, "must be an integer between %d and %d", lowest, highest)
		return def
	}
	return n
}

const (
	defaultPageSize = 20
	maxPageSize     = 100
	maxPage         = 1 << 31 / maxPageSize // keeps the offset within an int
)

// paging is how a list is to be ordered and cut.
type paging struct {
	sort       string
	descending bool
	page, size int
}

// paging reads sort, order-by, page and page-size. Everything can be sorted by created_at.
func (q *query) paging(otherSort string) paging {
	return paging{
		sort:       q.choice("sort", "created_at", "created_at", otherSort),
		descending: q.choice("order-by", "desc", "asc", "desc") == "desc",
		page:       q.integer("page", 1, 1, maxPage),
		size:       q.integer("page-size", defaultPageSize, 1, maxPageSize),
	}
}

// cut sorts items that come oldest first and gives the page. Items that compare equal keep the order of their creation,
// so that pages never overlap; descending is exactly the reverse of ascending.
func cut[T, V any](p paging, items []T, by func(T) string, view func(T) V) page[V] {
	if p.sort != "created_at" {
		slices.SortStableFunc(items, func(a, b T) int { return cmp.Compare(by(a), by(b)) })
	}
	if p.descending {
		slices.Reverse(items)
	}
	out := page[V]{Items: []V{}, TotalItems: len(items)}
	from := min((p.page-1)*p.size, len(items))
	for _, item := range items[from:min(from+p.size, len(items))] {
		out.Items = append(out.Items, view(item))
	}
	return out
}

func filter[T any](all iter.Seq[T], keep func(T) bool) []T {
	var out []T
	for item := range all {
		if keep(item) {
			out = append(out, item)
		}
	}
	return out
}

// sandboxStates are all that clients know; this version enters only some of them.
var sandboxStates = []string{
	"starting", "running", "snapshotting", "paused", "unpausing", "stopping", "stopped", "deleting", "deleted",
}

func (s *Server) listSandboxes(c *call) (reply, error) {
	q := query{c: c}
	state := q.choice("state", "", sandboxStates...)
	p := q.paging("state")
	if err := q.errs.err(); err != nil {
		return reply{}, err
	}
	current, err := s.state(c)
	if err != nil {
		return reply{}, err
	}
	items := filter(current.Sandboxes(c.org.ID), func(sb fsm.Sandbox) bool {
		return state == "" || string(sb.State) == state
	})
	byState := func(sb fsm.Sandbox) string { return string(sb.State) }
	return jsonReply(http.StatusOK, cut(p, items, byState, s.sandboxItemView))
}

func (s *Server) listSnapshots(c *call) (reply, error) {
	q := query{c: c}
	part := q.text("query", 64)
	p := q.paging("template_id")
	if err := q.errs.err(); err != nil {
		return reply{}, err
	}
	current, err := s.state(c)
	if err != nil {
		return reply{}, err
	}
	items := filter(current.Snapshots(c.org.ID), func(sn fsm.Snapshot) bool {
		return sn.State == fsm.SnapshotReady && strings.Contains(sn.Name, part)
	})
	byTemplate := func(sn fsm.Snapshot) string { return string(sn.Template) }
	return jsonReply(http.StatusOK, cut(p, items, byTemplate, snapshotView))
}

func (s *Server) listTemplates(c *call) (reply, error) {
	current, err := s.state(c)
	if err != nil {
		return reply{}, err
	}
	all := page[template]{Items: []template{}}
	for _, t := range current.Templates(c.org.ID) {
		all.Items = append(all.Items, templateView(t))
	}
	all.TotalItems = len(all.Items)
	return jsonReply(http.StatusOK, all)
}

package httpd

import (
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

// integer reads a number from 1 on.
func (q *query) integer(name string, def, highest int) int {
	v := q.c.fc.Query(name)
	if v == "" {
		return def
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 || n > highest {
		q.errs.add(name, "must be an integer between 1 and %d", highest)
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
	number     int // from 1
	size       int
}

// paging reads sort, order-by, page and page-size. Everything can be sorted by created_at.
func (q *query) paging(otherSort string) paging {
	return paging{
		sort:       q.choice("sort", "created_at", "created_at", otherSort),
		descending: q.choice("order-by", "desc", "asc", "desc") == "desc",
		number:     q.integer("page", 1, maxPage),
		size:       q.integer("page-size", defaultPageSize, maxPageSize),
	}
}

func (p paging) page() fsm.Page {
	return fsm.Page{Offset: (p.number - 1) * p.size, Limit: p.size, NewestFirst: p.descending}
}

// pageView is a page of a list for the wire. Things that compare equal are in the order of their creation, so that
// pages never overlap.
func pageView[T, V any](items []T, total int, view func(T) V) page[V] {
	out := page[V]{Items: []V{}, TotalItems: total}
	for _, item := range items {
		out.Items = append(out.Items, view(item))
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
	items, total := current.ListSandboxes(c.org.ID, fsm.SandboxQuery{
		State: fsm.SandboxState(state), ByState: p.sort == "state",
	}, p.page())
	return jsonReply(http.StatusOK, pageView(items, total, s.sandboxItemView))
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
	items, total := current.ListSnapshots(c.org.ID, fsm.SnapshotQuery{
		NamePart: part, ByTemplate: p.sort == "template_id",
	}, p.page())
	return jsonReply(http.StatusOK, pageView(items, total, snapshotView))
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

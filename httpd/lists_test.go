package httpd

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"stillframe/fsm"
)

// items gives a field of every item of a list.
func items(t *testing.T, resp response, field string) []string {
	t.Helper()
	var out []string
	for _, item := range resp.items(t) {
		out = append(out, fmt.Sprint(item[field]))
	}
	return out
}

func TestListSnapshots(t *testing.T) {
	e := newEnv(t)
	debian := e.do("POST", create, `{"template_name":"system/debian:bookworm"}`).text(t, "id")
	busybox := e.sandbox()
	var names []string
	for i := range 25 {
		name := fmt.Sprintf("snap-%02d", i)
		names = append(names, name)
		e.snapshot([]string{debian, busybox}[i%2], name)
	}
	newest := slices.Clone(names)
	slices.Reverse(newest)

	list := func(query string) response { return e.do("GET", "/v1/snapshots?"+query, nil) }
	require.Equal(t, newest[:20], items(t, list(""), "name"), "newest first, 20 on a page")
	require.Equal(t, newest[20:], items(t, list("page=2"), "name"))
	require.Empty(t, items(t, list("page=3"), "name"))
	require.EqualValues(t, 25, list("page=3").object(t)["total_items"])
	require.Equal(t, names[5:10], items(t, list("order-by=asc&page-size=5&page=2"), "name"))
	require.Equal(t, newest, items(t, list("page-size=100&query="), "name"), "an empty value is none")
	require.Equal(t, []string{"snap-24", "snap-14", "snap-04"}, items(t, list("query=4"), "name"))
	require.EqualValues(t, 3, list("query=4&page-size=1").object(t)["total_items"])
	require.Empty(t, items(t, list("query=SNAP"), "name"))

	byTemplate := items(t, list("sort=template_id&order-by=asc&page-size=100"), "template_id")
	require.True(t, slices.IsSorted(byTemplate))
	ascending := items(t, list("sort=template_id&order-by=asc&page-size=100"), "name")
	descending := items(t, list("sort=template_id&order-by=desc&page-size=100"), "name")
	slices.Reverse(descending)
	require.Equal(t, ascending, descending)
	var paged []string
	for page := 1; page <= 9; page++ {
		query := fmt.Sprintf("sort=template_id&order-by=asc&page-size=3&page=%d", page)
		paged = append(paged, items(t, list(query), "name")...)
	}
	require.Equal(t, ascending, paged, "pages neither overlap nor leave gaps")
}

func TestListSandboxes(t *testing.T) {
	e := newEnv(t)
	first, second := e.sandbox(), e.sandbox()
	sb, _ := e.log.State().Sandbox(fsm.SandboxID(first))
	e.log.must(t, fsm.ReportStopped{Now: now(), Sandbox: sb.ID, Owner: sb.Owner, Epoch: sb.Epoch, Reason: "VMM exited"})

	list := func(query string) response { return e.do("GET", "/v1/sandboxes?"+query, nil) }
	require.Equal(t, []string{second, first}, items(t, list(""), "id"))
	require.Equal(t, []string{second, first}, items(t, list("sort=state&order-by=asc"), "id"), "running before stopped")
	require.Equal(t, []string{first, second}, items(t, list("sort=state"), "id"))
	require.Equal(t, []string{second}, items(t, list("state=running"), "id"))
	require.Equal(t, []string{first}, items(t, list("state=stopped&page-size=1"), "id"))
	for _, state := range sandboxStates {
		require.Equal(t, 200, list("state="+state).status, state)
	}

	item := list("state=running").items(t)[0]
	running, _ := e.log.State().Sandbox(fsm.SandboxID(second))
	require.Equal(t, string(testNode), item["pod_id"])
	require.Equal(t, "tpl-busybox", item["template_id"])
	require.Equal(t, timeView(running.LaunchedAt), item["launch_time"])
	require.Equal(t, timeView(running.StateAt), item["state_change_time"])
	require.EqualValues(t, running.TimeoutAt.Std().Unix(), item["timeout_at"])

	stopped := e.do("GET", "/v1/sandbox/"+first, nil).object(t)
	require.Equal(t, "stopped", stopped["state"])
	require.Equal(t, "VMM exited", stopped["state_reason"])
	require.Equal(t, 204, e.do("DELETE", "/v1/sandbox/"+first, nil).status)
}

func TestListQueriesAreValidated(t *testing.T) {
	e := newEnv(t)
	long := fmt.Sprintf("%065d", 1)
	for query, fields := range map[string][]string{
		"/v1/snapshots?page=0":                  {"page"},
		"/v1/snapshots?page=-1&page-size=0":     {"page", "page-size"},
		"/v1/snapshots?page=1.5&page-size=x":    {"page", "page-size"},
		"/v1/snapshots?page-size=101":           {"page-size"},
		"/v1/snapshots?page=99999999999999999":  {"page"},
		"/v1/snapshots?sort=name&order-by=down": {"sort", "order-by"},
		"/v1/snapshots?sort=state":              {"sort"},
		"/v1/snapshots?query=" + long:           {"query"},
		"/v1/snapshots?query=%ff":               {"query"},
		"/v1/sandboxes?state=idle":              {"state"},
		"/v1/sandboxes?state=RUNNING":           {"state"},
		"/v1/sandboxes?sort=template_id":        {"sort"},
		"/v1/sandboxes?page-size=1000":          {"page-size"},
	} {
		resp := e.do("GET", query, nil)
		require.Equal(t, 400, resp.status, query)
		require.Equal(t, fields, resp.fields(t), query)
	}
	require.Equal(t, 200, e.do("GET", "/v1/snapshots?page=21474836&page-size=100", nil).status)
	require.Equal(t, 200, e.do("GET", "/v1/snapshots?query="+long[1:], nil).status)
}

package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/httpd/client"
)

const key = "sf_the-secret-of-this-test"

// seen is one request as the server met it.
type seen struct {
	method, path, query, auth, idempotency, contentType, body string
}

// node serves one handler and keeps what it was asked.
type node struct {
	*httptest.Server
	mu   sync.Mutex
	reqs []seen
}

// serve starts a node whose handler gets the number of the request, from 1.
func serve(t *testing.T, handle func(n int, w http.ResponseWriter, r *http.Request)) (*node, *client.Client) {
	t.Helper()
	n := &node{}
	n.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		n.mu.Lock()
		n.reqs = append(n.reqs, seen{
			r.Method, r.URL.EscapedPath(), r.URL.RawQuery, r.Header.Get("Authorization"), r.Header.Get("Idempotency-Key"),
			r.Header.Get("Content-Type"), string(body),
		})
		count := len(n.reqs)
		n.mu.Unlock()
		r.Body = io.NopCloser(strings.NewReader(string(body)))
		handle(count, w, r)
	}))
	t.Cleanup(n.Close)
	return n, dial(t, client.Config{BaseURL: n.URL, Key: key})
}

func dial(t *testing.T, cfg client.Config) *client.Client {
	t.Helper()
	c, err := client.New(cfg)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

func (n *node) requests() []seen {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]seen(nil), n.reqs...)
}

func answer(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

const sandboxJSON = `{"id":"sbx-a","template_id":"tpl-1","vcpu":2,"memory":1024,"disk":10240,"timeout":300,` +
	`"state":"running","auto_pause":false,"created_at":"2026-01-02T03:04:05.000006Z","later":{"b":1, "a":2}}`

func TestLostAnswerIsAskedForAgainUnderTheSameKey(t *testing.T) {
	n, c := serve(t, func(n int, w http.ResponseWriter, _ *http.Request) {
		if n < 3 {
			panic(http.ErrAbortHandler) // the request arrived, the answer is lost
		}
		answer(w, http.StatusCreated, sandboxJSON)
	})
	sandbox, err := c.CreateSandbox(t.Context(), client.CreateSandbox{TemplateName: "system/busybox", VCPU: 2})
	require.NoError(t, err)
	require.Equal(t, "sbx-a", sandbox.ID)
	require.Equal(t, time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC), sandbox.CreatedAt)
	require.Equal(t, sandboxJSON, string(sandbox.Raw), "the node's JSON, unchanged")

	reqs := n.requests()
	require.Len(t, reqs, 3)
	require.NotEmpty(t, reqs[0].idempotency)
	for _, r := range reqs {
		require.Equal(t, reqs[0], r, "every attempt is the same request")
	}
	require.JSONEq(t, `{"template_name":"system/busybox","vcpu":2}`, reqs[0].body)
	require.Equal(t, "Bearer "+key, reqs[0].auth)

	_, err = c.CreateSandbox(t.Context(), client.CreateSandbox{TemplateName: "system/busybox"})
	require.NoError(t, err)
	require.NotEqual(t, reqs[0].idempotency, n.requests()[3].idempotency, "another request, another key")
}

func TestRetriesAreBoundedAndTellTheKey(t *testing.T) {
	n, c := serve(t, func(int, http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	_, err := c.CreateSnapshot(t.Context(), "sbx-a", client.CreateSnapshot{IdempotencyKey: "mine"})
	var lost *client.NetworkError
	require.ErrorAs(t, err, &lost)
	require.Equal(t, "mine", lost.IdempotencyKey)
	require.False(t, lost.Timeout())
	require.Len(t, n.requests(), client.DefaultAttempts)
}

func TestOnlyA503ThatSaysWhenIsAskedAgain(t *testing.T) {
	for _, tc := range []struct {
		status     int
		retryAfter string
		requests   int
	}{
		{http.StatusServiceUnavailable, "0", client.DefaultAttempts},
		{http.StatusServiceUnavailable, "", 1},
		{http.StatusServiceUnavailable, "3600", 1},
		{http.StatusTooManyRequests, "0", 1},
		{http.StatusConflict, "", 1},
		{http.StatusInternalServerError, "", 1},
		{http.StatusGatewayTimeout, "", 1},
	} {
		t.Run(fmt.Sprint(tc.status, "/", tc.retryAfter), func(t *testing.T) {
			n, c := serve(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
				if tc.retryAfter != "" {
					w.Header().Set("Retry-After", tc.retryAfter)
				}
				w.Header().Set("X-Request-Id", "req-1")
				answer(w, tc.status, `{"message":"no","resource":{"id":"sbx-z","state":"starting"},"errors":`+
					`[{"field":"network_policy.allow_cidrs[2]","error":"is no CIDR"},{"field":"vcpu","error":"too many"}]}`)
			})
			_, err := c.CreateSandbox(t.Context(), client.CreateSandbox{IdempotencyKey: "k"})
			require.Equal(t, &client.Error{
				Status: tc.status, Message: "no", RequestID: "req-1", IdempotencyKey: "k",
				Resource: &client.Resource{ID: "sbx-z", State: "starting"},
				Fields: []client.FieldError{
					{Field: "network_policy.allow_cidrs[2]", Problem: "is no CIDR"}, {Field: "vcpu", Problem: "too many"},
				},
			}, err)
			require.Equal(t, tc.status, client.Status(fmt.Errorf("wrapped: %w", err)))
			require.Len(t, n.requests(), tc.requests)
		})
	}
}

func TestDeleteWhoseAnswerWasLostIsDone(t *testing.T) {
	n, c := serve(t, func(n int, w http.ResponseWriter, _ *http.Request) {
		if n == 1 {
			panic(http.ErrAbortHandler)
		}
		answer(w, http.StatusNotFound, `{"message":"no such sandbox"}`)
	})
	require.NoError(t, c.DeleteSandbox(t.Context(), "sbx-a"))
	require.Len(t, n.requests(), 2)
	require.Equal(t, http.StatusNotFound, client.Status(c.DeleteSandbox(t.Context(), "sbx-a")),
		"what was not there from the start is not found")
}

func TestAdminPostIsSentOnce(t *testing.T) {
	n, c := serve(t, func(int, http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	_, err := c.CreateKey(t.Context(), "acme", "laptop")
	var lost *client.NetworkError
	require.ErrorAs(t, err, &lost)
	require.Len(t, n.requests(), 1)
	require.Empty(t, n.requests()[0].idempotency)
}

func TestTheKeyGoesNowhereElse(t *testing.T) {
	thief := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("a redirect was followed")
	}))
	defer thief.Close()
	_, c := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		switch n {
		case 1:
			http.Redirect(w, r, thief.URL, http.StatusTemporaryRedirect)
		case 2:
			answer(w, http.StatusBadGateway, "<html>a proxy's page</html>")
		default:
			answer(w, http.StatusOK, `{"id":`)
		}
	})
	for range 3 {
		_, err := c.Sandbox(t.Context(), "sbx-a")
		require.Error(t, err)
		require.NotContains(t, fmt.Sprintf("%v %+v %#v", err, err, err), key)
	}
	_, err := client.New(client.Config{BaseURL: "http://h", Key: key + "\nX-Evil: 1"})
	require.Error(t, err)
	require.NotContains(t, err.Error(), key)
}

func TestIDsCannotLeaveTheirPlaceInThePath(t *testing.T) {
	n, c := serve(t, func(_ int, w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, sandboxJSON) })
	for _, id := range []string{"a/b", "a?x=1", "a#b", "a b", "%2f", "ä", "..."} {
		_, err := c.Sandbox(t.Context(), id)
		require.NoError(t, err)
	}
	want := []string{"a%2Fb", "a%3Fx=1", "a%23b", "a%20b", "%252f", "%C3%A4", "..."}
	require.Len(t, n.requests(), len(want))
	for i, r := range n.requests() {
		require.Equal(t, "/v1/sandbox/"+want[i], r.path)
	}
	for _, id := range []string{"", ".", ".."} {
		require.Error(t, c.DeleteSandbox(t.Context(), id))
	}
	require.Len(t, n.requests(), len(want), "nothing was sent for what is no id")
}

func TestListsReadPageAfterPage(t *testing.T) {
	const total = 250
	n, c := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		page, _ := strconv.Atoi(r.URL.Query().Get("page"))
		size, _ := strconv.Atoi(r.URL.Query().Get("page-size"))
		items := []map[string]any{}
		// From the second page on, one was made meanwhile: all others have moved on by one place.
		for i := (page-1)*size - min(page-1, 1); i < total && len(items) < size; i++ {
			items = append(items, map[string]any{"id": fmt.Sprintf("snap-%d", i), "name": fmt.Sprint(i)})
		}
		b, err := json.Marshal(map[string]any{"items": items, "total_items": total})
		if err != nil {
			panic(err)
		}
		answer(w, http.StatusOK, string(b))
	})
	list, err := c.Snapshots(t.Context(), client.ListOptions{Query: "a b", Order: "asc"})
	require.NoError(t, err)
	require.Equal(t, total, list.Total)
	require.Len(t, list.Items, total)
	for i, s := range list.Items {
		require.Equal(t, fmt.Sprintf("snap-%d", i), s.ID)
	}
	require.Len(t, n.requests(), 3)
	require.Equal(t, "order-by=asc&page=1&page-size=100&query=a+b", n.requests()[0].query)

	list, err = c.Snapshots(t.Context(), client.ListOptions{Limit: 7})
	require.NoError(t, err)
	require.Len(t, list.Items, 7)
	require.Equal(t, "page=1&page-size=7", n.requests()[3].query)
}

func TestFilesAreReadInParts(t *testing.T) {
	content := strings.Repeat("0123456789abcdef", 9<<16) // 9 MiB
	n, c := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		var in struct {
			Path          string
			Offset, Limit int
		}
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.Path != "/f" {
			answer(w, http.StatusBadRequest, `{"message":"bad"}`)
			return
		}
		_, _ = io.WriteString(w, content[min(in.Offset, len(content)):min(in.Offset+in.Limit, len(content))])
	})
	var got strings.Builder
	size, err := c.ReadFile(t.Context(), "sbx-a", "/f", &got)
	require.NoError(t, err)
	require.Equal(t, int64(len(content)), size)
	require.True(t, content == got.String())
	require.Len(t, n.requests(), 3)
	require.Empty(t, n.requests()[0].idempotency, "reading needs no key")
}

func TestATornAnswerIsNoFile(t *testing.T) {
	_, c := serve(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, "half of it")
		panic(http.ErrAbortHandler)
	})
	var got strings.Builder
	_, err := c.ReadFile(t.Context(), "sbx-a", "/f", &got)
	var lost *client.NetworkError
	require.ErrorAs(t, err, &lost)
	require.Empty(t, got.String())
}

func TestWriteFile(t *testing.T) {
	n, c := serve(t, func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	require.NoError(t, c.WriteFile(t.Context(), "sbx-a", "/tmp/a b", "0755", []byte("hello")))
	require.NoError(t, c.WriteFile(t.Context(), "sbx-a", "/empty", "", nil))
	reqs := n.requests()
	require.Equal(t, "/v1/sandbox/sbx-a/filesystem/write-file", reqs[0].path)
	require.Equal(t, "path=%2Ftmp%2Fa+b&permissions=0755", reqs[0].query)
	require.Equal(t, "hello", reqs[0].body)
	require.Equal(t, "application/octet-stream", reqs[0].contentType)
	require.Equal(t, "path=%2Fempty", reqs[1].query)
	require.Empty(t, reqs[1].body)
}

func TestDeadline(t *testing.T) {
	release := make(chan struct{})
	_, c := serve(t, func(int, http.ResponseWriter, *http.Request) { <-release })
	defer close(release)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := c.RestoreSnapshot(ctx, client.RestoreSnapshot{SnapshotName: "warm"})
	var lost *client.NetworkError
	require.ErrorAs(t, err, &lost)
	require.True(t, lost.Timeout())
	require.NotEmpty(t, lost.IdempotencyKey)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	c := dial(t, client.Config{Socket: path})
	_, err := c.Orgs(t.Context())
	var lost *client.NetworkError
	require.ErrorAs(t, err, &lost)
	require.True(t, lost.Socket)
	require.Equal(t, path, lost.Node)

	listener, err := net.Listen("unix", path)
	require.NoError(t, err)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/admin/v1/orgs" || r.Header.Get("Authorization") != "" {
			answer(w, http.StatusTeapot, `{"message":"unexpected"}`)
			return
		}
		answer(w, http.StatusOK, `{"items":[{"id":"org-1","name":"acme"}],"total_items":1}`)
	})}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	list, err := c.Orgs(t.Context())
	require.NoError(t, err)
	require.Equal(t, "acme", list.Items[0].Name)
	require.NoError(t, server.Close())
	require.True(t, errors.Is(<-done, http.ErrServerClosed))
}

func TestConfigIsChecked(t *testing.T) {
	for _, cfg := range []client.Config{
		{}, {BaseURL: "http://h", Socket: "/s"}, {BaseURL: "h:80"}, {BaseURL: "ftp://h"}, {BaseURL: "http://"},
		{BaseURL: "http://user:pass@h"}, {BaseURL: "http://h?x=1"}, {BaseURL: "http://h#f"}, {BaseURL: "http://h:port"},
	} {
		_, err := client.New(cfg)
		require.Error(t, err, cfg.BaseURL)
		require.NotContains(t, err.Error(), "pass@")
	}
	n, _ := serve(t, func(_ int, w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, sandboxJSON) })
	c := dial(t, client.Config{BaseURL: n.URL + "/prefix/"})
	_, err := c.Sandbox(t.Context(), "sbx-a")
	require.NoError(t, err)
	require.Equal(t, "/prefix/v1/sandbox/sbx-a", n.requests()[0].path)
}

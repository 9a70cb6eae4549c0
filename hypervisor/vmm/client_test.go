package vmm

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// serveAPI answers on a Unix socket in place of a VMM; the suite in vmmtest runs against real ones.
func serveAPI(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	server := &httptest.Server{Listener: l, Config: &http.Server{Handler: h}}
	server.Start()
	t.Cleanup(server.Close)
	return NewClient(socket)
}

func TestRequestsHaveTheFormTheVMMExpects(t *testing.T) {
	type request struct{ method, path, body string }
	var got request
	c := serveAPI(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		require.NoError(t, err)
		got = request{r.Method, r.URL.Path, string(body)}
		w.WriteHeader(http.StatusNoContent)
	})
	ctx := t.Context()
	for _, want := range []struct {
		call func() error
		request
	}{
		{func() error { return c.Boot(ctx) }, request{"PUT", "/api/v1/vm.boot", ""}},
		{func() error { return c.Pause(ctx) }, request{"PUT", "/api/v1/vm.pause", ""}},
		{func() error { return c.VMMShutdown(ctx) }, request{"PUT", "/api/v1/vmm.shutdown", ""}},
		{
			func() error { return c.Snapshot(ctx, "/snap") },
			request{"PUT", "/api/v1/vm.snapshot", `{"destination_url":"file:///snap"}`},
		},
		{
			func() error { return c.Restore(ctx, RestoreConfig{SourceDir: "/snap", Resume: true}) },
			request{"PUT", "/api/v1/vm.restore", `{"resume":true,"source_url":"file:///snap"}`},
		},
	} {
		require.NoError(t, want.call())
		require.Equal(t, want.request, got)
	}
	require.Error(t, c.Snapshot(ctx, "relative"))
	require.Error(t, c.Restore(ctx, RestoreConfig{SourceDir: "relative"}))
}

func TestRefusalsKeepTheirMessages(t *testing.T) {
	status, body := 0, ""
	c := serveAPI(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	})
	for _, want := range []struct {
		status   int
		body     string
		messages []string
	}{
		{500, `["Error from API","VM is not running"]`, []string{"Error from API", "VM is not running"}},
		{400, `{"error":"Invalid method"}`, []string{`{"error":"Invalid method"}`}},
		{400, "", nil},
	} {
		status, body = want.status, want.body
		err := c.Pause(t.Context())
		var refused *Error
		require.ErrorAs(t, err, &refused)
		require.Equal(t, Error{Op: "vm.pause", Status: want.status, Messages: want.messages}, *refused)
	}
	status, body = 404, `["VM is not created"]`
	state, err := c.State(t.Context())
	require.NoError(t, err)
	require.Equal(t, StateNone, state)
}

func TestRepliesAreBounded(t *testing.T) {
	c := serveAPI(t, func(w http.ResponseWriter, _ *http.Request) {
		chunk := []byte(strings.Repeat(" ", 1<<20))
		for range 2 * maxReply / len(chunk) {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	_, err := c.Info(t.Context())
	require.ErrorContains(t, err, "longer than")
}

func TestAHungVMMIsGivenUp(t *testing.T) {
	release := make(chan struct{})
	c := serveAPI(t, func(http.ResponseWriter, *http.Request) { <-release })
	defer close(release)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, c.Pause(ctx), context.DeadlineExceeded)
}

func TestSocketPathsMayBeLong(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	l := listenIn(t, dir, "s")
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(Ping{Version: "1.2.3"})
	})}
	go func() { _ = server.Serve(l) }()
	defer func() { require.NoError(t, server.Close()) }()
	p, err := NewClient(filepath.Join(dir, "s")).Ping(t.Context())
	require.NoError(t, err)
	require.Equal(t, "1.2.3", p.Version)
}

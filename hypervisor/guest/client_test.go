package guest_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/hypervisor/guest"
)

// serve starts a stand-in for the agent and gives a dial function that reaches it.
func serve(t *testing.T, h http.HandlerFunc) guest.DialFunc {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, srv.Listener.Addr().String())
	}
}

func healthy(w http.ResponseWriter, _ *http.Request) {
	_, _ = io.WriteString(w, `{"version":"v","sandbox_id":"sbx-a"}`)
}

func TestConnectingDoesNotWaitForALostPacket(t *testing.T) {
	dial := serve(t, healthy)
	var attempts atomic.Int32
	c := guest.NewClient(func(ctx context.Context, network, addr string) (net.Conn, error) {
		if attempts.Add(1) <= 2 {
			<-ctx.Done() // nobody answers this one
			return nil, ctx.Err()
		}
		return dial(ctx, network, addr)
	})
	// Were the attempts not side by side, the context would end while the first still waits.
	ctx, cancel := context.WithTimeout(t.Context(), 900*time.Millisecond)
	defer cancel()
	h, err := c.Health(ctx)
	require.NoError(t, err)
	require.Equal(t, "sbx-a", h.SandboxID)
	require.EqualValues(t, 3, attempts.Load())
}

// countedConn tells when it is closed.
type countedConn struct {
	net.Conn
	open *atomic.Int32
}

func (c countedConn) Close() error {
	c.open.Add(-1)
	return c.Conn.Close()
}

func TestAttemptsThatCameTooLateAreClosed(t *testing.T) {
	dial := serve(t, healthy)
	var open, attempts atomic.Int32
	c := guest.NewClient(func(ctx context.Context, network, addr string) (net.Conn, error) {
		if attempts.Add(1) == 1 {
			<-ctx.Done()
			ctx = context.WithoutCancel(ctx) // connects after all, although nobody wants it any more
		}
		conn, err := dial(ctx, network, addr)
		if err == nil {
			open.Add(1)
			conn = countedConn{conn, &open}
		}
		return conn, err
	})
	_, err := c.Health(t.Context())
	require.NoError(t, err)
	closed := func() bool { return attempts.Load() >= 2 && open.Load() == 0 }
	require.Eventually(t, closed, 10*time.Second, time.Millisecond)
}

func TestNoConnectionServesTwoCalls(t *testing.T) {
	dial := serve(t, healthy)
	var dials atomic.Int32
	c := guest.NewClient(func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials.Add(1)
		return dial(ctx, network, addr)
	})
	for range 3 {
		_, err := c.Health(t.Context())
		require.NoError(t, err)
	}
	require.GreaterOrEqual(t, dials.Load(), int32(3))
}

func TestWaitHealthyOutlastsRefusalsAndHangs(t *testing.T) {
	var requests, dials atomic.Int32
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	dial := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if requests.Add(1) == 1 {
			select { // accepted, then never answered, like a machine that was stopped at the wrong moment
			case <-release:
			case <-r.Context().Done():
			}
			return
		}
		healthy(w, r)
	})
	c := guest.NewClient(func(ctx context.Context, network, addr string) (net.Conn, error) {
		if dials.Add(1) < 5 {
			return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
		}
		return dial(ctx, network, addr)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, err := c.WaitHealthy(ctx)
	require.NoError(t, err)
	require.GreaterOrEqual(t, requests.Load(), int32(2))
}

func TestWaitHealthyEndsWithItsContext(t *testing.T) {
	c := guest.NewClient(func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := c.WaitHealthy(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, err, guest.ErrUnreachable)
}

func TestErrorsKeepTheirKind(t *testing.T) {
	t.Run("the agent's", func(t *testing.T) {
		c := guest.NewClient(serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusConflict)
			_, _ = io.WriteString(w, `{"code":"is_directory","message":"/tmp is a directory"}`)
		}))
		_, err := c.Stat(t.Context(), "/tmp")
		require.Equal(t, guest.CodeIsDirectory, guest.CodeOf(err))
		require.ErrorContains(t, err, "/tmp is a directory")
		require.NotErrorIs(t, err, guest.ErrUnreachable)
	})
	t.Run("one that this version does not know", func(t *testing.T) {
		c := guest.NewClient(serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusTeapot)
			_, _ = io.WriteString(w, `{"code":"teapot","message":"short and stout"}`)
		}))
		_, err := c.Stat(t.Context(), "/")
		require.Equal(t, guest.CodeInternal, guest.CodeOf(err))
	})
	t.Run("not the agent's making", func(t *testing.T) {
		c := guest.NewClient(serve(t, func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "<html>", http.StatusBadGateway)
		}))
		_, err := c.Stat(t.Context(), "/")
		require.Equal(t, guest.CodeInternal, guest.CodeOf(err))
	})
	t.Run("no answer", func(t *testing.T) {
		c := guest.NewClient(func(context.Context, string, string) (net.Conn, error) { return nil, syscall.ENETUNREACH })
		_, err := c.Exec(t.Context(), guest.ExecRequest{Command: "true"})
		require.ErrorIs(t, err, guest.ErrUnreachable)
		require.ErrorIs(t, err, syscall.ENETUNREACH)
		require.Empty(t, guest.CodeOf(err))
	})
	t.Run("half an answer", func(t *testing.T) {
		c := guest.NewClient(serve(t, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"exit_code":`)
		}))
		_, err := c.Exec(t.Context(), guest.ExecRequest{Command: "true"})
		require.ErrorIs(t, err, guest.ErrUnreachable)
	})
}

func TestAFileThatBreaksOffIsNotAShortFile(t *testing.T) {
	c := guest.NewClient(serve(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, strings.Repeat("x", 1<<20))
		panic(http.ErrAbortHandler)
	}))
	r, err := c.ReadFile(t.Context(), guest.ReadFileRequest{Path: "/f"})
	require.NoError(t, err)
	defer r.Close()
	_, err = io.ReadAll(r)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
}

// killedBy runs a call that is given up, and gives the id that the client then asks to kill.
func killedBy(t *testing.T, call func(context.Context, *guest.Client) error) string {
	t.Helper()
	killed := make(chan string, 1)
	c := guest.NewClient(serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.URL.Path == guest.PathExecKill {
			killed <- string(body)
			return
		}
		if r.URL.Path == guest.PathExecStream {
			_, _ = io.WriteString(w, `{"stdout":"eA=="}`+"\n")
			_ = http.NewResponseController(w).Flush()
		}
		<-r.Context().Done()
	}))
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	require.Error(t, call(ctx, c))
	select {
	case id := <-killed:
		return id
	case <-time.After(10 * time.Second):
		t.Fatal("the command was left running")
		return ""
	}
}

func TestGivingUpKillsTheCommand(t *testing.T) {
	t.Run("buffered", func(t *testing.T) {
		require.JSONEq(t, `{"id":"run-1"}`, killedBy(t, func(ctx context.Context, c *guest.Client) error {
			_, err := c.Exec(ctx, guest.ExecRequest{ID: "run-1", Command: "sleep 60"})
			return err
		}))
	})
	t.Run("streamed", func(t *testing.T) {
		require.JSONEq(t, `{"id":"run-2"}`, killedBy(t, func(ctx context.Context, c *guest.Client) error {
			_, err := c.ExecStream(ctx, guest.ExecRequest{ID: "run-2", Command: "sleep 60"}, io.Discard, io.Discard)
			return err
		}))
	})
	t.Run("the output has nowhere to go", func(t *testing.T) {
		require.JSONEq(t, `{"id":"run-3"}`, killedBy(t, func(ctx context.Context, c *guest.Client) error {
			_, err := c.ExecStream(ctx, guest.ExecRequest{ID: "run-3", Command: "yes"}, brokenWriter{}, io.Discard)
			return err
		}))
	})
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("broken") }

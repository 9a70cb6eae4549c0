package httpd

import (
	"context"
	"errors"
	"io"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"stillframe/fsm"
)

// parts writes some parts, then fails where it is told to.
type parts struct {
	count int
	err   error
}

func (p parts) WriteTo(w io.Writer) (int64, error) {
	var n int64
	for range p.count {
		k, err := w.Write(make([]byte, 64<<10))
		n += int64(k)
		if err != nil {
			return n, err
		}
	}
	return n, p.err
}

// TestBackupIsStreamed has the administration socket pass on what is far larger than any body limit.
func TestBackupIsStreamed(t *testing.T) {
	var from io.WriterTo
	var refusal error
	e := newEnv(t, func(c *Config) {
		c.Backup = func(context.Context) (io.WriterTo, error) { return from, refusal }
	})
	get := func() (*http.Response, []byte) {
		t.Helper()
		resp, err := e.admin.Get("http://admin/admin/v1/backup")
		require.NoError(t, err)
		return resp, readAll(t, resp)
	}
	from = parts{count: 400}
	resp, body := get()
	require.Equal(t, 200, resp.StatusCode)
	require.Len(t, body, 400*64<<10)

	from = parts{count: 1, err: errors.New("broken off")}
	_, body = get()
	require.Len(t, body, 64<<10, "what ends early has no digest at its end")
	require.Contains(t, e.logs.String(), "an answer was cut off")

	refusal = fsm.Errorf(fsm.KindUnavailable, "no leader")
	resp, _ = get()
	require.Equal(t, 503, resp.StatusCode)
	require.Equal(t, 404, e.do("GET", "/admin/v1/backup", nil).status, "not on the API's port")
}

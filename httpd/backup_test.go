package httpd

import (
	"context"
	"errors"
	"io"
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
	get := func() (int, []byte) {
		t.Helper()
		resp, err := e.admin.Get("http://admin/admin/v1/backup")
		require.NoError(t, err)
		defer resp.Body.Close()
		return resp.StatusCode, readAll(t, resp)
	}
	from = parts{count: 400}
	status, body := get()
	require.Equal(t, 200, status)
	require.Len(t, body, 400*64<<10)

	from = parts{count: 1, err: errors.New("broken off")}
	_, body = get()
	require.Len(t, body, 64<<10, "what ends early has no digest at its end")
	require.Contains(t, e.logs.String(), "an answer was cut off")

	refusal = fsm.Errorf(fsm.KindUnavailable, "no leader")
	status, _ = get()
	require.Equal(t, 503, status)
	require.Equal(t, 404, e.do("GET", "/admin/v1/backup", nil).status, "not on the API's port")
}

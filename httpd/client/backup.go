package client

import (
	"context"
	"fmt"
	"io"
	"net/http"
)

// Backup copies a backup of the whole replicated state to w, through the admin socket. That the copy ended without an
// error does not mean that it is whole: a backup has its digest at its end, which whoever keeps it verifies.
func (c *Client) Backup(ctx context.Context, w io.Writer) error {
	r := request{method: http.MethodGet, path: []string{"admin", "v1", "backup"}, want: http.StatusOK}
	resp, err := c.send(ctx, r)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.Copy(w, resp.Body); err != nil {
		return fmt.Errorf("client: copy the backup: %w", err)
	}
	return nil
}

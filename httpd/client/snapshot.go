package client

import (
	"context"
	"encoding/json"
	"net/http"
)

// CreateSnapshot asks for a snapshot of a sandbox. Without a name the node makes one up.
type CreateSnapshot struct {
	Name             string `json:"name,omitempty"`
	KillSandboxAfter bool   `json:"kill_sandbox_after,omitempty"`
	IdempotencyKey   string `json:"-"`
}

// CreateSnapshot takes a snapshot and returns when it is kept.
func (c *Client) CreateSnapshot(ctx context.Context, sandbox string, in CreateSnapshot) (Snapshot, error) {
	var out Snapshot
	path := []string{"v1", "sandbox", sandbox, "snapshot", "create"}
	err := c.create(ctx, path, in, in.IdempotencyKey, http.StatusCreated, &out)
	return out, err
}

// RestoreSnapshot asks for a new sandbox from a snapshot. Absent values are the snapshot's or the node's; AutoPause is
// absent when nil. Timeout is seconds.
type RestoreSnapshot struct {
	SnapshotName   string          `json:"snapshot_name"`
	Timeout        int64           `json:"timeout,omitempty"`
	AutoPause      *bool           `json:"auto_pause,omitempty"`
	NetworkPolicy  json.RawMessage `json:"network_policy,omitempty"`
	IdempotencyKey string          `json:"-"`
}

// RestoreSnapshot makes a sandbox from a snapshot and returns when it runs.
func (c *Client) RestoreSnapshot(ctx context.Context, in RestoreSnapshot) (Sandbox, error) {
	var out Sandbox
	path := []string{"v1", "snapshot", "restore"}
	err := c.create(ctx, path, in, in.IdempotencyKey, http.StatusCreated, &out)
	return out, err
}

// DeleteSnapshot deletes a snapshot by its id and returns when it is gone.
func (c *Client) DeleteSnapshot(ctx context.Context, id string) error {
	r := request{method: http.MethodDelete, path: []string{"v1", "snapshot", id}, want: http.StatusNoContent}
	return c.call(ctx, r, nil)
}

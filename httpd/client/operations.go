package client

import (
	"context"
	"encoding/json"
	"net/http"
)

// Transferred is the answer to a transfer of the leadership.
type Transferred struct {
	Leader string          `json:"leader"`
	Name   string          `json:"name"`
	Raw    json.RawMessage `json:"-"`
}

// UnmarshalJSON decodes and keeps the exact input in Raw.
func (t *Transferred) UnmarshalJSON(b []byte) error {
	type plain Transferred
	return keepRaw(b, (*plain)(t), &t.Raw)
}

// Drained is the answer to a drain.
type Drained struct {
	Node      string           `json:"node"`
	Name      string           `json:"name"`
	Drained   bool             `json:"drained"`
	Leader    string           `json:"leader"`    // the new one, after a handover
	Snapshots []DrainedSandbox `json:"snapshots"` // of the sandboxes that ran there, where asked for
	Sandboxes int              `json:"sandboxes"` // that are on the node still
	Raw       json.RawMessage  `json:"-"`
}

// DrainedSandbox is what came of one sandbox: a snapshot, or the reason why there is none.
type DrainedSandbox struct {
	SandboxID  string `json:"sandbox_id"`
	SnapshotID string `json:"snapshot_id"`
	Name       string `json:"name"`
	Error      string `json:"error"`
}

// UnmarshalJSON decodes and keeps the exact input in Raw.
func (d *Drained) UnmarshalJSON(b []byte) error {
	type plain Drained
	return keepRaw(b, (*plain)(d), &d.Raw)
}

// Drain says how a node is to be drained, given by its name or id.
type Drain struct {
	Node     string `json:"node"`
	Snapshot bool   `json:"snapshot,omitempty"` // snapshot what runs there, and delete it after that
	Undo     bool   `json:"undo,omitempty"`     // let the node take sandboxes again
}

// Transfer hands the leadership to a node, given by its name or id, or with "" to the fittest. Admin socket only, as
// all of this file.
func (c *Client) Transfer(ctx context.Context, node string) (Transferred, error) {
	in := map[string]string{}
	if node != "" {
		in["node"] = node
	}
	var out Transferred
	err := c.operate(ctx, "transfer", in, &out)
	return out, err
}

// Drain drains a node, or ends that.
func (c *Client) Drain(ctx context.Context, d Drain) (Drained, error) {
	var out Drained
	err := c.operate(ctx, "drain", d, &out)
	return out, err
}

// RemoveNode ends a node's membership for good; with force also that of one that holds sandboxes or snapshots.
func (c *Client) RemoveNode(ctx context.Context, node string, force bool) error {
	var out json.RawMessage
	return c.operate(ctx, "remove", map[string]any{"node": node, "force": force}, &out)
}

func (c *Client) operate(ctx context.Context, what string, in, out any) error {
	b, err := jsonBody(in)
	if err != nil {
		return err
	}
	return c.call(ctx, request{
		method: http.MethodPost, path: []string{"admin", "v1", "cluster", what}, body: b, contentType: "application/json",
		once: true, want: http.StatusOK,
	}, out)
}

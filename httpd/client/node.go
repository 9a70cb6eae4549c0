package client

import (
	"context"
	"encoding/json"
	"net/http"
	"time"
)

// Template is a root filesystem that sandboxes are made from.
type Template struct {
	ID        string          `json:"id"`
	Name      string          `json:"name"`
	Digest    string          `json:"digest"`
	CreatedAt time.Time       `json:"created_at"`
	Raw       json.RawMessage `json:"-"`
}

// UnmarshalJSON decodes and keeps the exact input in Raw.
func (t *Template) UnmarshalJSON(b []byte) error {
	type plain Template
	return keepRaw(b, (*plain)(t), &t.Raw)
}

// Templates gives the system's templates and the organization's own.
func (c *Client) Templates(ctx context.Context) (List[Template], error) {
	return whole[Template](ctx, c, []string{"v1", "templates"}, nil)
}

// Node is what a node says of itself.
type Node struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Version string `json:"version"`
	VMM     struct {
		Kind    string `json:"kind"`
		Binary  string `json:"binary"`
		Version string `json:"version"`
		Reason  string `json:"reason"` // why this VMM was chosen
	} `json:"vmm"`
	CloneMethod string          `json:"clone_method"` // reflink or copy
	Raw         json.RawMessage `json:"-"`
}

// UnmarshalJSON decodes and keeps the exact input in Raw.
func (n *Node) UnmarshalJSON(b []byte) error {
	type plain Node
	return keepRaw(b, (*plain)(n), &n.Raw)
}

// Node describes the node that answers.
func (c *Client) Node(ctx context.Context) (Node, error) {
	var out Node
	r := request{method: http.MethodGet, path: []string{"v1", "node"}, want: http.StatusOK}
	err := c.call(ctx, r, &out)
	return out, err
}

package client

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
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
	CloneMethod string `json:"clone_method"` // reflink or copy
	Egress      struct {
		Enforced bool   `json:"enforced"`
		Reason   string `json:"reason"` // why not
		Pool     string `json:"pool"`
	} `json:"egress"`
	Raw json.RawMessage `json:"-"`
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

// Cluster is the cluster as the node that answers sees it.
type Cluster struct {
	Node   string          `json:"node"`
	Leader string          `json:"leader"` // empty: none that it knows
	Nodes  []ClusterNode   `json:"nodes"`
	Raw    json.RawMessage `json:"-"`
}

// ClusterNode is a member of the cluster. Role, Term, AppliedIndex, Position and Digest are there when it is reachable.
type ClusterNode struct {
	ID            string          `json:"id"`
	Name          string          `json:"name"`
	APIAddr       string          `json:"api_addr"`
	Voter         bool            `json:"voter"`
	Leader        bool            `json:"leader"`
	Drained       bool            `json:"drained"`
	Lost          bool            `json:"lost"` // the leader has given it up
	Reachable     bool            `json:"reachable"`
	LastContactMS *int64          `json:"last_contact_ms"` // nil: not since the answering node started
	Role          string          `json:"role"`
	Term          uint64          `json:"term"`
	AppliedIndex  uint64          `json:"applied_index"`
	Position      uint64          `json:"position"`
	Digest        string          `json:"digest"` // of its state at Position, where asked for
	Sandboxes     int             `json:"sandboxes"`
	Snapshots     int             `json:"snapshots"`
	Total         ClusterCapacity `json:"total"`
	Free          ClusterCapacity `json:"free"`
	VMM           string          `json:"vmm"`
	VMMVersion    string          `json:"vmm_version"`
	CloneMethod   string          `json:"clone_method"`
	Version       string          `json:"version"` // of its program
	// SkewMS is how far its clock is ahead of the answering node's, known to half of TripMS.
	SkewMS float64 `json:"skew_ms"`
	TripMS float64 `json:"trip_ms"`
}

// ClusterCapacity is what a node promises, or has left. Memory and disk are MiB.
type ClusterCapacity struct {
	VCPU   int   `json:"vcpu"`
	Memory int64 `json:"memory"`
	Disk   int64 `json:"disk"`
}

// UnmarshalJSON decodes and keeps the exact input in Raw.
func (c *Cluster) UnmarshalJSON(b []byte) error {
	type plain Cluster
	return keepRaw(b, (*plain)(c), &c.Raw)
}

// Cluster describes the cluster, with digests of the nodes' states where asked for.
func (c *Client) Cluster(ctx context.Context, digest bool) (Cluster, error) {
	var out Cluster
	r := request{method: http.MethodGet, path: []string{"v1", "cluster"}, want: http.StatusOK}
	if digest {
		r.query = url.Values{"digest": {"true"}}
	}
	err := c.call(ctx, r, &out)
	return out, err
}

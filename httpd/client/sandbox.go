package client

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
)

// CreateSandbox asks for a sandbox. Zero values leave the choice to the node. Memory is MiB, Timeout is seconds.
type CreateSandbox struct {
	TemplateName   string            `json:"template_name"`
	VCPU           int               `json:"vcpu,omitempty"`
	Memory         int64             `json:"memory,omitempty"`
	Timeout        int64             `json:"timeout,omitempty"`
	AutoPause      bool              `json:"auto_pause,omitempty"`
	EnvVars        map[string]string `json:"env_vars,omitempty"`
	NetworkPolicy  json.RawMessage   `json:"network_policy,omitempty"`
	IdempotencyKey string            `json:"-"`
}

// CreateSandbox makes a sandbox and returns when it runs.
func (c *Client) CreateSandbox(ctx context.Context, in CreateSandbox) (Sandbox, error) {
	var out Sandbox
	err := c.create(ctx, []string{"v1", "sandbox"}, in, in.IdempotencyKey, http.StatusCreated, &out)
	return out, err
}

// Sandbox gives one sandbox.
func (c *Client) Sandbox(ctx context.Context, id string) (Sandbox, error) {
	var out Sandbox
	r := request{method: http.MethodGet, path: []string{"v1", "sandbox", id}, want: http.StatusOK}
	err := c.call(ctx, r, &out)
	return out, err
}

// DeleteSandbox deletes a sandbox and returns when it is gone.
func (c *Client) DeleteSandbox(ctx context.Context, id string) error {
	r := request{method: http.MethodDelete, path: []string{"v1", "sandbox", id}, want: http.StatusNoContent}
	return c.call(ctx, r, nil)
}

// ListOptions narrow and order a list. Zero values leave the choice to the node.
type ListOptions struct {
	State    string // sandboxes only
	Query    string // snapshots only: part of the name
	Sort     string // created_at; for sandboxes also state, for snapshots also template_id
	Order    string // asc or desc
	PageSize int    // how many a request asks for; 0 is the contract's largest
	Limit    int    // stop after this many; 0 is all
}

const maxPageSize = 100

func (o ListOptions) values(page int) url.Values {
	v := url.Values{"page": {strconv.Itoa(page)}, "page-size": {strconv.Itoa(o.pageSize())}}
	for name, value := range map[string]string{"state": o.State, "query": o.Query, "sort": o.Sort, "order-by": o.Order} {
		if value != "" {
			v.Set(name, value)
		}
	}
	return v
}

func (o ListOptions) pageSize() int {
	switch {
	case o.PageSize > 0:
		return o.PageSize
	case o.Limit > 0 && o.Limit < maxPageSize:
		return o.Limit
	}
	return maxPageSize
}

// List is what a list call gave: the items, and how many the node has in all that match.
type List[T any] struct {
	Items []T
	Total int
}

// Sandboxes gives the organization's sandboxes, asking for page after page. One made or deleted while the pages are
// read may be missed, none is given twice.
func (c *Client) Sandboxes(ctx context.Context, o ListOptions) (List[SandboxItem], error) {
	return pages(ctx, c, "sandboxes", o, func(s SandboxItem) string { return s.ID })
}

// Snapshots gives the organization's snapshots, with the reservations of Sandboxes.
func (c *Client) Snapshots(ctx context.Context, o ListOptions) (List[Snapshot], error) {
	return pages(ctx, c, "snapshots", o, func(s Snapshot) string { return s.ID })
}

func pages[T any](ctx context.Context, c *Client, what string, o ListOptions, id func(T) string) (List[T], error) {
	var list List[T]
	seen := map[string]bool{}
	for page := 1; ; page++ {
		var got struct {
			Items []T `json:"items"`
			Total int `json:"total_items"`
		}
		r := request{method: http.MethodGet, path: []string{"v1", what}, query: o.values(page), want: http.StatusOK}
		if err := c.call(ctx, r, &got); err != nil {
			return List[T]{}, err
		}
		list.Total = got.Total
		for _, item := range got.Items {
			if seen[id(item)] {
				continue
			}
			seen[id(item)] = true
			list.Items = append(list.Items, item)
			if o.Limit > 0 && len(list.Items) == o.Limit {
				return list, nil
			}
		}
		if len(got.Items) == 0 || page*o.pageSize() >= got.Total {
			return list, nil
		}
	}
}

// Exec asks for a command in a sandbox. Timeout is seconds; zero leaves it to the node.
type Exec struct {
	Command        string            `json:"command"` // for /bin/sh -c
	Cwd            string            `json:"cwd,omitempty"`
	Envs           map[string]string `json:"envs,omitempty"`
	Timeout        int64             `json:"timeout,omitempty"`
	IdempotencyKey string            `json:"-"`
}

// ExecResult is what a command did.
type ExecResult struct {
	ExitCode int    `json:"exit_code"`
	Stdout   string `json:"stdout"`
	Stderr   string `json:"stderr"`
	// TimedOut: its timeout ended it. Truncated: the node kept only the first part of the output.
	TimedOut        bool            `json:"timed_out"`
	StdoutTruncated bool            `json:"stdout_truncated"`
	StderrTruncated bool            `json:"stderr_truncated"`
	Raw             json.RawMessage `json:"-"`
}

// UnmarshalJSON decodes and keeps the exact input in Raw.
func (e *ExecResult) UnmarshalJSON(b []byte) error {
	type plain ExecResult
	return keepRaw(b, (*plain)(e), &e.Raw)
}

// Exec runs a command and returns when it has ended.
func (c *Client) Exec(ctx context.Context, id string, in Exec) (ExecResult, error) {
	var out ExecResult
	path := []string{"v1", "sandbox", id, "process", "execute"}
	err := c.create(ctx, path, in, in.IdempotencyKey, http.StatusOK, &out)
	return out, err
}

package client

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// PolicyDecision is what the network policy of a sandbox decided about a connection or a query.
type PolicyDecision struct {
	Time     time.Time       `json:"time"`   // zero for one that was only asked about
	Action   string          `json:"action"` // allow, transform or deny
	Rule     string          `json:"rule"`
	Reason   string          `json:"reason"`
	Protocol string          `json:"protocol"`
	Name     string          `json:"name"`
	Address  string          `json:"address"` // host:port
	Sent     int64           `json:"bytes_sent"`
	Received int64           `json:"bytes_received"`
	Raw      json.RawMessage `json:"-"`
}

// UnmarshalJSON decodes and keeps the exact input in Raw.
func (d *PolicyDecision) UnmarshalJSON(b []byte) error {
	type plain PolicyDecision
	return keepRaw(b, (*plain)(d), &d.Raw)
}

func policyPath(id string, rest ...string) []string {
	return append([]string{"v1", "sandbox", id, "network-policy"}, rest...)
}

// SetPolicy replaces the network policy of a running sandbox and returns when the new one is in force. An empty key is
// a new one.
func (c *Client) SetPolicy(ctx context.Context, id string, policy json.RawMessage, key string) (Sandbox, error) {
	if key == "" {
		key = rand.Text()
	}
	var out Sandbox
	err := c.call(ctx, request{
		method: http.MethodPut, path: policyPath(id), body: policy, contentType: "application/json", idempotency: key,
		want: http.StatusOK,
	}, &out)
	return out, err
}

// PolicyLog gives the last decisions on a sandbox, the newest last, at most limit.
func (c *Client) PolicyLog(ctx context.Context, id string, limit int) (List[PolicyDecision], error) {
	return whole[PolicyDecision](ctx, c, policyPath(id, "log"), url.Values{"limit": {strconv.Itoa(limit)}})
}

// PolicyCheck says what would become of a connection from a sandbox. Port 0 leaves the choice to the node.
func (c *Client) PolicyCheck(ctx context.Context, id, host string, port int) (PolicyDecision, error) {
	query := url.Values{"host": {host}}
	if port != 0 {
		query.Set("port", strconv.Itoa(port))
	}
	var out PolicyDecision
	err := c.call(ctx, request{
		method: http.MethodGet, path: policyPath(id, "check"), query: query, want: http.StatusOK,
	}, &out)
	return out, err
}

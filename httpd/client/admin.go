package client

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"time"
)

// Org is an organization, seen through the admin socket.
type Org struct {
	ID        string          `json:"id"`
	Name      string          `json:"name"`
	OrgLimits                 // zero is no bound
	Sandboxes int             `json:"sandboxes"` // what it has now
	Snapshots int             `json:"snapshots"`
	CreatedAt time.Time       `json:"created_at"`
	Raw       json.RawMessage `json:"-"`
}

// OrgLimits bounds what an organization has at once, and how many requests a minute each node takes from it. Zero is no
// bound, and nil one that is not to be changed.
type OrgLimits struct {
	MaxSandboxes *int `json:"max_sandboxes,omitempty"`
	MaxSnapshots *int `json:"max_snapshots,omitempty"`
	MaxRequests  *int `json:"max_requests_per_minute,omitempty"`
}

// SetOrgLimits changes limits of an organization, given by its id or name, and gives it as it is then.
func (c *Client) SetOrgLimits(ctx context.Context, org string, limits OrgLimits) (Org, error) {
	b, err := jsonBody(limits)
	if err != nil {
		return Org{}, err
	}
	var out Org
	err = c.call(ctx, request{
		method: http.MethodPatch, path: []string{"admin", "v1", "orgs", org}, body: b, contentType: "application/json",
		want: http.StatusOK,
	}, &out)
	return out, err
}

// UnmarshalJSON decodes and keeps the exact input in Raw.
func (o *Org) UnmarshalJSON(b []byte) error {
	type plain Org
	return keepRaw(b, (*plain)(o), &o.Raw)
}

// APIKey is a key of an organization. Key is the secret; a node tells it once, in the answer to its creation.
type APIKey struct {
	ID        string          `json:"id"`
	Org       string          `json:"org"`      // id
	OrgName   string          `json:"org_name"` // name
	Label     string          `json:"label"`
	Key       string          `json:"key"`
	CreatedAt time.Time       `json:"created_at"`
	RevokedAt time.Time       `json:"revoked_at"` // zero while the key is good
	Raw       json.RawMessage `json:"-"`
}

// UnmarshalJSON decodes and keeps the exact input in Raw.
func (k *APIKey) UnmarshalJSON(b []byte) error {
	type plain APIKey
	return keepRaw(b, (*plain)(k), &k.Raw)
}

// CreateOrg makes an organization.
func (c *Client) CreateOrg(ctx context.Context, name string) (Org, error) {
	var out Org
	err := c.adminPost(ctx, "orgs", map[string]string{"name": name}, &out)
	return out, err
}

// Orgs gives all organizations.
func (c *Client) Orgs(ctx context.Context) (List[Org], error) {
	return whole[Org](ctx, c, []string{"admin", "v1", "orgs"}, nil)
}

// CreateKey makes a key for an organization, given by its id or name.
func (c *Client) CreateKey(ctx context.Context, org, label string) (APIKey, error) {
	var out APIKey
	err := c.adminPost(ctx, "keys", map[string]string{"org": org, "label": label}, &out)
	return out, err
}

// Keys gives the keys of an organization, given by its id or name, or with "" of all; revoked ones too, none with its
// secret.
func (c *Client) Keys(ctx context.Context, org string) (List[APIKey], error) {
	query := url.Values{}
	if org != "" {
		query.Set("org", org)
	}
	return whole[APIKey](ctx, c, []string{"admin", "v1", "keys"}, query)
}

// adminPost is sent once: the admin socket knows no idempotency keys.
func (c *Client) adminPost(ctx context.Context, what string, in, out any) error {
	b, err := jsonBody(in)
	if err != nil {
		return err
	}
	return c.call(ctx, request{
		method: http.MethodPost, path: []string{"admin", "v1", what}, body: b, contentType: "application/json",
		once: true, want: http.StatusCreated,
	}, out)
}

// Resealed is how sealing the cluster's secrets anew ended.
type Resealed struct {
	Key   string          `json:"key"`   // id of the key with which everything is sealed now
	Count int             `json:"count"` // of values that were sealed anew
	Raw   json.RawMessage `json:"-"`
}

// UnmarshalJSON decodes and keeps the exact input in Raw.
func (r *Resealed) UnmarshalJSON(b []byte) error {
	type plain Resealed
	return keepRaw(b, (*plain)(r), &r.Raw)
}

// Reseal seals the secrets that the cluster keeps with the newest key. It may be repeated.
func (c *Client) Reseal(ctx context.Context) (Resealed, error) {
	var out Resealed
	r := request{method: http.MethodPost, path: []string{"admin", "v1", "reseal"}, want: http.StatusOK}
	err := c.call(ctx, r, &out)
	return out, err
}

// RevokeKey ends a key for good.
func (c *Client) RevokeKey(ctx context.Context, id string) error {
	r := request{method: http.MethodDelete, path: []string{"admin", "v1", "keys", id}, want: http.StatusNoContent}
	return c.call(ctx, r, nil)
}

// whole reads a list that has no pages.
func whole[T any](ctx context.Context, c *Client, path []string, query url.Values) (List[T], error) {
	var got struct {
		Items []T `json:"items"`
	}
	r := request{method: http.MethodGet, path: path, query: query, want: http.StatusOK}
	if err := c.call(ctx, r, &got); err != nil {
		return List[T]{}, err
	}
	return List[T]{Items: got.Items, Total: len(got.Items)}, nil
}

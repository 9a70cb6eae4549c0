package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// FieldError is one bad field of a request, as the node found it.
type FieldError struct {
	Field   string `json:"field"`
	Problem string `json:"error"`
}

// Resource is what a request has begun that could not be waited for.
type Resource struct {
	ID    string `json:"id"`
	State string `json:"state"`
}

// Error is a refusal by the node: the answer arrived and was not a success.
type Error struct {
	Status  int    // HTTP status
	Message string // the node's words
	Fields  []FieldError
	// Resource names what the request has begun all the same, where it has; nil otherwise.
	Resource *Resource
	// RequestID finds the request in the node's log; empty when the node sent none.
	RequestID string
	// IdempotencyKey is the key that the request carried. Where the outcome is not known (503, 504), the same request
	// with it again gives the outcome.
	IdempotencyKey string
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Message)
	for _, f := range e.Fields {
		fmt.Fprintf(&b, "; %s: %s", f.Field, f.Problem)
	}
	return b.String()
}

// Status gives the HTTP status of a refusal, or 0 for any other error.
func Status(err error) int {
	var refusal *Error
	if errors.As(err, &refusal) {
		return refusal.Status
	}
	return 0
}

// NetworkError means that no answer arrived. For a request that changes something the outcome is unknown.
type NetworkError struct {
	Node   string // the base URL, or the path of the socket
	Socket bool   // whether it is the admin socket
	// IdempotencyKey is the key that the request carried: sending the same request with it again gives the answer of the
	// first, if there was one. Empty for requests that need none.
	IdempotencyKey string
	Err            error
}

func (e *NetworkError) Error() string { return fmt.Sprintf("no answer from %s: %v", e.Node, e.Err) }

// Unwrap gives the cause; a deadline that passed is context.DeadlineExceeded.
func (e *NetworkError) Unwrap() error { return e.Err }

// Timeout reports whether waiting ended because the caller's deadline passed.
func (e *NetworkError) Timeout() bool { return errors.Is(e.Err, context.DeadlineExceeded) }

func (c *Client) lost(r request, err error) error {
	e := &NetworkError{Node: c.base.Redacted(), IdempotencyKey: r.idempotency, Err: err}
	if c.socket != "" {
		e.Node, e.Socket = c.socket, true
	}
	// The URL that http.Client puts in front of its errors says nothing that Node does not.
	var inner *url.Error
	if errors.As(err, &inner) {
		e.Err = inner.Err
	}
	return e
}

// decodeError reads a refusal. An answer that is not of the contract's shape (a proxy's page, say) keeps its status.
func decodeError(r request, resp *http.Response) error {
	e := &Error{Status: resp.StatusCode, RequestID: resp.Header.Get("X-Request-Id"), IdempotencyKey: r.idempotency}
	var body struct {
		Message  string       `json:"message"`
		Errors   []FieldError `json:"errors"`
		Resource *Resource    `json:"resource"`
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, MaxErrorBody))
	if err == nil && json.Unmarshal(raw, &body) == nil && body.Message != "" {
		e.Message, e.Fields, e.Resource = body.Message, body.Errors, body.Resource
		return e
	}
	e.Message = fmt.Sprintf("%s was answered with status %d, want %d", r.method, resp.StatusCode, r.want)
	return e
}

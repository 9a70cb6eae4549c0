package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// caller sends single requests to one node, and never sends one again by itself: what a repetition does is for the
// test to see.
type caller struct {
	base string
	key  string
	http *http.Client
}

func newCaller(base, socket string) *caller {
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	dial := dialer.DialContext
	if socket != "" {
		base = "http://admin"
		dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socket)
		}
	}
	return &caller{base: base, http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// answer is what came back; status 0: nothing did.
type answer struct {
	status   int
	replayed bool // the node says that it is the answer of an earlier request
	body     []byte
	err      error
}

func (a answer) String() string {
	if a.status == 0 {
		return fmt.Sprintf("no answer: %v", a.err)
	}
	return fmt.Sprintf("%d %s", a.status, bytes.TrimSpace(a.body[:min(len(a.body), 300)]))
}

// message is the node's words in an error.
func (a answer) message() string {
	var e struct {
		Message string `json:"message"`
	}
	_ = json.Unmarshal(a.body, &e) // no JSON, no words
	return e.Message
}

// open says that the answer leaves the outcome open, or that it is only of now.
func (a answer) open() bool {
	return a.status == 0 || a.status == http.StatusServiceUnavailable || a.status == http.StatusGatewayTimeout
}

// callTimeout bounds one request; the node has bounds of its own that are shorter than this.
const callTimeout = 25 * time.Second

// do sends a request; body is JSON, or bytes as they are, or nil.
func (c *caller) do(ctx context.Context, method, path string, body any, idempotency string) answer {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	contentType := "application/json"
	raw, isRaw := body.([]byte)
	if isRaw {
		contentType = "application/octet-stream"
	} else if body != nil {
		var err error
		if raw, err = json.Marshal(body); err != nil {
			return answer{err: err}
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(raw))
	if err != nil {
		return answer{err: err}
	}
	if body != nil {
		req.Header.Set("Content-Type", contentType)
	}
	if c.key != "" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	}
	if idempotency != "" {
		req.Header.Set("Idempotency-Key", idempotency)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer func() { _ = resp.Body.Close() }()
	content, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return answer{err: err}
	}
	return answer{
		status: resp.StatusCode, replayed: resp.Header.Get("Idempotent-Replayed") == "true", body: content,
	}
}

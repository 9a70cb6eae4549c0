// Package client speaks the HTTP contract of a Stillframe node from the other side: typed requests and answers for the
// command line, the benchmarks and the end-to-end tests.
//
// It imports nothing of ours, not even package httpd: it has to agree with the contract as a stranger would, so that a
// test through it is a test of the wire, and it stays small enough to copy into another program.
//
// # Invariants
//
//   - A POST that must not be done twice carries an Idempotency-Key, the caller's or a generated one. A request that
//     fails on the network is sent again with the same key, a bounded number of times, so that a lost answer never
//     means a second sandbox. What may be done twice (reading, replacing a whole file) is sent again without a key.
//   - An answer of the node, good or bad, is the outcome. Only a 503 that says when to come again is asked again.
//   - The API key travels in the Authorization header only, is never part of an error, and redirects are not followed,
//     so it cannot be carried to another host.
//   - Every answer keeps the exact JSON it came from (Raw), for programs that want what the node said.
package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// DefaultAttempts is how often a request is sent at most when the network fails.
const DefaultAttempts = 4

// MaxErrorBody bounds what is read of an error answer, in bytes.
const MaxErrorBody = 64 << 10

// MaxAnswer bounds what is read of a JSON answer, in bytes. It exceeds the largest output that a node returns for a
// command, with room for JSON escapes.
const MaxAnswer = 64 << 20

const (
	firstBackoff = 100 * time.Millisecond
	maxPause     = 5 * time.Second // the longest Retry-After that is waited for
)

// Config says which node to talk to. Exactly one of BaseURL and Socket is set.
type Config struct {
	BaseURL string // e.g. "http://127.0.0.1:8080"; a path in it is kept as a prefix
	Socket  string // path of a Unix socket: the node's admin interface
	Key     string // API key; empty for the admin socket
	// UserAgent names the program in the node's log; empty is "stillframe-client".
	UserAgent string
	// Attempts is how often a request is sent at most when the network fails; 0 is DefaultAttempts, 1 is no retry.
	Attempts int
}

// Client talks to one node. It is safe for concurrent use. Close lets go of its idle connections.
type Client struct {
	base      *url.URL
	socket    string
	key       string
	userAgent string
	attempts  int
	http      *http.Client
	transport *http.Transport
}

// New checks the configuration and makes a client; it does not connect.
func New(cfg Config) (*Client, error) {
	if (cfg.BaseURL == "") == (cfg.Socket == "") {
		return nil, errors.New("client: need either a base URL or a socket")
	}
	transport := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSHandshakeTimeout: 10 * time.Second,
		IdleConnTimeout:     30 * time.Second,
		ForceAttemptHTTP2:   true,
	}
	raw := cfg.BaseURL
	if cfg.Socket != "" {
		raw = "http://admin.sock"
		transport.Proxy = nil
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "unix", cfg.Socket)
		}
	}
	base, err := parseBase(raw)
	if err != nil {
		return nil, err
	}
	if strings.ContainsAny(cfg.Key, "\r\n \t") {
		return nil, errors.New("client: the API key contains white space")
	}
	c := &Client{
		base: base, socket: cfg.Socket, key: cfg.Key,
		userAgent: cfg.UserAgent, attempts: cfg.Attempts, transport: transport,
	}
	if c.attempts == 0 {
		c.attempts = DefaultAttempts
	}
	if c.userAgent == "" {
		c.userAgent = "stillframe-client"
	}
	c.http = &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

func parseBase(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("client: base URL: %w", err)
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "":
		return nil, fmt.Errorf("client: base URL %q: want http://HOST:PORT or https://HOST", u.Redacted())
	case u.User != nil:
		return nil, errors.New("client: base URL: a user or password does not belong in it; the API key is given apart")
	case u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("client: base URL %q: a query or fragment does not belong in it", u.Redacted())
	}
	return u, nil
}

// Close closes idle connections.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// request is one call: what is sent stays the same over all its attempts.
type request struct {
	method      string
	path        []string // segments, escaped when joined
	query       url.Values
	body        []byte
	contentType string
	idempotency string // the Idempotency-Key; empty: none is sent
	once        bool   // must not be done twice, and has no key that would see to it: sent once
	want        int    // the status of success
}

func jsonBody(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("client: encode request: %w", err)
	}
	return b, nil
}

// call sends a request and decodes a JSON answer into out; out nil means that no body is expected.
func (c *Client) call(ctx context.Context, r request, out any) error {
	resp, err := c.send(ctx, r)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if out == nil {
		return nil
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, MaxAnswer+1))
	if err != nil {
		return c.lost(r, fmt.Errorf("read answer: %w", err))
	}
	if len(body) > MaxAnswer {
		return fmt.Errorf("client: %s %s: answer exceeds %d bytes", r.method, c.url(r).Path, MaxAnswer)
	}
	if err := json.Unmarshal(body, out); err != nil {
		return fmt.Errorf("client: %s %s: the answer is not what the contract says: %w", r.method, c.url(r).Path, err)
	}
	return nil
}

// create sends a JSON body under an idempotency key, generated when empty, and decodes a JSON answer.
func (c *Client) create(ctx context.Context, path []string, body any, key string, want int, out any) error {
	b, err := jsonBody(body)
	if err != nil {
		return err
	}
	if key == "" {
		key = rand.Text()
	}
	return c.call(ctx, request{
		method: http.MethodPost, path: path, body: b, contentType: "application/json", idempotency: key, want: want,
	}, out)
}

// ask sends a JSON body that changes nothing and decodes a JSON answer.
func (c *Client) ask(ctx context.Context, path []string, body, out any) error {
	b, err := jsonBody(body)
	if err != nil {
		return err
	}
	return c.call(ctx, request{
		method: http.MethodPost, path: path, body: b, contentType: "application/json", want: http.StatusOK,
	}, out)
}

// send makes the attempts and gives an answer with the wanted status; the caller closes its body.
func (c *Client) send(ctx context.Context, r request) (*http.Response, error) {
	for _, segment := range r.path {
		if segment == "" || segment == "." || segment == ".." {
			return nil, fmt.Errorf("client: %q is no id: it would change the path of the request", segment)
		}
	}
	backoff, most := firstBackoff, c.attempts
	if r.once {
		most = 1
	}
	for attempt := 1; ; attempt++ {
		resp, err := c.once(ctx, r)
		if err == nil {
			pause, later := comeAgain(resp)
			if !later || attempt >= most {
				return c.judge(r, resp, attempt)
			}
			closeBody(resp.Body)
			backoff, err = pause, errNotReady
		}
		if attempt >= most || ctx.Err() != nil {
			return nil, c.lost(r, err)
		}
		select {
		case <-ctx.Done():
			return nil, c.lost(r, errors.Join(ctx.Err(), err))
		case <-time.After(backoff):
		}
		backoff *= 3
	}
}

var errNotReady = errors.New("the node is not ready")

// comeAgain reads from an answer whether and when the node wants to be asked again. A long wait is the caller's choice.
func comeAgain(resp *http.Response) (time.Duration, bool) {
	after, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	pause := time.Duration(after) * time.Second
	return pause, resp.StatusCode == http.StatusServiceUnavailable && err == nil && after >= 0 && pause <= maxPause
}

func (c *Client) once(ctx context.Context, r request) (*http.Response, error) {
	var body io.Reader
	if r.body != nil {
		body = bytes.NewReader(r.body)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, c.url(r).String(), body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", c.userAgent)
	req.Header.Set("Accept", "application/json, application/octet-stream")
	if c.key != "" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	}
	if r.contentType != "" {
		req.Header.Set("Content-Type", r.contentType)
	}
	if r.idempotency != "" {
		req.Header.Set("Idempotency-Key", r.idempotency)
	}
	wishStale(ctx, req)
	return c.http.Do(req)
}

func (c *Client) url(r request) *url.URL {
	u := c.base.JoinPath() // a copy
	escaped := strings.TrimSuffix(u.EscapedPath(), "/")
	plain := strings.TrimSuffix(u.Path, "/")
	for _, segment := range r.path {
		escaped += "/" + url.PathEscape(segment)
		plain += "/" + segment
	}
	u.Path, u.RawPath = plain, escaped
	u.RawQuery = r.query.Encode()
	return u
}

// judge turns an answer into the outcome.
func (c *Client) judge(r request, resp *http.Response, attempt int) (*http.Response, error) {
	if resp.StatusCode == r.want {
		if resp.Request != nil {
			tellStale(resp.Request.Context(), resp.Header)
		}
		return resp, nil
	}
	defer closeBody(resp.Body)
	if r.method == http.MethodDelete && resp.StatusCode == http.StatusNotFound && attempt > 1 {
		// The answer to an earlier attempt was lost; that the thing is gone now is what was asked for.
		return &http.Response{StatusCode: r.want, Body: http.NoBody}, nil
	}
	return nil, decodeError(r, resp)
}

func closeBody(body io.ReadCloser) {
	// What is left of a short body is read so that the connection can be used again.
	_, _ = io.CopyN(io.Discard, body, 4<<10)
	_ = body.Close()
}

package guest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// Client calls the agent of one sandbox. It holds no connection between calls and is safe for concurrent use.
type Client struct {
	http *http.Client
}

// NewClient makes a client that reaches the agent through dial, which is called with the fixed address Addr.
func NewClient(dial DialFunc) *Client {
	return &Client{http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return connect(ctx, dial, network, addr)
		},
		DisableKeepAlives:  true,
		DisableCompression: true,
	}}}
}

// NewDirectClient makes a client over a dial that already deals with lost packets, such as one through the node that
// the sandbox runs on (see Connect): it is called once for each connection.
func NewDirectClient(dial DialFunc) *Client {
	return &Client{http: &http.Client{Transport: &http.Transport{
		DialContext: dial, DisableKeepAlives: true, DisableCompression: true,
	}}}
}

// Health asks the agent how it is, once.
func (c *Client) Health(ctx context.Context) (Health, error) {
	var h Health
	err := c.call(ctx, http.MethodGet, PathHealth, nil, &h)
	return h, err
}

const (
	healthRetry    = 3 * time.Millisecond // after the first try; doubles
	healthRetryMax = 100 * time.Millisecond
	// healthTimeout is for the first try, so that a connection lost to a snapshot does not hang it. It doubles, since a
	// guest on a crowded host may need longer for any.
	healthTimeout = 2 * time.Second
)

// WaitHealthy asks until the agent answers or ctx ends; then the error wraps both ctx's and the last try's.
func (c *Client) WaitHealthy(ctx context.Context) (Health, error) {
	retry, timeout := healthRetry, healthTimeout
	for {
		tctx, cancel := context.WithTimeout(ctx, timeout)
		h, err := c.Health(tctx)
		late := tctx.Err() != nil
		cancel()
		if err == nil {
			return h, nil
		}
		if late {
			timeout *= 2
		}
		select {
		case <-ctx.Done():
			return Health{}, fmt.Errorf("wait for the guest agent: %w (last try: %w)", ctx.Err(), err)
		case <-time.After(retry):
			retry = min(2*retry, healthRetryMax)
		}
	}
}

// SetIdentity makes the guest the sandbox id.SandboxID: it sets the clock, reseeds the kernel's random generator, and
// renames the machine. It can be repeated. Time and seed are filled in where missing.
func (c *Client) SetIdentity(ctx context.Context, id Identity) (IdentityResult, error) {
	if len(id.Seed) == 0 {
		id.Seed = make([]byte, SeedSize)
		if _, err := rand.Read(id.Seed); err != nil {
			return IdentityResult{}, fmt.Errorf("make a seed: %w", err)
		}
	}
	if id.UnixNano == 0 {
		id.UnixNano = time.Now().UnixNano()
	}
	var res IdentityResult
	err := c.call(ctx, http.MethodPut, PathIdentity, id, &res)
	return res, err
}

// call sends in as JSON (nothing when nil) and decodes the answer into out (nothing when nil).
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("guest %s: encode: %w", path, err)
		}
		body = bytes.NewReader(b)
	}
	resp, err := c.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end or given up
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return lost(path, err)
	}
	return nil
}

// do sends one request and turns an answer that is not a 2xx into an *Error. The caller closes the body.
func (c *Client) do(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+Addr+path, body)
	if err != nil {
		return nil, fmt.Errorf("guest %s: %w", path, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, lost(path, err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close() //nolint:errcheck // the call has failed already
	return nil, fmt.Errorf("guest %s: %w", path, readError(resp))
}

// readError decodes a failure. What is not of the agent's making is CodeInternal.
func readError(resp *http.Response) *Error {
	var e Error
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err == nil {
		err = json.Unmarshal(b, &e)
	}
	if err != nil || e.Code == "" {
		return Errorf(CodeInternal, "agent answered %s", resp.Status)
	}
	if _, known := statuses[e.Code]; !known {
		e.Code = CodeInternal
	}
	return &e
}

// lost marks an error as one that brought no answer, keeping its cause.
func lost(path string, err error) error {
	if errors.Is(err, ErrUnreachable) {
		return err
	}
	return fmt.Errorf("guest %s: %w: %w", path, ErrUnreachable, err)
}

func newExecID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: the runtime aborts instead
	return hex.EncodeToString(b[:])
}

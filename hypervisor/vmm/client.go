package vmm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"time"
)

// State is what a VMM says its VM is in.
type State string

// The states of a VM. StateNone is ours: the VMM runs and has no VM. A VM that was shut down is Created again.
const (
	StateNone     State = "None"
	StateCreated  State = "Created"
	StateRunning  State = "Running"
	StatePaused   State = "Paused"
	StateShutdown State = "Shutdown"
)

// Default deadlines for calls whose context has none.
const (
	// QuickTimeout bounds calls that only look or flip a switch. They wait behind a longer call under way.
	QuickTimeout = 15 * time.Second
	// SlowTimeout bounds calls that read or write guest memory.
	SlowTimeout = 2 * time.Minute
)

// maxReply bounds how much of a reply is read, in bytes: vm.info with its device tree is the longest, at some 30 KiB.
const maxReply = 4 << 20

// Ping is how a VMM introduces itself.
type Ping struct {
	BuildVersion string   `json:"build_version"`
	Version      string   `json:"version"`
	PID          int      `json:"pid"`
	Features     []string `json:"features"`
}

// Info is the VM as its VMM sees it. Config is kept raw: it holds fields that Config does not know.
type Info struct {
	State            State           `json:"state"`
	MemoryActualSize int64           `json:"memory_actual_size"` // bytes
	Config           json.RawMessage `json:"config"`
}

// Error is a VMM's refusal of a request.
type Error struct {
	Op       string   // the API's name of the operation, e.g. "vm.snapshot"
	Status   int      // HTTP status; tells nearly nothing, most refusals are 500
	Messages []string // outermost first, for people and logs
}

func (e *Error) Error() string {
	if len(e.Messages) == 0 {
		return fmt.Sprintf("%s: refused with status %d", e.Op, e.Status)
	}
	return fmt.Sprintf("%s: refused with status %d: %s", e.Op, e.Status, strings.Join(e.Messages, ": "))
}

// Client sends requests to the VMM that listens on one Unix socket. It holds no connection between calls, so it needs
// no closing, survives a restart of the VMM, and may be used from several goroutines (the VMM serves them in turn).
type Client struct {
	socket string
	http   *http.Client
}

// NewClient makes a client for a socket path; nothing is connected yet.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return dialUnix(ctx, socket) }
	return &Client{
		socket: socket,
		// A connection for each request: the VMM allows ten at once, and one that is kept would be found dead at the
		// moment of a pause.
		http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}},
	}
}

// Socket is the path this client connects to.
func (c *Client) Socket() string { return c.socket }

// Ping asks the VMM who it is. It waits behind a request under way, so a ping that times out during a snapshot or a
// restore does not mean that the VMM is dead: ask [Process.Alive].
func (c *Client) Ping(ctx context.Context) (Ping, error) {
	var p Ping
	err := c.call(ctx, QuickTimeout, http.MethodGet, "vmm.ping", nil, &p)
	return p, err
}

// Info describes the VM. Without a VM it fails; State tells that case apart.
func (c *Client) Info(ctx context.Context) (Info, error) {
	var i Info
	err := c.call(ctx, QuickTimeout, http.MethodGet, "vm.info", nil, &i)
	return i, err
}

// State tells what the VM is now: the only way to know what a refused request found.
func (c *Client) State(ctx context.Context) (State, error) {
	i, err := c.Info(ctx)
	var refused *Error
	// vm.info has one cause of refusal, so here its status can be trusted.
	if errors.As(err, &refused) && refused.Status == http.StatusNotFound {
		return StateNone, nil
	}
	return i.State, err
}

// Counters reads the devices' counters: device id, counter name, value.
func (c *Client) Counters(ctx context.Context) (map[string]map[string]uint64, error) {
	counters := map[string]map[string]uint64{}
	err := c.call(ctx, QuickTimeout, http.MethodGet, "vm.counters", nil, &counters)
	return counters, err
}

// Create hands the VMM a configuration. Little of it is checked before Boot.
func (c *Client) Create(ctx context.Context, cfg Config) error {
	return c.call(ctx, QuickTimeout, http.MethodPut, "vm.create", cfg, nil)
}

// Boot starts the VM. After a failure the VM may be Created or half made: Delete it.
func (c *Client) Boot(ctx context.Context) error { return c.put(ctx, SlowTimeout, "vm.boot") }

// Pause stops the virtual CPUs and devices. A paused VM refuses it and stays Paused.
func (c *Client) Pause(ctx context.Context) error { return c.put(ctx, QuickTimeout, "vm.pause") }

// Resume lets a paused VM run on. A running VM refuses it and stays Running.
func (c *Client) Resume(ctx context.Context) error { return c.put(ctx, QuickTimeout, "vm.resume") }

// Shutdown ends the VM at once, without asking the guest. The VM is Created afterwards.
func (c *Client) Shutdown(ctx context.Context) error { return c.put(ctx, QuickTimeout, "vm.shutdown") }

// Delete ends the VM if it runs and forgets its configuration. Deleting no VM succeeds.
func (c *Client) Delete(ctx context.Context) error { return c.put(ctx, QuickTimeout, "vm.delete") }

// PowerButton presses the guest's power button; what follows is up to the guest.
func (c *Client) PowerButton(ctx context.Context) error {
	return c.put(ctx, QuickTimeout, "vm.power-button")
}

// VMMShutdown ends the VM and then the VMM process. It returns before the process has gone: wait for [Process.Exited].
func (c *Client) VMMShutdown(ctx context.Context) error {
	return c.put(ctx, QuickTimeout, "vmm.shutdown")
}

// Snapshot writes a paused VM's configuration and device state, and memory that is not in a shared file, into an
// existing folder that holds none of these files. Nothing is synced, and after a failure files may be left there. The
// VM stays Paused either way.
func (c *Client) Snapshot(ctx context.Context, dir string) error {
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("vm.snapshot: folder %q is not absolute", dir)
	}
	body := map[string]any{"destination_url": "file://" + dir}
	return c.call(ctx, SlowTimeout, http.MethodPut, "vm.snapshot", body, nil)
}

// Restore makes the VM of a snapshot in a VMM that has none. After a failure the VMM can be used again.
func (c *Client) Restore(ctx context.Context, r RestoreConfig) error {
	if !filepath.IsAbs(r.SourceDir) {
		return fmt.Errorf("vm.restore: folder %q is not absolute", r.SourceDir)
	}
	body := map[string]any{"source_url": "file://" + r.SourceDir, "resume": r.Resume}
	return c.call(ctx, SlowTimeout, http.MethodPut, "vm.restore", body, nil)
}

func (c *Client) put(ctx context.Context, limit time.Duration, op string) error {
	return c.call(ctx, limit, http.MethodPut, op, nil, nil)
}

// call sends one request. limit is the deadline where ctx has none; in and out may be nil.
func (c *Client) call(ctx context.Context, limit time.Duration, method, op string, in, out any) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	var body io.Reader
	if in != nil {
		raw, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("%s: encode the request: %w", op, err)
		}
		body = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://vmm/api/v1/"+op, body)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("%s on %s: %w", op, c.socket, err)
	}
	defer func() { _ = resp.Body.Close() }()
	return readReply(op, resp, out)
}

func readReply(op string, resp *http.Response, out any) error {
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxReply+1))
	if err != nil {
		return fmt.Errorf("%s: read the reply: %w", op, err)
	}
	if len(raw) > maxReply {
		return fmt.Errorf("%s: reply is longer than %d bytes", op, maxReply)
	}
	if resp.StatusCode >= 300 {
		return refusal(op, resp.StatusCode, raw)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return fmt.Errorf("%s: decode the reply: %w", op, err)
	}
	return nil
}

// refusal reads the error body: an array of strings, or, where the VMM's HTTP server itself refused, something else.
func refusal(op string, status int, raw []byte) *Error {
	e := &Error{Op: op, Status: status}
	if json.Unmarshal(raw, &e.Messages) != nil || e.Messages == nil {
		const enough = 512
		if text := strings.TrimSpace(string(raw[:min(len(raw), enough)])); text != "" {
			e.Messages = []string{text}
		}
	}
	return e
}

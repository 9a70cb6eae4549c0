package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"

	"stillframe/fsm"
	"stillframe/httpd"
	"stillframe/hypervisor"
	"stillframe/hypervisor/guest"
)

// guests joins the API's view of what is inside a sandbox to the sandbox's agent: over this host where this node owns
// the sandbox, else through the node that does.
type guests struct {
	self    fsm.NodeID
	state   func() *fsm.State
	owner   *hypervisor.Owner
	tunnels *tunnels
}

// client gives the client of a sandbox's agent.
func (g guests) client(ctx context.Context, id fsm.SandboxID) (*guest.Client, error) {
	sb, ok := g.state().Sandbox(id)
	switch {
	case !ok:
		return nil, fsm.Errorf(fsm.KindNotFound, "no such sandbox")
	case sb.Owner == g.self:
		return g.owner.Guest(ctx, id)
	}
	return guest.NewDirectClient(func(ctx context.Context, _, _ string) (net.Conn, error) {
		return g.tunnels.dial(ctx, sb.Owner, id)
	}), nil
}

// with runs one call against a sandbox's agent and translates its failure.
func with[T any](ctx context.Context, g guests, id fsm.SandboxID, call func(*guest.Client) (T, error)) (T, error) {
	client, err := g.client(ctx, id)
	if err != nil {
		var none T
		return none, err
	}
	result, err := call(client)
	return result, guestError(err)
}

// do is with for calls that only succeed or fail.
func do(ctx context.Context, g guests, id fsm.SandboxID, call func(*guest.Client) error) error {
	_, err := with(ctx, g, id, func(c *guest.Client) (struct{}, error) { return struct{}{}, call(c) })
	return err
}

func guestError(err error) error {
	var agent *guest.Error
	var way *fsm.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &way):
		return way // the way to the owner failed, before the agent was asked
	case errors.As(err, &agent):
		return &httpd.GuestError{Code: httpd.GuestCode(agent.Code), Message: agent.Message}
	}
	return fmt.Errorf("%w: %w", httpd.ErrGuestUnreachable, err)
}

func (g guests) Exec(ctx context.Context, id fsm.SandboxID, req httpd.ExecRequest) (httpd.ExecResult, error) {
	r, err := with(ctx, g, id, func(c *guest.Client) (guest.ExecResult, error) {
		return c.Exec(ctx, guest.ExecRequest{
			Command: req.Command, Cwd: req.Cwd, Env: req.Env, Timeout: req.Timeout, MaxOutput: req.MaxOutput,
		})
	})
	return httpd.ExecResult{
		ExitCode: r.ExitCode, TimedOut: r.TimedOut, Stdout: r.Stdout, Stderr: r.Stderr,
		StdoutTruncated: r.StdoutTruncated, StderrTruncated: r.StderrTruncated,
	}, err
}

func (g guests) ReadFile(ctx context.Context, id fsm.SandboxID, req httpd.ReadFileRequest) (io.ReadCloser, error) {
	return with(ctx, g, id, func(c *guest.Client) (io.ReadCloser, error) {
		return c.ReadFile(ctx, guest.ReadFileRequest(req))
	})
}

func (g guests) WriteFile(ctx context.Context, id fsm.SandboxID, path string, perm fs.FileMode, r io.Reader) error {
	return do(ctx, g, id, func(c *guest.Client) error { return c.WriteFile(ctx, path, perm, r) })
}

func (g guests) Ls(ctx context.Context, id fsm.SandboxID, req httpd.LsRequest) ([]httpd.FileInfo, error) {
	items, err := with(ctx, g, id, func(c *guest.Client) ([]guest.FileInfo, error) {
		return c.Ls(ctx, guest.LsRequest(req))
	})
	infos := make([]httpd.FileInfo, len(items))
	for i, item := range items {
		infos[i] = httpd.FileInfo(item)
	}
	return infos, err
}

func (g guests) Stat(ctx context.Context, id fsm.SandboxID, path string) (httpd.FileInfo, error) {
	info, err := with(ctx, g, id, func(c *guest.Client) (guest.FileInfo, error) { return c.Stat(ctx, path) })
	return httpd.FileInfo(info), err
}

func (g guests) Exists(ctx context.Context, id fsm.SandboxID, path string) (bool, error) {
	return with(ctx, g, id, func(c *guest.Client) (bool, error) { return c.Exists(ctx, path) })
}

func (g guests) Mkdir(ctx context.Context, id fsm.SandboxID, req httpd.MkdirRequest) error {
	return do(ctx, g, id, func(c *guest.Client) error { return c.Mkdir(ctx, guest.MkdirRequest(req)) })
}

func (g guests) Delete(ctx context.Context, id fsm.SandboxID, req httpd.DeleteRequest) error {
	return do(ctx, g, id, func(c *guest.Client) error { return c.Delete(ctx, guest.DeleteRequest(req)) })
}

func (g guests) Move(ctx context.Context, id fsm.SandboxID, req httpd.TransferRequest) error {
	return do(ctx, g, id, func(c *guest.Client) error { return c.Move(ctx, transfer(req)) })
}

func (g guests) Copy(ctx context.Context, id fsm.SandboxID, req httpd.TransferRequest) error {
	return do(ctx, g, id, func(c *guest.Client) error { return c.Copy(ctx, transfer(req)) })
}

func transfer(req httpd.TransferRequest) guest.TransferRequest {
	return guest.TransferRequest{Src: req.Src, Dst: req.Dst, Recursive: req.Recursive, Overwrite: req.Overwrite}
}

package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// killTimeout bounds the call that stops a command whose caller has gone.
const killTimeout = 5 * time.Second

// Exec runs a command and answers when it is over. A command that fails or times out is a result, not an error; a
// program that cannot be started is an *Error. When ctx ends first the command is killed.
func (c *Client) Exec(ctx context.Context, req ExecRequest) (ExecResult, error) {
	if req.ID == "" {
		req.ID = newExecID()
	}
	var res ExecResult
	err := c.call(ctx, http.MethodPost, PathExec, req, &res)
	c.killAbandoned(ctx, req.ID, err)
	return res, err
}

// ExecStream is Exec, with the output handed over as it comes. A writer's error ends the run.
func (c *Client) ExecStream(ctx context.Context, req ExecRequest, stdout, stderr io.Writer) (ExecResult, error) {
	if req.ID == "" {
		req.ID = newExecID()
	}
	sctx, cancel := context.WithCancel(ctx)
	defer cancel()
	res, err := c.stream(sctx, req, stdout, stderr)
	if errors.Is(err, errWriter) {
		cancel()
	}
	c.killAbandoned(sctx, req.ID, err)
	return res, err
}

var errWriter = errors.New("output could not be handed over")

func (c *Client) stream(ctx context.Context, req ExecRequest, stdout, stderr io.Writer) (ExecResult, error) {
	b, err := json.Marshal(req)
	if err != nil {
		return ExecResult{}, fmt.Errorf("guest exec: encode: %w", err)
	}
	resp, err := c.do(ctx, http.MethodPost, PathExecStream, bytes.NewReader(b))
	if err != nil {
		return ExecResult{}, err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end or given up
	dec := json.NewDecoder(resp.Body)
	for {
		var ev ExecEvent
		if err := dec.Decode(&ev); err != nil {
			return ExecResult{}, lost(PathExecStream, err)
		}
		switch {
		case ev.Error != nil:
			return ExecResult{}, fmt.Errorf("guest exec: %w", ev.Error)
		case ev.Result != nil:
			return *ev.Result, nil
		}
		if err := writeBoth(ev, stdout, stderr); err != nil {
			return ExecResult{}, err
		}
	}
}

func writeBoth(ev ExecEvent, stdout, stderr io.Writer) error {
	if _, err := stdout.Write(ev.Stdout); err != nil {
		return fmt.Errorf("guest exec: %w: %w", errWriter, err)
	}
	if _, err := stderr.Write(ev.Stderr); err != nil {
		return fmt.Errorf("guest exec: %w: %w", errWriter, err)
	}
	return nil
}

// killAbandoned stops a run whose caller no longer waits. The agent does not take a broken connection as a reason to
// kill: in a restored copy of a guest every connection of the original is broken, and what ran must go on running.
func (c *Client) killAbandoned(ctx context.Context, id string, err error) {
	if err == nil || ctx.Err() == nil {
		return
	}
	kctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	go func() {
		defer cancel()
		_ = c.call(kctx, http.MethodPost, PathExecKill, ExecKillRequest{ID: id}, nil) // the timeout is the second line
	}()
}

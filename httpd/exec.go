package httpd

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"stillframe/fsm"
)

const (
	defaultExecTimeout = 30        // seconds
	exitTimedOut       = 124       // as timeout(1) has it
	maxCommand         = 128 << 10 // bytes: the kernel takes no longer argument
	maxPath            = 4096      // bytes, as PATH_MAX
)

// execResult is a command's end on the wire. The last three are there when true.
type execResult struct {
	ExitCode        int    `json:"exit_code"`
	Stdout          string `json:"stdout"`
	Stderr          string `json:"stderr"`
	TimedOut        bool   `json:"timed_out,omitempty"`
	StdoutTruncated bool   `json:"stdout_truncated,omitempty"`
	StderrTruncated bool   `json:"stderr_truncated,omitempty"`
}

func (s *Server) execute(c *call) (reply, error) {
	errs := &fieldErrors{}
	body, err := c.body(errs)
	if err != nil {
		return reply{}, err
	}
	request := c.request(errs)
	command, _ := body.required("command")
	if len(command) >= maxCommand || strings.Contains(command, "\x00") {
		body.bad("command", "must be shorter than %d bytes and hold no zero byte", maxCommand)
	}
	req := ExecRequest{
		Command: command, Cwd: body.path("cwd", false), Env: body.env("envs"), MaxOutput: int64(s.cfg.Limits.ExecOutput),
		Timeout: time.Duration(body.integer("timeout", defaultExecTimeout, 1, maxTimeoutSec)) * time.Second,
	}
	if err := errs.err(); err != nil {
		return reply{}, err
	}
	return s.once(c, dataCall{
		request: request, timeout: req.Timeout + s.cfg.Limits.ExecMargin,
		do: func(ctx context.Context) (reply, error) {
			sb, err := s.reachable(ctx, c)
			if err != nil {
				return reply{}, err
			}
			res, err := s.guests.Exec(ctx, sb.ID, req)
			if err != nil {
				return reply{}, lostCall(err, request, false)
			}
			return jsonReply(http.StatusOK, execView(res))
		},
	})
}

func execView(res ExecResult) execResult {
	v := execResult{
		ExitCode: res.ExitCode, Stdout: utf8Text(res.Stdout), Stderr: utf8Text(res.Stderr), TimedOut: res.TimedOut,
		StdoutTruncated: res.StdoutTruncated, StderrTruncated: res.StderrTruncated,
	}
	if res.TimedOut {
		v.ExitCode = exitTimedOut
	}
	return v
}

// utf8Text makes output fit for JSON: bytes that are no UTF-8 become U+FFFD.
func utf8Text(b []byte) string { return strings.ToValidUTF8(string(b), "\uFFFD") }

// path reads a path in the sandbox, which must be absolute.
func (o *object) path(field string, required bool) string {
	var p string
	var ok bool
	if required {
		p, ok = o.required(field)
	} else {
		p, ok = o.str(field)
	}
	if ok {
		if wrong := pathError(p); wrong != "" {
			o.bad(field, "%s", wrong)
		}
	}
	return p
}

func pathError(p string) string {
	if !strings.HasPrefix(p, "/") || len(p) >= maxPath || strings.Contains(p, "\x00") {
		return "must be an absolute path, shorter than 4096 bytes and without a zero byte"
	}
	return ""
}

// lostCall words an agent that did not answer. What changes nothing may be tried again; of the rest nobody knows.
func lostCall(err error, req fsm.Request, readOnly bool) error {
	timeout := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
	switch {
	case timeout && readOnly:
		return &apiError{kind: fsm.KindTimeout, message: "the sandbox did not answer in time", cause: err}
	case timeout:
		return &apiError{
			kind: fsm.KindTimeout, cause: err,
			message: "the sandbox did not answer in time: what was asked may or may not have been done",
		}
	case errors.Is(err, ErrGuestUnreachable) && readOnly:
		return &apiError{kind: fsm.KindUnavailable, message: ErrGuestUnreachable.Error(), cause: err}
	case errors.Is(err, ErrGuestUnreachable):
		e := &apiError{
			kind: fsm.KindUnknown, cause: err,
			message: ErrGuestUnreachable.Error() + ": what was asked may or may not have been done",
		}
		if req.Key != "" {
			e.message += "; the Idempotency-Key (" + req.Key + ") keeps a retry from doing it twice"
		}
		return e
	}
	return err
}

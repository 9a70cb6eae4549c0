package httpd

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"stillframe/fsm"
)

func (s *Server) now() fsm.Time { return fsm.At(s.cfg.Now()) }

// carryOut proposes a command that opens an intent and waits until the intent is closed, or only until it is open where
// the client wants that. The error is the refusal, the intent's failure, or what state things are in when the deadline
// passes.
func (s *Server) carryOut(c *call, cmd fsm.Command, req fsm.Request) (fsm.Intent, error) {
	ctx, cancel := context.WithTimeout(c.ctx, s.cfg.Limits.Wait)
	defer cancel()
	res, err := s.log.Apply(ctx, cmd)
	c.replayed = res.Replayed
	if err != nil {
		return fsm.Intent{}, unknownOutcome(err, req)
	}
	intent := res.Intent
	if intent.State == fsm.IntentOpen && c.async {
		return intent, nil
	}
	if intent.State == fsm.IntentOpen {
		if intent, err = s.log.WaitIntent(ctx, intent.ID); err != nil {
			return fsm.Intent{}, s.stillOpen(ctx, res.Intent, req, err)
		}
	}
	switch intent.State {
	case fsm.IntentDone:
		return intent, nil
	case fsm.IntentFailed:
		if intent.Error == nil {
			return fsm.Intent{}, internal(fmt.Errorf("intent %s failed without a reason", intent.ID))
		}
		return fsm.Intent{}, intent.Error
	}
	return fsm.Intent{}, internal(fmt.Errorf("intent %q is %q after the wait for it", intent.ID, intent.State))
}

// stillOpen words the end of a wait: what has begun goes on, and here is how to see it.
func (s *Server) stillOpen(ctx context.Context, in fsm.Intent, req fsm.Request, err error) error {
	e := asAPIError(err)
	if e.kind != fsm.KindTimeout && ctx.Err() == nil {
		return err
	}
	out := &apiError{kind: fsm.KindTimeout, cause: err}
	state := s.log.State()
	switch in.Kind {
	case fsm.IntentSnapshot:
		sn, _ := state.Snapshot(in.Snapshot)
		out.resource = &Resource{string(in.Snapshot), "creating"}
		out.message = fmt.Sprintf("snapshot %s is still being created; its name %q stays reserved, and it is listed once it "+
			"is ready", in.Snapshot, sn.Name)
	case fsm.IntentDeleteSnapshot:
		out.resource = &Resource{string(in.Snapshot), "deleting"}
		out.message = fmt.Sprintf("snapshot %s is still being deleted; its name is free once it is gone", in.Snapshot)
	case fsm.IntentDelete:
		out.resource = &Resource{string(in.Sandbox), string(fsm.SandboxDeleting)}
		out.message = fmt.Sprintf("sandbox %s is still being deleted", in.Sandbox)
	case fsm.IntentSetPolicy:
		out.resource = &Resource{string(in.Sandbox), string(fsm.SandboxRunning)}
		out.message = fmt.Sprintf("the network policy of sandbox %s is still being replaced; GET /v1/sandbox/%s shows the "+
			"new one once it is in force", in.Sandbox, in.Sandbox)
	default:
		out.resource = &Resource{string(in.Sandbox), string(fsm.SandboxStarting)}
		out.message = fmt.Sprintf("sandbox %s is still starting; GET /v1/sandbox/%s tells how far it is", in.Sandbox,
			in.Sandbox)
	}
	if req.Key != "" {
		out.message += "; a retry with the same Idempotency-Key waits for the same outcome"
	}
	return out
}

// read is the state for answering a read of an organization's things: everything acknowledged is in it, whichever node
// acknowledged it.
func (s *Server) read(ctx context.Context) (*fsm.State, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Limits.Data)
	defer cancel()
	state, err := s.log.Linearizable(ctx)
	if err == nil {
		return state, nil
	}
	if errors.Is(err, context.DeadlineExceeded) || asAPIError(err).kind == fsm.KindTimeout {
		return nil, &apiError{kind: fsm.KindUnavailable, message: "the cluster does not answer at the moment", cause: err}
	}
	return nil, err
}

// sandbox finds the sandbox that the path names, in the caller's organization.
func (s *Server) sandbox(ctx context.Context, c *call) (fsm.Sandbox, error) {
	state, err := s.read(ctx)
	if err != nil {
		return fsm.Sandbox{}, err
	}
	return c.ownSandbox(state)
}

// ownSandbox finds in a state the sandbox that the path names, in the caller's organization.
func (c *call) ownSandbox(state *fsm.State) (fsm.Sandbox, error) {
	sb, ok := state.Sandbox(fsm.SandboxID(c.fc.Params("sandbox_id")))
	if !ok || sb.Org != c.org.ID {
		return fsm.Sandbox{}, failf(fsm.KindNotFound, "no such sandbox")
	}
	return sb, nil
}

// reachable finds the sandbox that the path names and makes sure that its agent can be called.
func (s *Server) reachable(ctx context.Context, c *call) (fsm.Sandbox, error) {
	sb, err := s.sandbox(ctx, c)
	if err != nil {
		return sb, err
	}
	if sb.State != fsm.SandboxRunning && sb.State != fsm.SandboxSnapshotting {
		return sb, failf(fsm.KindConflict, "the sandbox is %s, not running", sb.State)
	}
	if n, lost := s.lostNode(sb); lost {
		return sb, failf(fsm.KindUnavailable, "node %s, on which the sandbox is, does not answer", n.Label())
	}
	return sb, nil
}

// pathID reads an identifier from the path. What could not be one is not found, like any other that does not exist.
func (c *call) pathID(name string) (string, error) {
	id := c.fc.Params(name)
	if id == "" || len(id) > 63 || strings.ContainsFunc(id, notLabel) {
		return "", failf(fsm.KindNotFound, "no such %s", strings.TrimSuffix(name, "_id"))
	}
	return id, nil
}

func notLabel(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-'
}

package httpd

import (
	"context"
	"errors"
	"net/http"
	"net/netip"

	"stillframe/fsm"
	"stillframe/netpolicy/policy"
)

// setPolicy replaces a running sandbox's network policy, and answers when the new one is in force.
func (s *Server) setPolicy(c *call) (reply, error) {
	id, err := c.pathID("sandbox_id")
	if err != nil {
		return reply{}, err
	}
	errs := &fieldErrors{}
	body, err := c.body(errs)
	if err != nil {
		return reply{}, err
	}
	cmd := fsm.SetNetworkPolicy{Request: c.request(errs), Org: c.org.ID, Sandbox: fsm.SandboxID(id)}
	given := body.asPolicy()
	if err := errs.err(); err != nil {
		return reply{}, err
	}
	sealed, err := s.seal(c, given, &cmd.Request)
	if err != nil {
		return reply{}, err
	}
	cmd.Now, cmd.Intent, cmd.Policy = s.now(), s.newIntent(), *sealed
	intent, err := s.carryOut(c, cmd, cmd.Request)
	if err != nil {
		return reply{}, err
	}
	return s.sandboxReply(http.StatusOK, intent)
}

const (
	defaultDecisions = 100
	maxDecisions     = 1000
)

// policyLog shows the last decisions on a sandbox's connections and queries.
func (s *Server) policyLog(c *call) (reply, error) {
	q := query{c: c}
	limit := q.integer("limit", defaultDecisions, maxDecisions)
	if err := q.errs.err(); err != nil {
		return reply{}, err
	}
	return askPolicy(s, c, func(ctx context.Context, id fsm.SandboxID) (any, error) {
		decisions, err := s.cfg.Policies.Log(ctx, id, limit)
		if decisions == nil {
			decisions = []PolicyDecision{}
		}
		return page[PolicyDecision]{Items: decisions, TotalItems: len(decisions)}, err
	})
}

// defaultCheckPort is the port that is meant when none is given: the one that nearly all of a sandbox's traffic is for.
const defaultCheckPort = 443

// policyCheck says what would become of a connection. Nothing is connected to.
func (s *Server) policyCheck(c *call) (reply, error) {
	q := query{c: c}
	host := q.host("host")
	port := q.integer("port", defaultCheckPort, 65535)
	if err := q.errs.err(); err != nil {
		return reply{}, err
	}
	return askPolicy(s, c, func(ctx context.Context, id fsm.SandboxID) (any, error) {
		return s.cfg.Policies.Check(ctx, id, host, uint16(port))
	})
}

// host reads a host name, which comes out in canonical form, or an address. What is neither is refused with the reason
// for which the gate would refuse it.
func (q *query) host(name string) string {
	v := q.c.fc.Query(name)
	if v == "" {
		q.errs.add(name, "is required")
		return ""
	}
	if addr, err := netip.ParseAddr(v); err == nil && addr.Zone() == "" {
		return addr.Unmap().String()
	}
	host, err := policy.CanonicalName(v)
	if err != nil {
		q.errs.add(name, "%v", err)
	}
	return host
}

// askPolicy asks the node of a running sandbox. Nothing that is asked changes anything.
func askPolicy(s *Server, c *call, ask func(context.Context, fsm.SandboxID) (any, error)) (reply, error) {
	ctx, cancel := context.WithTimeout(c.ctx, s.cfg.Limits.Data)
	defer cancel()
	sb, err := s.reachable(ctx, c)
	if err != nil {
		return reply{}, err
	}
	answer, err := ask(ctx, sb.ID)
	switch {
	case err == nil:
		return jsonReply(http.StatusOK, answer)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return reply{}, &apiError{kind: fsm.KindTimeout, message: "the sandbox's node did not answer in time", cause: err}
	}
	return reply{}, err
}

package node

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"stillframe/fsm"
	"stillframe/httpd"
	"stillframe/hypervisor"
)

// policies asks the owner of a sandbox about the network policy in force there: this node's, or another over a call
// between nodes.
type policies struct {
	self    fsm.NodeID
	state   func() *fsm.State
	owner   policyOwner
	tunnels *tunnels
}

// policyOwner is this node's hypervisor.Owner as its policies are asked about.
type policyOwner interface {
	PolicyLog(ctx context.Context, id fsm.SandboxID, limit int) ([]hypervisor.PolicyDecision, error)
	PolicyCheck(ctx context.Context, id fsm.SandboxID, host string, port uint16) (hypervisor.PolicyDecision, error)
}

const (
	policyLogPattern   = "GET /policy/{sandbox}/log"
	policyCheckPattern = "GET /policy/{sandbox}/check"
)

// policyAnswer is an owner's answer to another node. Exactly one of Refusal and the rest is meant.
type policyAnswer struct {
	Refusal   *refusal               `json:"refusal,omitempty"`
	Decisions []httpd.PolicyDecision `json:"decisions,omitempty"`
}

// Log implements httpd.Policies.
func (p policies) Log(ctx context.Context, id fsm.SandboxID, limit int) ([]httpd.PolicyDecision, error) {
	sb, ok := p.state().Sandbox(id)
	switch {
	case !ok:
		return nil, errNoSandbox
	case sb.Owner == p.self:
		return p.logHere(ctx, id, limit)
	}
	return p.askOwner(ctx, sb.Owner, "/policy/"+string(id)+"/log?limit="+strconv.Itoa(limit))
}

var errNoSandbox = fsm.Errorf(fsm.KindNotFound, "no such sandbox")

// Check implements httpd.Policies.
func (p policies) Check(ctx context.Context, id fsm.SandboxID, host string, port uint16) (httpd.PolicyDecision, error) {
	sb, ok := p.state().Sandbox(id)
	switch {
	case !ok:
		return httpd.PolicyDecision{}, errNoSandbox
	case sb.Owner == p.self:
		return p.checkHere(ctx, id, host, port)
	}
	query := url.Values{"host": {host}, "port": {strconv.Itoa(int(port))}}
	decisions, err := p.askOwner(ctx, sb.Owner, "/policy/"+string(id)+"/check?"+query.Encode())
	if err == nil && len(decisions) != 1 {
		err = fsm.Errorf(fsm.KindInternal, "the sandbox's node gave %d decisions for one question", len(decisions))
	}
	if err != nil {
		return httpd.PolicyDecision{}, err
	}
	return decisions[0], nil
}

func (p policies) logHere(ctx context.Context, id fsm.SandboxID, limit int) ([]httpd.PolicyDecision, error) {
	decisions, err := p.owner.PolicyLog(ctx, id, limit)
	out := make([]httpd.PolicyDecision, len(decisions))
	for i, d := range decisions {
		out[i] = decisionView(d)
	}
	return out, err
}

func (p policies) checkHere(ctx context.Context, id fsm.SandboxID, host string, port uint16) (httpd.PolicyDecision,
	error,
) {
	d, err := p.owner.PolicyCheck(ctx, id, host, port)
	return decisionView(d), err
}

func decisionView(d hypervisor.PolicyDecision) httpd.PolicyDecision {
	out := httpd.PolicyDecision{
		Action: d.Action, Rule: d.Rule, Reason: d.Reason, Protocol: d.Protocol, Name: d.Name, Address: d.Address,
		Sent: d.Sent, Received: d.Received,
	}
	if !d.At.IsZero() {
		out.Time = d.At.UTC().Format(time.RFC3339Nano)
	}
	return out
}

// askOwner sends a question to another node. Whatever goes wrong on the way is no answer: nothing has changed there.
func (p policies) askOwner(ctx context.Context, owner fsm.NodeID, path string) ([]httpd.PolicyDecision, error) {
	var answer policyAnswer
	if err := askNode(ctx, p.tunnels.log, owner, path, &answer); err != nil {
		return nil, p.tunnels.unreachable(owner, err)
	}
	if answer.Refusal != nil {
		return nil, fsm.Errorf(answer.Refusal.Kind, "%s", answer.Refusal.Message)
	}
	return answer.Decisions, nil
}

// serve answers other nodes about this node's sandboxes.
func (p policies) serve() {
	p.tunnels.log.Handle(policyLogPattern, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		limit, err := strconv.Atoi(r.URL.Query().Get("limit"))
		if err != nil || limit < 1 {
			answerPolicy(w, nil, fsm.Errorf(fsm.KindInternal, "malformed question of another node"))
			return
		}
		decisions, err := p.logHere(r.Context(), fsm.SandboxID(r.PathValue("sandbox")), limit)
		answerPolicy(w, decisions, err)
	}))
	p.tunnels.log.Handle(policyCheckPattern, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		port, err := strconv.ParseUint(r.URL.Query().Get("port"), 10, 16)
		if err != nil {
			answerPolicy(w, nil, fsm.Errorf(fsm.KindInternal, "malformed question of another node"))
			return
		}
		id := fsm.SandboxID(r.PathValue("sandbox"))
		decision, err := p.checkHere(r.Context(), id, r.URL.Query().Get("host"), uint16(port))
		answerPolicy(w, []httpd.PolicyDecision{decision}, err)
	}))
}

func answerPolicy(w http.ResponseWriter, decisions []httpd.PolicyDecision, err error) {
	answer := policyAnswer{Decisions: decisions}
	if err != nil {
		why := refusal{fsm.KindInternal, "the sandbox's node could not answer"}
		var known *fsm.Error
		if errors.As(err, &known) {
			why = refusal{known.Kind, known.Message}
		}
		answer = policyAnswer{Refusal: &why}
	}
	body, err := json.Marshal(answer)
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body) // a caller that is gone is told nothing
}

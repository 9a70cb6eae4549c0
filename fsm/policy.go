package fsm

import "maps"

// The command types of this file.
const (
	TypeSetNetworkPolicy CommandType = iota + 16
	TypeReseal
)

// maxSealedCABytes bounds a sealed CA seed: 32 bytes and what sealing adds to them.
const maxSealedCABytes = 1 << 10

// The modes of a NetworkPolicy.
const (
	PolicyAllowAll = "allow-all"
	PolicyDenyAll  = "deny-all"
	PolicyCustom   = "custom"
)

// SetNetworkPolicy opens a set-policy intent on a running sandbox that has no other intent open. The sandbox stays
// running while its owner replaces the rules; nothing else can be begun on it meanwhile. The policy becomes the
// sandbox's when the intent is done.
type SetNetworkPolicy struct {
	Now     Time          `codec:"now"`
	Request Request       `codec:"rq"`
	Intent  IntentID      `codec:"in"`
	Org     OrgID         `codec:"o"`
	Sandbox SandboxID     `codec:"sb"`
	Policy  NetworkPolicy `codec:"np"`
}

func (SetNetworkPolicy) commandType() CommandType { return TypeSetNetworkPolicy }

func (d *draft) setNetworkPolicy(c SetNetworkPolicy) (Intent, *Error) {
	var p problems
	p.id("the intent's id", string(c.Intent))
	p.id("the sandbox's id", string(c.Sandbox))
	p.mode(c.Policy.Mode)
	if p.err != nil {
		return Intent{}, p.err
	}
	sb, err := d.sandboxOf(c.Org, c.Sandbox)
	if err != nil {
		return Intent{}, err
	}
	if sb.State != SandboxRunning {
		return Intent{}, Errorf(KindConflict, "sandbox %s is %s; only a running one's network policy can be replaced",
			sb.ID, sb.State)
	}
	if err := sb.policyAtRest(); err != nil {
		return Intent{}, err
	}
	if err := d.ownerThere(sb.Owner); err != nil {
		return Intent{}, err
	}
	if err := d.newIntentID(c.Intent); err != nil {
		return Intent{}, err
	}
	sb.UpdatedAt = c.Now
	sb.Epoch++
	sb.Intent = c.Intent
	d.putSandbox(sb)
	return d.openIntent(c.Now, c.Request, Intent{
		ID: c.Intent, Kind: IntentSetPolicy, Org: c.Org, Sandbox: sb.ID, Owner: sb.Owner, Epoch: sb.Epoch,
		NetworkPolicy: &c.Policy,
	}), nil
}

// policyAtRest refuses what would have to wait for a policy that is being put in force.
func (sb *Sandbox) policyAtRest() *Error {
	if sb.State != SandboxRunning || sb.Intent == "" {
		return nil
	}
	return Errorf(KindConflict, "the network policy of sandbox %s is being replaced; try again once that is done", sb.ID)
}

// closeSetPolicy ends a set-policy intent: the policy is in force, or the one before it still is, or the owner could
// keep up neither and lets nothing through.
func (d *draft) closeSetPolicy(in *Intent, c Complete) {
	sb, _ := d.Sandbox(in.Sandbox)
	sb.Intent, sb.UpdatedAt = "", in.ClosedAt
	switch {
	case in.State == IntentDone:
		sb.NetworkPolicy, sb.PolicyNote = in.NetworkPolicy, ""
	case c.PolicyFellBack:
		sb.NetworkPolicy = &NetworkPolicy{Mode: PolicyDenyAll}
		sb.PolicyNote = "everything is denied since a replacement failed: " + in.Error.Message
	}
	if c.SandboxStopped != "" {
		sb.setState(in.ClosedAt, SandboxStopped, cut(c.SandboxStopped))
	}
	d.putSandbox(sb)
	in.ResultSandbox = &sb
}

// stopUnderPolicy closes the set-policy intent of a sandbox whose VM is gone, and stops the sandbox.
func (d *draft) stopUnderPolicy(now Time, sb Sandbox, reason string) {
	in, _ := d.Intent(sb.Intent)
	in.State, in.ClosedAt, in.KeepUntil = IntentFailed, now, max(in.KeepUntil, now+IntentRetention)
	in.Error = Errorf(KindConflict, "sandbox %s stopped before the policy was in force: %s", sb.ID, cut(reason))
	d.closeSetPolicy(&in, Complete{SandboxStopped: reason})
	d.putIntent(in)
}

func (p *problems) mode(mode string) {
	p.addf(mode == PolicyAllowAll || mode == PolicyDenyAll || mode == PolicyCustom,
		"the network policy's mode must be %s, %s or %s", PolicyAllowAll, PolicyDenyAll, PolicyCustom)
}

func (p *problems) sealedCA(ca []byte) {
	p.addf(len(ca) <= maxSealedCABytes, "the sealed CA has more than %d bytes", maxSealedCABytes)
}

// withoutSecrets is a closed intent as it is kept: answers show the names of injected headers only, and what is not
// kept needs no sealing anew.
func (in Intent) withoutSecrets() Intent {
	in.NetworkPolicy = in.NetworkPolicy.withoutSecrets()
	if in.ResultSandbox != nil {
		sb := *in.ResultSandbox
		sb.CA, sb.NetworkPolicy = nil, sb.NetworkPolicy.withoutSecrets()
		in.ResultSandbox = &sb
	}
	if in.ResultSnapshot != nil {
		sn := *in.ResultSnapshot
		sn.CA, sn.NetworkPolicy = nil, sn.NetworkPolicy.withoutSecrets()
		in.ResultSnapshot = &sn
	}
	return in
}

// withoutSecrets is the policy with empty values in the place of sealed ones.
func (p *NetworkPolicy) withoutSecrets() *NetworkPolicy {
	return p.mapSecrets(func(string) string { return "" })
}

// mapSecrets gives a policy with other header values; p itself, which the state may share, stays as it is.
func (p *NetworkPolicy) mapSecrets(value func(string) string) *NetworkPolicy {
	if p == nil {
		return nil
	}
	out := *p
	out.Transforms = append([]Transform(nil), p.Transforms...)
	for i, t := range out.Transforms {
		headers := maps.Clone(t.InjectHeaders)
		for name, v := range t.InjectHeaders { // each value by itself: the order does not show
			headers[name] = value(v)
		}
		out.Transforms[i].InjectHeaders = headers
	}
	return &out
}

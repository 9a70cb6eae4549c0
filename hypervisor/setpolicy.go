package hypervisor

import (
	"context"
	"errors"

	"stillframe/fsm"
	"stillframe/netpolicy"
)

// replacement is a running sandbox's network policy being replaced. It may be done again from the beginning at any
// time: what the log has as the sandbox's policy until the end is what a start takes up first.
type replacement struct {
	o  *Owner
	in fsm.Intent
	// cutOff: the policy of before is not in force any more, nor is the new one; nothing passes.
	cutOff bool
}

func (o *Owner) planSetPolicy(in fsm.Intent) plan {
	r := &replacement{o: o, in: in}
	return plan{
		undo: r.undo, giveUp: r.giveUp, fill: r.outcome, steps: []step{{StepPolicy, r.apply}, {StepCommit, nil}},
	}
}

// giveUp puts the log's policy in force again: it was closed there as failed, whatever is in force here.
func (r *replacement) giveUp() {
	m, err := r.o.machine(r.in.Sandbox)
	if err != nil {
		return
	}
	m.egress.mu.Lock()
	m.egress.fault = errSuperseded
	m.egress.mu.Unlock()
	r.o.workers.Go(func() { r.o.keepApplying(m) })
}

func (r *replacement) apply(ctx context.Context) error {
	m, err := r.o.machine(r.in.Sandbox)
	if err != nil {
		return err
	}
	policy, err := r.o.openPolicy(r.in.Org, r.in.NetworkPolicy)
	if err != nil {
		return err
	}
	m.egress.mu.Lock()
	defer m.egress.mu.Unlock()
	r.cutOff = m.egress.fault != nil
	if m.egress.net == nil {
		return r.o.noNetworks()
	}
	step, end := r.o.subSteps(r.in)
	err = m.egress.net.Replace(ctx, policy, step)
	end(err)
	if errors.Is(err, netpolicy.ErrCutOff) {
		r.cutOff, m.egress.fault = true, err
	}
	if err == nil {
		m.egress.fault = nil
	}
	return err
}

// outcome says what has become of the sandbox meanwhile.
func (r *replacement) outcome(c *fsm.Complete) {
	if _, err := r.o.machine(r.in.Sandbox); err != nil {
		c.SandboxStopped = vmmNotRunning
	}
}

// undo opens nothing again: where the new policy could not be put in force, it may have been the stricter of the two.
func (r *replacement) undo(_ context.Context, c *fsm.Complete) {
	r.outcome(c)
	switch {
	case c.SandboxStopped != "":
		c.Error = fsm.Errorf(fsm.KindConflict, "the network policy was not replaced: the sandbox has stopped (%s)",
			c.SandboxStopped)
	case r.cutOff:
		c.PolicyFellBack = true
		c.Error = fsm.Errorf(c.Error.Kind, "%s; nothing is let through until a policy is in force", c.Error.Message)
	}
}

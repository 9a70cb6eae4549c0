package hypervisor

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"stillframe/fsm"
	"stillframe/netpolicy"
	"stillframe/netpolicy/policy"
)

// Networks makes and keeps the networks of sandboxes; netpolicy.Manager is one. step is told the name of each step as
// it begins.
type Networks interface {
	Create(ctx context.Context, name string, spec netpolicy.Spec, step func(string)) (*netpolicy.Network, error)
	TakeUp(ctx context.Context, name string, spec netpolicy.Spec) (*netpolicy.Network, error)
	Destroy(ctx context.Context, name string) error
}

// networkSpec is what a sandbox's network is made for, with secrets in clear: it goes to the manager and nowhere else.
func (o *Owner) networkSpec(sb fsm.Sandbox) (netpolicy.Spec, error) {
	spec := netpolicy.Spec{ID: string(sb.ID)}
	// Whatever happens the key is nobody's guess: that of a sandbox of an older version, whose guest trusts no authority,
	// or of one that cannot be opened.
	if _, err := rand.Read(spec.CASeed[:]); err != nil {
		return spec, err
	}
	if len(sb.CA) > 0 {
		if o.cfg.Secrets == nil {
			return spec, errNoSecrets
		}
		seed, err := o.cfg.Secrets.OpenCA(sb.Org, sb.CA)
		if err != nil {
			return spec, err
		}
		spec.CASeed = seed
	}
	var err error
	spec.Policy, err = o.openPolicy(sb.Org, sb.NetworkPolicy)
	return spec, err
}

var errNoSecrets = fsm.Errorf(fsm.KindUnavailable, "this node has no keys to open what the cluster holds sealed")

// openPolicy gives a policy of the log with its header values in clear.
func (o *Owner) openPolicy(org fsm.OrgID, sealed *fsm.NetworkPolicy) (policy.Policy, error) {
	if sealed == nil {
		return policy.AllowAll(), nil
	}
	p := sealed
	if injects(sealed) {
		if o.cfg.Secrets == nil {
			return policy.Policy{}, errNoSecrets
		}
		var err error
		if p, err = o.cfg.Secrets.OpenPolicy(org, sealed); err != nil {
			return policy.Policy{}, err
		}
	}
	out := policy.Policy{Mode: p.Mode, AllowDomains: p.AllowDomains, AllowCIDRs: p.AllowCIDRs}
	for _, t := range p.Transforms {
		out.Transforms = append(out.Transforms, policy.Transform{
			Domain: t.Domain, Inject: t.InjectHeaders, Strip: t.StripHeaders,
		})
	}
	return out, nil
}

func injects(p *fsm.NetworkPolicy) bool {
	for _, t := range p.Transforms {
		if len(t.InjectHeaders) > 0 {
			return true
		}
	}
	return false
}

// subSteps tells the fault points, the metrics and the log of the steps within a step, by the names that they have
// where they are taken. end is called when the last is over.
func (o *Owner) subSteps(in fsm.Intent) (step func(string), end func(error)) {
	var now Step
	var began time.Time
	over := func(err error) {
		if now != "" {
			o.metrics.step(in.Kind, now, time.Since(began), err)
			if err == nil {
				faultPoint(in.Kind, now, "after")
			}
		}
	}
	step = func(name string) {
		over(nil)
		now, began = Step(name), time.Now()
		faultPoint(in.Kind, now, "before")
	}
	return step, over
}

// destroyNetwork removes a sandbox's network, whether or not this process knows it.
func (o *Owner) destroyNetwork(ctx context.Context, id fsm.SandboxID) error {
	var err error
	if o.cfg.Networks != nil {
		err = o.cfg.Networks.Destroy(ctx, namespaceName(id))
	} else {
		err = netpolicy.Destroy(ctx, namespaceName(id))
	}
	if err != nil {
		return fmt.Errorf("remove the network: %w", err)
	}
	return nil
}

// noNetworks is why nothing can be started here.
func (o *Owner) noNetworks() error {
	return fsm.Errorf(fsm.KindUnavailable, "this node cannot enforce network policies: %s", o.cfg.NoNetworks)
}

// takeUpNetwork finds the network of a VM that runs, and puts the policy of the log in force again. Where that fails
// the sandbox reaches nothing until it succeeds: the VM is kept, for what it holds is worth it, and closed is the
// state that harms nobody. Even that may fail; then there is no gate, and the kernel's rules are those that were
// found.
func (o *Owner) takeUpNetwork(ctx context.Context, sb fsm.Sandbox) (*egress, error) {
	e := &egress{}
	ns, err := netpolicy.Open(namespaceName(sb.ID))
	if err != nil {
		return nil, fmt.Errorf("open its namespace: %w", err)
	}
	e.ns = ns
	if o.cfg.Networks == nil {
		e.fault = o.noNetworks()
		o.log.Error("the network policy of a running sandbox is not looked after", "sandbox", sb.ID, "error", e.fault)
		return e, nil
	}
	spec, err := o.networkSpec(sb)
	if e.mendable = err == nil; e.mendable {
		if e.net, err = o.cfg.Networks.TakeUp(ctx, namespaceName(sb.ID), spec); err == nil {
			return e, nil
		}
	}
	e.fault = err
	o.metrics.policyLost.Inc()
	o.log.Error("the network policy of a running sandbox cannot be put in force; it reaches nothing until it can",
		"sandbox", sb.ID, "error", err)
	spec.ID, spec.Policy = string(sb.ID), policy.Policy{Mode: policy.ModeDenyAll}
	if e.net, err = o.cfg.Networks.TakeUp(ctx, namespaceName(sb.ID), spec); err != nil {
		o.log.Error("a sandbox's network could not be closed; it stays as it was found, without a gate", "sandbox", sb.ID,
			"error", err)
	}
	return e, nil
}

// applyPause is between two tries to put a policy in force again.
const applyPause = 5 * time.Second

// keepApplying tries to put the log's policy in force in a sandbox in which it is not, until it is, or another is.
func (o *Owner) keepApplying(m *machine) {
	for {
		done, err := o.applyAgain(m)
		if err != nil {
			o.log.Warn("a sandbox's network policy is not in force yet", "sandbox", m.id, "error", err)
		}
		if done {
			return
		}
		select {
		case <-m.detached:
			return
		case <-m.proc.Exited():
			return
		case <-time.After(applyPause):
		}
	}
}

func (o *Owner) applyAgain(m *machine) (done bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), o.cfg.Deadline)
	defer cancel()
	m.egress.mu.Lock()
	defer m.egress.mu.Unlock()
	// Under the lock: a replacement that succeeds meanwhile is not undone.
	sb, ok := o.cfg.Log.State().Sandbox(m.id)
	if !ok || m.egress.fault == nil {
		return true, nil
	}
	spec, err := o.networkSpec(sb)
	if err != nil {
		return false, err
	}
	if m.egress.net == nil {
		m.egress.net, err = o.cfg.Networks.TakeUp(ctx, namespaceName(m.id), spec)
	} else {
		err = m.egress.net.Replace(ctx, spec.Policy, func(string) {})
	}
	if err != nil {
		return false, err
	}
	m.egress.fault = nil
	o.log.Info("a sandbox's network policy is in force again", "sandbox", m.id)
	return true, nil
}

// egress is the network of a running sandbox.
type egress struct {
	ns *netpolicy.Namespace

	mu    sync.Mutex // held while the policy is replaced
	net   *netpolicy.Network
	fault error // why the policy in force is not the log's; nil: it is
	// mendable: what the policy needs is there, so that a later try may succeed. It is set when the network is taken up.
	mendable bool
}

// get gives the network, or says why there is none whose word counts.
func (e *egress) get() (*netpolicy.Network, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.fault != nil:
		return nil, fsm.Wrap(fsm.KindUnavailable, e.fault,
			"the sandbox's network policy could not be put in force again, and nothing is let through until it is replaced")
	case e.net == nil:
		return nil, errors.New("no network")
	}
	return e.net, nil
}

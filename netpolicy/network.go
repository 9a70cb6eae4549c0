package netpolicy

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"stillframe/netpolicy/gate"
	"stillframe/netpolicy/policy"
)

// Spec is what a sandbox's network is made for.
type Spec struct {
	ID     string // the sandbox's, for the gate's log
	Policy policy.Policy
	// CASeed is that of the authority which transforms sign with. With none, which is all zero, there are no transforms.
	CASeed [32]byte
}

// Names of the steps, in order. They are the same in logs, metrics and the tests that kill the process at each.
const (
	StepNamespace = "net-namespace" // a closed namespace gets the sandbox's name
	StepRules     = "net-rules"     // the policy's rules are written
	StepListen    = "net-listen"    // the gate's sockets are opened inside
	StepVerify    = "net-verify"    // the rules are read back and compared
	StepRaise     = "net-raise"     // links come up

	StepTighten = "policy-tighten" // the kernel carries only what both policies allow
	StepGate    = "policy-gate"    // the gate decides by the new one
	StepCut     = "policy-cut"     // connections that it does not allow are ended
	StepLoosen  = "policy-loosen"  // the kernel carries what the new one allows
)

// CreateSteps are those of Create, ReplaceSteps those of Replace.
var (
	CreateSteps  = []string{StepNamespace, StepRules, StepListen, StepVerify, StepRaise}
	ReplaceSteps = []string{StepTighten, StepGate, StepCut, StepLoosen}
)

// undoDeadline bounds removing what a failed call has made.
const undoDeadline = 30 * time.Second

// Network is one sandbox's: its namespace, its rules, its sockets at the gate. It is safe for concurrent use.
type Network struct {
	m       *Manager
	ns      *Namespace
	id      string
	ca      *gate.CA // nil if there is none
	session Session

	mu       sync.Mutex // held while the network is changed or looked after
	policies []forwarding
	plan     *policy.Plan
	floor    *policy.Floor // that the plan stands on
	written  string        // what the filter table was last written from
	seen     uint32        // generation of the rule set that was last found right; zero for none
	before   uint32        // that which was found right before the filter table was written, until it has been read back
	sealed   bool          // nothing passes, because what should be in force could not be put in force
	released bool
	watch    *watch
}

// Namespace is where the VMM is started and the agent is dialled from.
func (n *Network) Namespace() *Namespace { return n.ns }

// Log gives the gate's last decisions, the latest first; all that it keeps for a limit of zero.
func (n *Network) Log(limit int) []gate.Decision { return n.session.Log(limit) }

// Check says what the gate would decide.
func (n *Network) Check(ctx context.Context, host string, port uint16) gate.Decision {
	return n.session.Check(ctx, host, port)
}

// CACertPEM is the certificate that the guest must trust for transforms to work; nil if there is none.
func (n *Network) CACertPEM() []byte {
	if n.ca == nil {
		return nil
	}
	return n.ca.CertPEM()
}

// Create makes a network of that name in which the policy is in force before anything can pass. One of that name that
// nothing uses is destroyed first. On an error there is no such network. step is told each of CreateSteps as it begins.
func (m *Manager) Create(ctx context.Context, name string, spec Spec, step func(string)) (_ *Network, err error) {
	ns, err := named(name)
	if err != nil {
		return nil, err
	}
	n, err := m.network(ns, spec)
	if err != nil {
		return nil, err
	}
	if err := m.vacate(ctx, ns); err != nil {
		return nil, fmt.Errorf("network %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("network %s: %w", name, err), n.undo())
		}
	}()
	step(StepNamespace)
	if n.seen, err = m.pool.take(ctx, ns); err != nil {
		return nil, err
	}
	step(StepRules)
	if n.policies[0].opens() { // the rules of those that do not are already there
		if err := n.restoreFilter(ctx); err != nil {
			return nil, err
		}
	}
	step(StepListen)
	if err := n.open(ctx); err != nil {
		return nil, err
	}
	step(StepVerify)
	if err := n.verify(ctx); err != nil {
		return nil, err
	}
	step(StepRaise)
	if err := m.kernel.raise(ns); err != nil {
		return nil, err
	}
	return n, m.keep(n)
}

// TakeUp finds a network that an earlier process made, and mends what is not as it should be. Connections that only the
// kernel carries and that the policy allows are not touched. On an error the network stays as it is found, which is
// never more open than it was.
func (m *Manager) TakeUp(ctx context.Context, name string, spec Spec) (_ *Network, err error) {
	if _, ok := m.Network(name); ok {
		return nil, fmt.Errorf("network %s is in use by this process", name)
	}
	ns, err := Open(name)
	if err != nil {
		return nil, err
	}
	n, err := m.network(ns, spec)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("take up network %s: %w", name, err), n.release())
		}
	}()
	if _, err := n.mend(ctx); err != nil {
		return nil, err
	}
	if err := n.open(ctx); err != nil {
		return nil, err
	}
	return n, m.keep(n)
}

// network is one of which nothing has been made yet.
func (m *Manager) network(ns *Namespace, spec Spec) (*Network, error) {
	plan, err := policy.Compile(spec.Policy)
	if err != nil {
		return nil, err
	}
	floor := m.floor.Load()
	n := &Network{
		m: m, ns: ns, id: spec.ID, plan: plan, floor: floor, policies: []forwarding{forwardingOf(plan, *floor)},
	}
	if spec.CASeed != ([32]byte{}) {
		if n.ca, err = gate.CAFromSeed(spec.CASeed); err != nil {
			return nil, fmt.Errorf("certificate authority: %w", err)
		}
	}
	return n, n.mayHave(plan)
}

// mayHave refuses a plan that would need an authority where there is none.
func (n *Network) mayHave(plan *policy.Plan) error {
	if n.ca == nil && plan.Transforms() {
		return errors.New("transforms need a certificate authority, and the sandbox has none")
	}
	return nil
}

// vacate makes sure that nothing has the name.
func (m *Manager) vacate(ctx context.Context, ns *Namespace) error {
	if n, ok := m.Network(ns.name); ok {
		used, err := ns.inUse()
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		if used {
			return ErrInUse
		}
		if err := n.release(); err != nil {
			return err
		}
	}
	return ns.clear(ctx)
}

// open binds the listeners and hands them to the gate.
func (n *Network) open(ctx context.Context) error {
	sb, err := listen(ctx, n.ns)
	if err != nil {
		return err
	}
	sb.ID, sb.CA, sb.Plan = n.id, n.ca, n.plan
	n.session, err = n.m.cfg.Gate.Open(sb)
	if err != nil {
		return errors.Join(fmt.Errorf("open at the gate: %w", err), sb.TCP.Close(), sb.DNSTCP.Close(), sb.UDP.Close())
	}
	return nil
}

// keep enters a network that is complete, and has it looked after.
func (m *Manager) keep(n *Network) error {
	w, err := newWatch(n.ns)
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.watch = w
	n.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.networks[n.ns.name] = n
	m.metrics.networks.Set(float64(len(m.networks)))
	w.start(func() { m.changed.add(n) })
	return nil
}

// release closes the sockets and forgets the network. The namespace stays as it is.
func (n *Network) release() error {
	n.m.mu.Lock()
	if n.m.networks[n.ns.name] == n {
		delete(n.m.networks, n.ns.name)
	}
	n.m.metrics.networks.Set(float64(len(n.m.networks)))
	n.m.mu.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.released {
		return nil
	}
	n.released = true
	n.watch.stop()
	if n.session == nil {
		return nil
	}
	return n.session.Close()
}

// undo removes what Create has made.
func (n *Network) undo() error {
	ctx, cancel := context.WithTimeout(context.Background(), undoDeadline)
	defer cancel()
	return errors.Join(n.release(), Destroy(ctx, n.ns.name))
}

func compareNames(a, b string) int { return strings.Compare(a, b) }

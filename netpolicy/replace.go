package netpolicy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"stillframe/netpolicy/policy"
)

// ErrCutOff says that a policy could not be put in force, and that the sandbox reaches nothing until one can.
var ErrCutOff = errors.New("the sandbox is cut off")

// Replace puts another policy in force. When it returns without an error, the new one alone is in force, and no
// connection is left that it does not allow. While it runs, nothing passes that either of the two denies to the kernel,
// and what was opened before the gate has changed its mind is cut after. On an error nothing passes at all: ErrCutOff;
// unless it could not be a policy of this network at all, which changes nothing. step is told each of ReplaceSteps as
// it begins.
//
// Once begun it goes on when ctx ends, because half a policy is none.
func (n *Network) Replace(ctx context.Context, p policy.Policy, step func(string)) error {
	plan, err := policy.Compile(p)
	if err != nil {
		return err
	}
	if err := errors.Join(ctx.Err(), n.mayHave(plan)); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.released {
		return fmt.Errorf("network %s: %w", n.ns.name, ErrNotFound)
	}
	if err := n.replace(ctx, plan, step); err != nil {
		return errors.Join(fmt.Errorf("policy of network %s: %w: %w", n.ns.name, ErrCutOff, err), n.denyAll(ctx))
	}
	return nil
}

func (n *Network) replace(ctx context.Context, plan *policy.Plan, step func(string)) error {
	floor := n.m.floor.Load()
	next := forwardingOf(plan, *floor)
	loosens := !n.onlyLoosenedBy(next)
	step(StepTighten)
	if loosens {
		if err := n.tighten(ctx, next); err != nil {
			return err
		}
	}
	step(StepGate)
	n.plan = plan
	if err := n.session.Replace(plan); err != nil {
		return err
	}
	step(StepCut)
	n.session.Cut()
	if err := n.flush(next); err != nil {
		return err
	}
	step(StepLoosen)
	if err := n.enforce(ctx, next); err != nil {
		return err
	}
	n.floor = floor
	return nil
}

// onlyLoosenedBy tells whether all that the kernel carries now is carried under next too.
func (n *Network) onlyLoosenedBy(next forwarding) bool {
	for _, p := range n.policies {
		if p.within(next) {
			return true
		}
	}
	return false
}

// tighten has the kernel carry only what next allows, of what it carries now.
func (n *Network) tighten(ctx context.Context, next forwarding) error {
	for _, p := range n.policies {
		if next.within(p) {
			return n.enforce(ctx, next)
		}
	}
	return n.enforce(ctx, append([]forwarding{next}, n.policies...)...)
}

// enforce makes the rules of policies the ones in force, and reads them back.
func (n *Network) enforce(ctx context.Context, policies ...forwarding) error {
	n.policies = policies
	if n.seen != 0 && n.sameRules(policies) {
		return n.verify(ctx)
	}
	if err := n.restoreFilter(ctx); err != nil {
		return err
	}
	return n.verify(ctx)
}

// denyAll has nothing pass. If the rules cannot be written, the way to the host is taken down.
func (n *Network) denyAll(ctx context.Context) error {
	n.plan = nil
	closed := n.session.Replace(nil)
	if closed != nil { // then it lets nothing in, and must let go of what is open
		closed = errors.Join(closed, n.session.Close())
	}
	n.session.Cut()
	err := errors.Join(n.enforce(ctx, nil), n.flush(nil))
	if err != nil {
		return errors.Join(closed, err, n.seal())
	}
	return closed
}

// seal takes down the only way that packets could leave the namespace by.
func (n *Network) seal() error {
	n.sealed = true
	n.seen = 0
	err := n.ns.Do(func() error {
		link, err := netlink.LinkByName(UplinkName)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(link)
	})
	if err != nil {
		return fmt.Errorf("take down the way out of %s: %w", n.ns.name, err)
	}
	return nil
}

// flush removes from the connection table what the kernel carries and f does not allow. Connections that end at the
// gate are left to it: without their entries it could not even tell the guest that they are over.
func (n *Network) flush(f forwarding) error {
	err := n.ns.Do(func() error {
		var err error
		for range 5 { // a table that changes while it is listed is listed again
			_, err = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, notAllowed{f})
			if !errors.Is(err, netlink.ErrDumpInterrupted) {
				return err
			}
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("flush connections of %s: %w", n.ns.name, err)
	}
	return nil
}

// notAllowed picks the entries of connections that the kernel carries against a policy.
type notAllowed struct{ policy forwarding }

var hostAddr = netip.MustParseAddr(HostIP)

// MatchConntrackFlow is part of the interface of the netlink library.
func (f notAllowed) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	answers, _ := netip.AddrFromSlice(flow.Reverse.SrcIP)
	if answers.Unmap() == hostAddr {
		return false
	}
	to, ok := netip.AddrFromSlice(flow.Forward.DstIP)
	return !ok || !f.policy.allows(to.Unmap())
}

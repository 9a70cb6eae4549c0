package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"stillframe/fsm"
	"stillframe/netpolicy"
)

// Step names one step of an intent. The same names stand in code, logs, metrics and crash tests.
type Step string

// The steps, in the order in which each kind of intent takes them (see Steps).
const (
	StepFetch      Step = "fetch"       // the snapshot's files brought to this node, where another holds them
	StepReserve    Step = "reserve"     // make the sandbox's folder, check space
	StepNetwork    Step = "network"     // namespace, the policy in force, links; its own steps are the manager's
	StepDisk       Step = "disk"        // the sandbox's own writable disk
	StepMemory     Step = "memory"      // the sandbox's own RAM file
	StepVMMStart   Step = "vmm-start"   // the VMM process
	StepVMCreate   Step = "vm-create"   // configuration handed to the VMM
	StepVMBoot     Step = "vm-boot"     // the guest's kernel starts
	StepVMRestore  Step = "vm-restore"  // device state loaded, VM paused
	StepVMResume   Step = "vm-resume"   // restored VM runs
	StepGuestReady Step = "guest-ready" // the agent answers
	StepIdentity   Step = "identity"    // clock, random seed, identity
	StepCommit     Step = "commit"      // outcome proposed

	StepPrepare    Step = "prepare"     // the snapshot's temporary folder, check space
	StepAhead      Step = "ahead"       // flush or copy ahead while the guest runs
	StepPause      Step = "pause"       // the guest stands still from here
	StepVMSnapshot Step = "vm-snapshot" // device state written
	StepCapture    Step = "capture"     // RAM and disk cloned
	StepResume     Step = "resume"      // the guest runs again
	StepClock      Step = "clock"       // the source's wall clock catches up
	StepVerify     Step = "verify"      // device state parsed again
	StepDigest     Step = "digest"      // RAM and disk digested
	StepPublish    Step = "publish"     // manifest, sync, rename

	StepPolicy Step = "policy" // another network policy in force; its own steps are the manager's

	StepStop   Step = "stop"   // the VMM process ended
	StepUnlink Step = "unlink" // namespace removed
	StepRemove Step = "remove" // files removed
)

// Steps lists, for every kind of intent, its steps in order, those within a step behind it. Crash tests enumerate it.
var Steps = map[fsm.IntentKind][]Step{
	fsm.IntentCreate: within(netpolicy.CreateSteps,
		StepReserve, StepNetwork, StepDisk, StepMemory, StepVMMStart, StepVMCreate, StepVMBoot,
		StepGuestReady, StepIdentity, StepCommit,
	),
	fsm.IntentRestore: within(netpolicy.CreateSteps,
		StepFetch, StepReserve, StepNetwork, StepDisk, StepMemory, StepVMMStart, StepVMRestore, StepVMResume,
		StepGuestReady, StepIdentity, StepCommit,
	),
	fsm.IntentSnapshot: {
		StepPrepare, StepAhead, StepPause, StepVMSnapshot, StepCapture, StepResume, StepClock,
		StepVerify, StepDigest, StepPublish, StepCommit,
	},
	fsm.IntentDelete:         {StepStop, StepUnlink, StepRemove, StepCommit},
	fsm.IntentDeleteSnapshot: {StepRemove, StepCommit},
	fsm.IntentSetPolicy:      within(netpolicy.ReplaceSteps, StepPolicy, StepCommit),
}

// within puts the steps that the network's manager takes behind the step that it takes them in.
func within(subs []string, steps ...Step) []Step {
	var all []Step
	for _, s := range steps {
		all = append(all, s)
		if s == StepNetwork || s == StepPolicy {
			for _, sub := range subs {
				all = append(all, Step(sub))
			}
		}
	}
	return all
}

// step is one entry of a running plan.
type step struct {
	name Step
	do   func(context.Context) error
}

// stepError says which step failed.
type stepError struct {
	step Step
	err  error
}

func (e *stepError) Error() string { return fmt.Sprintf("step %s: %v", e.step, e.err) }
func (e *stepError) Unwrap() error { return e.err }

// failedStep names the step that an error comes from, for people.
func failedStep(err error) string {
	var e *stepError
	if errors.As(err, &e) {
		return "step " + string(e.step)
	}
	return "planning"
}

// deadline bounds steps together, from the first one that it is asked for.
type deadline struct {
	parent context.Context
	after  time.Duration
	ctx    context.Context
	cancel context.CancelFunc
}

func (d *deadline) context() context.Context {
	if d.ctx == nil {
		d.ctx, d.cancel = context.WithTimeout(d.parent, d.after)
	}
	return d.ctx
}

func (d *deadline) end() {
	if d.cancel != nil {
		d.cancel()
	}
}

// takeStep takes the next step of a course. limited bounds every step but two. The commit it does not: the work is done
// then, and to give up on an outcome that may be in the log already, and undo the work, would leave the log speaking of
// what is not there. Nor a fetch, which takes as long as the data needs and ends by itself when the connection stalls;
// the deadline begins after it. The error names the step.
func (o *Owner) takeStep(ctx context.Context, limited *deadline, in fsm.Intent, p plan, c course) (course, error) {
	s := p.steps[c.at]
	if s.name == StepCommit {
		return o.commit(ctx, in, p, c)
	}
	bound := limited.parent
	if s.name != StepFetch {
		bound = limited.context()
	}
	err := o.runStep(bound, in, s)
	if err != nil && errors.Is(context.Cause(limited.parent), errSuperseded) {
		return c.superseded(), errSuperseded
	}
	return c.stepped(err == nil), err
}

// commit is the last step of every plan: the outcome enters the log.
func (o *Owner) commit(ctx context.Context, in fsm.Intent, p plan, c course) (course, error) {
	if !o.mayCommit(in.ID) {
		return c.superseded(), errSuperseded
	}
	v := verdictAgain
	err := o.runStep(ctx, in, step{StepCommit, func(ctx context.Context) (err error) {
		outcome := fsm.Complete{Intent: in.ID, Owner: in.Owner, Epoch: in.Epoch}
		if p.fill != nil {
			p.fill(&outcome)
		}
		if v, err = o.complete(ctx, in, outcome); v == verdictSettled {
			return nil
		}
		return err
	}})
	return c.committed(v), err
}

func (o *Owner) runStep(ctx context.Context, in fsm.Intent, s step) error {
	faultPoint(in.Kind, s.name, "before")
	began := time.Now()
	err := ctx.Err()
	if err == nil {
		err = s.do(ctx)
	}
	took := time.Since(began)
	o.metrics.step(in.Kind, s.name, took, err)
	log := o.log.With("intent", in.ID, "kind", in.Kind, "step", s.name, "took", took)
	if err != nil {
		log.LogAttrs(ctx, slog.LevelWarn, "step failed", slog.Any("error", err))
		return &stepError{s.name, err}
	}
	log.LogAttrs(ctx, slog.LevelDebug, "step done")
	faultPoint(in.Kind, s.name, "after")
	return nil
}

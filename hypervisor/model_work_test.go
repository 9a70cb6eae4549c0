package hypervisor

import (
	"stillframe/fsm"
)

// startMoves has a node begin the intents that it sees open.
func (e *explorer) startMoves(w world, n int, out emit) {
	h := w.nodes[n]
	state := e.logs.states[h.view]
	busy := map[fsm.IntentID]fsm.Intent{}
	for i, work := range h.work {
		if work.active {
			busy[intentNo(i)] = e.intent(&w, n, i)
		}
	}
	start := startable(state.OpenIntents(nodeID(n)), busy)
	for _, in := range start {
		next := w
		e.begin(&next, n, in, state)
		out(next, say("node %d begins %s, an intent to %s", n, in.ID, in.Kind), "")
	}
}

// begin gives an intent a worker, with a plan by what is there.
func (e *explorer) begin(w *world, n int, in fsm.Intent, state *fsm.State) {
	h := &w.nodes[n]
	work := worker{active: true, epoch: uint8(in.Epoch)}
	if in.Kind == fsm.IntentSnapshot {
		d := h.snapshots[number(in.Snapshot)]
		switch {
		case d.final:
			work.begin = fromPublished
		case d.tmp:
			work.begin = fromBegun
		}
	}
	if sn, ok := state.Snapshot(e.source(state, in)); in.Kind == fsm.IntentRestore && (!ok || sn.Manifest == nil) {
		work.begin = withoutPlan
	}
	c := newCourse(e.steps(in.Kind, work.begin))
	work.at, work.next = uint8(c.at), c.next
	h.work[number(in.ID)] = work
}

func (e *explorer) source(state *fsm.State, in fsm.Intent) fsm.SnapshotID {
	sb, _ := state.Sandbox(in.Sandbox)
	return sb.Snapshot
}

// steps are a plan's, by the code that a node plans with.
func (e *explorer) steps(kind fsm.IntentKind, begin uint8) []Step {
	switch {
	case begin == withoutPlan:
		return nil
	case kind != fsm.IntentSnapshot:
		return Steps[kind]
	case begin == fromPublished && e.bug == "no second sync":
		return []Step{StepCommit}
	case begin == fromBegun && e.bug == "no instant":
		return Steps[kind][8:]
	}
	return snapshotSteps(begin == fromPublished, begin == fromBegun)
}

// intent is what a worker remembers of its intent.
func (e *explorer) intent(w *world, n, i int) fsm.Intent {
	in := fsm.Intent{ID: intentNo(i), Owner: nodeID(n), Epoch: uint64(w.nodes[n].work[i].epoch)}
	opNo, try := i%(maxOps*maxTries)/maxTries, i%maxTries
	thing := int(w.about(e, opNo, try))
	if i >= maxOps*maxTries {
		in.Kind, in.Sandbox = fsm.IntentDelete, sandboxNo(thing)
		return in
	}
	in.Kind, in.KillAfter = e.scenario.ops[opNo].kind, e.scenario.ops[opNo].killAfter
	switch in.Kind {
	case fsm.IntentDeleteSnapshot:
		in.Snapshot = snapshotNo(thing)
	case fsm.IntentSnapshot:
		in.Sandbox, in.Snapshot = sandboxNo(thing), snapshotNo(i)
	default:
		in.Sandbox = sandboxNo(thing)
	}
	return in
}

// workMoves has a worker do what its course says is next.
func (e *explorer) workMoves(w world, n, i int, out emit) {
	in, work := e.intent(&w, n, i), w.nodes[n].work[i]
	c := course{steps: e.steps(in.Kind, work.begin), at: int(work.at), next: work.next, over: work.over}
	e.obeyMoves(w, n, i, in, c, out)
	how := say("node %d, %s", n, in.ID)
	switch {
	case c.next == moveUndo:
		next := w
		stopped := e.undo(&next, n, in)
		next.nodes[n].work[i].half = stopped // remembered for the report
		next.set(n, i, c.undone())
		out(next, how.and(" is undone"), "")
	case c.next == moveReport:
		p := proposal{what: outcome, n: uint8(i), node: uint8(n), epoch: work.epoch, failed: true, stopped: work.half}
		e.propose(w, n, p, how.and(" is reported as failed"), func(next *world, _ answer, err error) {
			next.set(n, i, c.reported(e.judge(next, n, in, p, err)))
		}, out)
	case c.step() == StepCommit:
		p := proposal{what: outcome, n: uint8(i), node: uint8(n), epoch: work.epoch}
		p.stopped = in.Kind == fsm.IntentSnapshot && w.nodes[n].machines[number(in.Sandbox)] == noMachine
		w.nodes[n].work[i].proposed = true
		e.propose(w, n, p, how.and(" is committed"), func(next *world, _ answer, err error) {
			next.set(n, i, c.committed(e.judge(next, n, in, p, err)))
		}, out)
	default:
		if w.left.failures > 0 {
			next := w
			next.left.failures--
			next.nodes[n].work[i].half = false
			next.set(n, i, c.stepped(false))
			out(next, how.and(": %s fails", c.step()), "")
		}
		next := w
		ok, whole := e.take(&next, n, i, in, c.step())
		if whole {
			next.nodes[n].work[i].half = false
			next.set(n, i, c.stepped(ok))
		} else {
			next.nodes[n].work[i].half = true
		}
		out(next, how.and(": %s: %t", c.step(), ok), "")
	}
}

// obeyMoves has a worker hear that its intent is closed without it, before it has proposed anything. A deletion goes
// on.
func (e *explorer) obeyMoves(w world, n, i int, in fsm.Intent, c course, out emit) {
	state := e.logs.states[w.nodes[n].view]
	now, ok := state.Intent(in.ID)
	against := closedWithout(state, in)
	if e.bug == "no second look" {
		against = !ok || now.State != fsm.IntentOpen
	}
	if c.next != moveStep || w.nodes[n].work[i].proposed || in.Kind == fsm.IntentDelete ||
		in.Kind == fsm.IntentDeleteSnapshot || !against {
		return
	}
	next := w
	next.nodes[n].work[i].half = false
	next.set(n, i, c.superseded())
	out(next, say("node %d hears that %s is closed", n, in.ID), "")
}

// judge is what the owner makes of the log's answer, by its own view.
func (e *explorer) judge(w *world, n int, in fsm.Intent, p proposal, err error) verdict {
	state := e.logs.states[w.nodes[n].view]
	var reason *fsm.Error
	if p.failed {
		reason = fsm.Errorf(fsm.KindUnavailable, "no")
	}
	v := judge(state, in, fsm.Complete{Intent: in.ID, Error: reason}, err)
	if _, known := state.Intent(in.ID); e.bug == "no memory" && !known && err != nil && v == verdictSettled {
		v = verdictOver
	}
	if e.bug == "no doubt" && v == verdictAgain {
		v = verdictOver
	}
	return v
}

// set writes a course back into its worker, past the steps that leave nothing behind.
func (w *world) set(n, i int, c course) {
	for c.next == moveStep && !effective[c.step()] {
		c = c.stepped(true)
	}
	work := &w.nodes[n].work[i]
	if c.next == moveEnd {
		*work = worker{}
		return
	}
	work.at, work.next, work.over = uint8(c.at), c.next, c.over
}

// effective are the steps that change what a crash leaves behind, as far as the model tells it apart. Dying in one of
// the others is dying before the next.
var effective = map[Step]bool{
	StepReserve: true, StepMemory: true, StepVMBoot: true, StepVMRestore: true, StepVMResume: true, StepPrepare: true,
	StepPause: true, StepVMSnapshot: true, StepCapture: true, StepResume: true, StepPublish: true, StepStop: true,
	StepRemove: true, StepCommit: true, StepGuestReady: true,
}

// take does a step to the files and machines of a node. whole false: it has come half way.
func (e *explorer) take(w *world, n, i int, in fsm.Intent, s Step) (ok, whole bool) {
	h := &w.nodes[n]
	if in.Kind == fsm.IntentDeleteSnapshot {
		h.snapshots[number(in.Snapshot)].final, h.snapshots[number(in.Snapshot)].tmp = false, false
		return true, true
	}
	m := &h.machines[number(in.Sandbox)]
	switch s {
	case StepReserve:
		*m, h.folders[number(in.Sandbox)] = noMachine, true
	case StepMemory:
		if in.Kind == fsm.IntentRestore {
			sn := e.source(e.logs.states[h.view], in)
			return sn != "" && h.snapshots[number(sn)].final, true
		}
	case StepVMBoot:
		*m, h.attached[number(in.Sandbox)] = machineRuns, true
	case StepVMRestore:
		*m, h.attached[number(in.Sandbox)] = machinePaused, true
	case StepVMResume, StepResume:
		ok := *m == machinePaused
		if ok {
			*m = machineRuns
		}
		return ok, true
	case StepGuestReady:
		return *m == machineRuns, true
	case StepStop:
		*m, h.attached[number(in.Sandbox)] = noMachine, false
	case StepRemove:
		h.folders[number(in.Sandbox)] = false
	default:
		return e.takeSnapshotStep(h, in, m, h.work[i], s)
	}
	return true, true
}

func (e *explorer) takeSnapshotStep(h *host, in fsm.Intent, m *machineState, work worker, s Step) (ok, whole bool) {
	d := &h.snapshots[number(in.Snapshot)]
	switch s {
	case StepPrepare:
		if d.tmp || *m == noMachine {
			return false, true
		}
		d.tmp, d.torn = true, true
	case StepPause:
		if *m != machineRuns {
			return false, true
		}
		*m = machinePaused
	case StepVMSnapshot:
		return *m == machinePaused, true
	case StepCapture:
		d.torn = *m != machinePaused
	case StepPublish:
		if work.begin != fromPublished && !work.half {
			d.tmp, d.final = false, true
			return true, e.bug == "no fsync"
		}
		d.named = true
	}
	return true, true
}

// undo takes back what an intent has made, and tells whether a snapshot's source has ended.
func (e *explorer) undo(w *world, n int, in fsm.Intent) (stopped bool) {
	h := &w.nodes[n]
	switch in.Kind {
	case fsm.IntentCreate, fsm.IntentRestore:
		s := number(in.Sandbox)
		h.machines[s], h.attached[s], h.folders[s] = noMachine, false, false
	case fsm.IntentSnapshot:
		d, m := &h.snapshots[number(in.Snapshot)], &h.machines[number(in.Sandbox)]
		d.tmp, d.final = false, false
		if *m == machinePaused && e.bug != "no resume" {
			*m = machineRuns
		}
		return *m == noMachine
	}
	return false
}

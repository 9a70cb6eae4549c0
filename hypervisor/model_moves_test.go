package hypervisor

import (
	"fmt"

	"stillframe/fsm"
)

// emit takes a world that can come next, how, and what is broken about the way there.
type emit func(next world, how saying, broken string)

// saying is what a move is called, in words that are put together only where somebody reads them.
type saying struct {
	format string
	args   []any
}

func say(format string, args ...any) saying { return saying{format, args} }

func (s saying) and(format string, args ...any) saying {
	return saying{s.format + format, append(s.args[:len(s.args):len(s.args)], args...)}
}

func (s saying) String() string { return fmt.Sprintf(s.format, s.args...) }

// said is the log's answer in words.
func said(err *fsm.Error) string {
	if err == nil {
		return "done"
	}
	return err.Message
}

// successors gives every world that can come next.
func (e *explorer) successors(w world, out emit) {
	for i := range e.scenario.ops {
		e.clientMoves(w, i, out)
	}
	for n := range w.nodes {
		e.nodeMoves(w, n, out)
	}
	e.lateMoves(w, out)
	e.leaderMoves(w, out)
}

func (e *explorer) clientMoves(w world, i int, out emit) {
	o, c := e.scenario.ops[i], &w.clients[i]
	switch {
	case c.phase == waiting:
		e.awaitMoves(w, i, out)
	case c.phase == idle && (o.after == 0 || w.clients[o.after-1].phase == succeeded),
		c.phase > waiting && o.key && c.tries < maxTries && !w.forgot:
		p := proposal{what: ask, n: uint8(i), try: c.tries, thing: w.about(e, i, int(c.tries))}
		next := w
		next.clients[i].tries++
		if next.left.losses > 0 && next.late.what == nothing {
			lostWorld := next
			lostWorld.left.losses--
			lostWorld.late, lostWorld.clients[i].phase = p, unsure
			out(lostWorld, say("client %d asks and hears nothing", i), "")
		}
		res := e.apply(&next, p).res
		broken := next.answered(i, res)
		out(next, say("client %d asks: %s", i, said(res.Err)), broken)
	}
}

// answered notes the log's answer to a client's request.
func (w *world) answered(i int, res fsm.Result) (broken string) {
	c := &w.clients[i]
	if res.Err != nil && res.Err.Kind == fsm.KindUnavailable {
		c.phase = unsure // not now, which is no answer to remember
		return ""
	}
	if c.sure != idle && (res.Err == nil) == (c.sure == refused) {
		broken = fmt.Sprintf("two answers under one key: %d and %v", c.sure, res.Err)
	}
	if res.Err != nil {
		c.phase, c.sure = refused, refused
		return broken
	}
	n := uint8(number(res.Intent.ID))
	if c.sure != idle && c.intent != n {
		broken = fmt.Sprintf("two intents under one key: %d and %d", c.intent, n)
	}
	c.intent, c.phase = n, waiting
	return broken
}

// awaitMoves has a client see its intent closed, or lose its connection.
func (e *explorer) awaitMoves(w world, i int, out emit) {
	c := w.clients[i]
	in, ok := e.logs.states[w.log].Intent(intentNo(int(c.intent)))
	if w.left.losses > 0 {
		next := w
		next.left.losses--
		next.clients[i].phase = unsure
		out(next, say("client %d loses its connection", i), "")
	}
	next := w
	nc := &next.clients[i]
	switch {
	case !ok:
		nc.phase = unsure
	case in.State == fsm.IntentOpen:
		return
	case in.State == fsm.IntentDone:
		nc.phase = succeeded
	default:
		nc.phase = failed
	}
	broken := ""
	if nc.phase != unsure {
		if c.sure != idle && c.sure != nc.phase {
			broken = fmt.Sprintf("two answers under one key: %d and %d", c.sure, nc.phase)
		}
		nc.sure = nc.phase
	}
	out(next, say("client %d is answered: %s", i, in.State), broken)
}

// lateMoves has the entry that nobody waits for come into the log, or not.
func (e *explorer) lateMoves(w world, out emit) {
	if w.late.what == nothing {
		return
	}
	dropped := w
	dropped.late = proposal{}
	out(dropped, say("the late entry is lost"), "")
	applied := dropped
	e.apply(&applied, w.late)
	out(applied, say("the late entry is applied: %+v", w.late), "")
}

// leaderMoves has the leader give up on owners, and time pass.
func (e *explorer) leaderMoves(w world, out emit) {
	if w.left.forgets > 0 {
		next := w
		next.left.forgets--
		next.forgot = true
		e.apply(&next, proposal{what: forget})
		out(next, say("ten minutes pass"), "")
	}
	for n := range w.nodes {
		self, _ := e.logs.states[w.log].Node(nodeID(n))
		p := proposal{what: mark, node: uint8(n), epoch: uint8(self.Epoch), failed: !self.Lost()}
		next := w
		switch {
		case self.Lost():
			e.apply(&next, p)
			out(next, say("the leader hears of node %d again", n), "")
		case w.left.giveUps > 0:
			next.left.giveUps--
			e.apply(&next, p)
			out(next, say("the leader gives up node %d for lost", n), "")
		}
	}
}

func (e *explorer) nodeMoves(w world, n int, out emit) {
	h := w.nodes[n]
	e.accidents(w, n, out)
	if h.life != down && h.view != w.log {
		next := w
		next.nodes[n].view = w.log
		out(next, say("node %d sees the log", n), "")
	}
	switch h.life {
	case down:
		next := w
		nh := &next.nodes[n]
		nh.life, nh.at, nh.view, nh.found = takingUp, 0, w.log, w.log
		self, _ := e.logs.states[w.log].Node(nodeID(n))
		nh.seen = uint8(self.Epoch)
		out(next, say("node %d starts", n), "")
	case takingUp:
		e.takeUpMove(w, n, out)
	case up:
		e.startMoves(w, n, out)
		for i := range h.work {
			if h.work[i].active {
				e.workMoves(w, n, i, out)
			}
		}
		e.watchMoves(w, n, out)
		e.comeBackMoves(w, n, out)
	}
}

// accidents are what happens to a node from outside.
func (e *explorer) accidents(w world, n int, out emit) {
	h := w.nodes[n]
	if h.life != down && w.left.crashes > 0 {
		next := w
		next.left.crashes--
		nh := &next.nodes[n]
		nh.life, nh.at, nh.work = down, 0, [maxIntents]worker{}
		nh.ended, nh.attached = [maxSandboxes]bool{}, [maxSandboxes]bool{}
		out(next, say("the daemon of node %d is killed", n), "")
	}
	if w.left.cuts > 0 {
		next := w
		next.left.cuts--
		nh := &next.nodes[n]
		nh.life, nh.at, nh.work, nh.machines = down, 0, [maxIntents]worker{}, [maxSandboxes]machineState{}
		nh.ended, nh.attached = [maxSandboxes]bool{}, [maxSandboxes]bool{}
		for i := range nh.snapshots {
			d := &nh.snapshots[i]
			// What is on the disk decides, not what was last seen: a name may be missing, or be back.
			d.tmp, d.final = d.tmp || (d.final && !d.named), d.named
		}
		out(next, say("node %d loses power", n), "")
	}
	for s, m := range h.machines {
		if m != noMachine && w.left.deaths > 0 {
			next := w
			next.left.deaths--
			next.nodes[n].machines[s], next.nodes[n].ended[s] = noMachine, h.attached[s]
			next.nodes[n].attached[s] = false
			out(next, say("the VMM of sandbox %d ends", s), "")
		}
	}
}

// takeUpMove takes up one thing after a restart, first the sandboxes, then the snapshots, and then begins with the
// intents that were open.
func (e *explorer) takeUpMove(w world, n int, out emit) {
	state := e.logs.states[w.nodes[n].found]
	next := w
	h := &next.nodes[n]
	for ; h.at < maxSandboxes; h.at++ {
		if e.takeUpSandbox(&next, n, int(h.at), state, out) {
			return
		}
	}
	for ; h.at < maxSandboxes+maxSnapshots; h.at++ {
		i := int(h.at) - maxSandboxes
		d := &h.snapshots[i]
		was := *d
		d.final = d.final && (keepsSnapshot(state, nodeID(n), string(snapshotNo(i))) || e.bug == "no sweep")
		d.tmp = d.tmp && (keepsSnapshot(state, nodeID(n), string(snapshotNo(i))+tmpSuffix) || e.bug == "no sweep")
		if *d != was {
			h.at++
			out(next, say("node %d sweeps snapshot %d", n, i), "")
			return
		}
	}
	h.life, h.at, h.found = up, 0, 0
	for _, in := range state.OpenIntents(nodeID(n)) {
		e.begin(&next, n, in, state)
	}
	out(next, say("node %d is up", n), "")
}

// takeUpSandbox takes up one sandbox, and tells whether there was anything to do.
func (e *explorer) takeUpSandbox(w *world, n, i int, state *fsm.State, out emit) bool {
	h := &w.nodes[n]
	was, how := *h, say("node %d takes up sandbox %d", n, i)
	if sb, ok := state.Sandbox(sandboxNo(i)); !keepsSandbox(state, nodeID(n), sandboxNo(i)) {
		h.machines[i], h.folders[i] = noMachine, false
	} else if ok && takesUp(sb) {
		switch h.attached[i] = h.machines[i] != noMachine; {
		case h.machines[i] == machinePaused:
			h.machines[i] = machineRuns
		case h.machines[i] == noMachine && sb.State == fsm.SandboxSnapshotting:
			h.ended[i] = e.bug != "no report"
		case h.machines[i] == noMachine && sb.State == fsm.SandboxRunning:
			h.at++
			p := proposal{what: lost, n: uint8(i), node: uint8(n), epoch: uint8(sb.Epoch)}
			e.propose(*w, n, p, how.and(", which is gone"), func(w *world, _ answer, err error) {
				if err != nil && judge(e.logs.states[w.log], fsm.Intent{}, fsm.Complete{}, err) == verdictAgain {
					w.nodes[n].at-- // it is proposed again
				}
			}, out)
			return true
		}
	}
	if *h == was {
		return false
	}
	h.at++
	out(*w, how, "")
	return true
}

// propose brings an owner's proposal into the log, or loses the answer. done goes on with the log's answer.
func (e *explorer) propose(w world, n int, p proposal, how saying, done func(*world, answer, error), out emit) {
	if w.left.losses > 0 && w.late.what == nothing {
		next := w
		next.left.losses--
		next.late = p
		done(&next, answer{}, fsm.Errorf(fsm.KindUnknown, "no answer"))
		out(next, how.and(", and hears nothing"), "")
	}
	next := w
	a := e.apply(&next, p)
	next.nodes[n].view = next.log
	var err error
	if a.res.Err != nil {
		err = a.res.Err
	}
	done(&next, a, err)
	out(next, how.and(": %s", said(a.res.Err)), "")
}

// watchMoves has the daemon report a machine that ended when nobody asked for it, once no intent on it is open.
func (e *explorer) watchMoves(w world, n int, out emit) {
	h := w.nodes[n]
	for i, ended := range h.ended {
		if !ended {
			continue
		}
		sb, ok := e.logs.states[h.view].Sandbox(sandboxNo(i))
		how := say("node %d reports the end of sandbox %d", n, i)
		switch {
		case !ok || sb.State == fsm.SandboxStopped || sb.State == fsm.SandboxDeleting:
			next := w
			next.nodes[n].ended[i] = false
			out(next, how.and(" no more"), "")
		case sb.State == fsm.SandboxRunning:
			p := proposal{what: lost, n: uint8(i), node: uint8(n), epoch: uint8(sb.Epoch)}
			e.propose(w, n, p, how, func(*world, answer, error) {}, out)
		}
	}
}

// comeBackMoves has a node that was given up for lost compare what it has with the log.
func (e *explorer) comeBackMoves(w world, n int, out emit) {
	state := e.logs.states[w.nodes[n].view]
	self, _ := state.Node(nodeID(n))
	if self.Lost() || uint8(self.Epoch) == w.nodes[n].seen {
		return
	}
	next := w
	h := &next.nodes[n]
	sandboxes, snapshots := e.occupied(&w, n)
	all := true
	for i := range h.folders {
		sb, _ := state.Sandbox(sandboxNo(i))
		runs := sb.State == fsm.SandboxRunning && sb.Owner == nodeID(n)
		stray := h.folders[i] && !keepsSandbox(state, nodeID(n), sandboxNo(i))
		switch {
		case (stray || runs) && sandboxes[i]:
			all = false
		case stray:
			h.machines[i], h.folders[i], h.attached[i] = noMachine, false, false
		case runs && !h.attached[i]:
			h.ended[i] = true
		}
	}
	for i := range h.snapshots {
		d := &h.snapshots[i]
		switch stray := !keepsSnapshot(state, nodeID(n), string(snapshotNo(i))); {
		case stray && (d.tmp || d.final) && snapshots[i]:
			all = false
		case stray:
			d.tmp, d.final = false, false
		}
	}
	if all {
		h.seen = uint8(self.Epoch)
	}
	if *h != w.nodes[n] {
		out(next, say("node %d comes back", n), "")
	}
}

// occupied are the things that an intent under way is about.
func (e *explorer) occupied(w *world, n int) (sandboxes [maxSandboxes]bool, snapshots [maxSnapshots]bool) {
	for i, work := range w.nodes[n].work {
		if !work.active {
			continue
		}
		in := e.intent(w, n, i)
		if in.Sandbox != "" {
			sandboxes[number(in.Sandbox)] = true
		}
		if in.Snapshot != "" {
			snapshots[number(in.Snapshot)] = true
		}
	}
	return sandboxes, snapshots
}

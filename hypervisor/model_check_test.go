package hypervisor

import (
	"fmt"
	"strings"

	"stillframe/fsm"
)

// check gives what is broken in a world, whatever comes next.
func (e *explorer) check(w world) string {
	if broken := e.checkLog(w.log); broken != "" {
		return broken
	}
	state := e.logs.states[w.log]
	for sn := range state.Snapshots(modelOrg) {
		if sn.State != fsm.SnapshotReady {
			continue
		}
		// Completed only with data that is whole and survives a power cut, and never taken back while it is listed.
		d := w.nodes[number(sn.Owner)].snapshots[number(sn.ID)]
		switch {
		case !d.final || !d.named:
			return fmt.Sprintf("%s is ready and its data is not durable: %+v", sn.ID, d)
		case d.torn:
			return fmt.Sprintf("%s is ready and torn", sn.ID)
		}
	}
	for i, o := range e.scenario.ops {
		if broken := e.checkKept(&w, state, i, o); broken != "" {
			return broken
		}
	}
	return e.checkPaused(&w)
}

// checkKept tests that what was acknowledged is there, until somebody asks for its end.
func (e *explorer) checkKept(w *world, state *fsm.State, i int, o op) string {
	if w.clients[i].phase != succeeded || o.kind != fsm.IntentSnapshot {
		return ""
	}
	for j, other := range e.scenario.ops {
		if other.kind == fsm.IntentDeleteSnapshot && other.target == i && w.clients[j].phase != idle {
			return ""
		}
	}
	sn, ok := state.SnapshotByName(modelOrg, o.snapshot)
	if !ok || sn.State != fsm.SnapshotReady || sn.ID != snapshotNo(w.madeBy(e, i)) {
		return fmt.Sprintf("the acknowledged snapshot %q of client %d is lost: %+v", o.snapshot, i, sn)
	}
	return ""
}

// checkPaused tests that the machine of a sandbox that runs stands still only while somebody is at work on it.
func (e *explorer) checkPaused(w *world) string {
	state := e.logs.states[w.log]
	for n, h := range w.nodes {
		for s, m := range h.machines {
			if sb, ok := state.Sandbox(sandboxNo(s)); m != machinePaused || h.life != up || !ok || !takesUp(sb) {
				continue
			}
			atWork := false
			for i, work := range h.work {
				if work.active && work.next != moveReport {
					in := e.intent(w, n, i)
					atWork = atWork || (in.Sandbox != "" && number(in.Sandbox) == s)
				}
			}
			if !atWork {
				return fmt.Sprintf("sandbox %d stands still and nobody is at work on it", s)
			}
		}
	}
	return ""
}

// checkLog tests a state of the log, once.
func (e *explorer) checkLog(n int32) string {
	if broken, done := e.logs.checked[n]; done {
		return broken
	}
	state, broken := e.logs.states[n], ""
	if err := state.Check(); err != nil {
		broken = err.Error()
	}
	for i, o := range e.scenario.ops {
		// The same key with another body is refused, at every instant.
		if _, used := state.Request(modelOrg, fmt.Sprint("key-", i)); used && broken == "" {
			cmd := fsm.CreateSnapshot{
				Now: modelTime, Request: fsm.Request{Key: fmt.Sprint("key-", i), BodyHash: [32]byte{2}}, Org: modelOrg,
				Intent: "int-other", Sandbox: "sbx-0", Snapshot: "snap-other", Name: "other", GeneratedName: "g",
			}
			if next, res := state.Apply(cmd); res.Err == nil || res.Err.Kind != fsm.KindConflict || next != state {
				broken = fmt.Sprintf("another body under the key of op %d (%s) is answered %v", i, o.kind, res.Err)
			}
		}
	}
	e.logs.checked[n] = broken
	return broken
}

// checkClosed tests that a closed intent stays as it was closed, or is forgotten.
func (e *explorer) checkClosed(before, after int32) string {
	if before == after {
		return ""
	}
	for i := range maxIntents {
		was, ok := e.logs.states[before].Intent(intentNo(i))
		if !ok || was.State == fsm.IntentOpen {
			continue
		}
		if is, ok := e.logs.states[after].Intent(intentNo(i)); ok && (is.State != was.State || is.Epoch != was.Epoch) {
			return fmt.Sprintf("%s was closed as %s and is %s", was.ID, was.State, is.State)
		}
	}
	return ""
}

// checkEnd tests a world in which nothing is left to happen: nobody waits, nothing is open, and what is on the nodes
// is what the log accounts for.
func (e *explorer) checkEnd(w world) string {
	for i, c := range w.clients[:len(e.scenario.ops)] {
		if c.phase == waiting {
			return fmt.Sprintf("client %d waits for ever", i)
		}
	}
	state := e.logs.states[w.log]
	for n, h := range w.nodes {
		if open := state.OpenIntents(nodeID(n)); len(open) > 0 {
			return fmt.Sprintf("%s is open for ever", open[0].ID)
		}
		for i := range h.folders {
			sb, ok := state.Sandbox(sandboxNo(i))
			mine := ok && sb.Owner == nodeID(n)
			runs := map[bool]machineState{true: machineRuns}[mine && sb.State == fsm.SandboxRunning]
			if strings.HasPrefix(sb.StateReason, "deletion failed") && mine {
				continue // it may have failed before the machine was ended; it is said, and can be asked for again
			}
			if h.machines[i] != runs || (h.folders[i] && !mine) {
				return fmt.Sprintf("of sandbox %d there is machine %d and folder %t left on node %d, and the log says %q",
					i, h.machines[i], h.folders[i], n, sb.State)
			}
		}
		for i, d := range h.snapshots {
			sn, ok := state.Snapshot(snapshotNo(i))
			if listed := ok && sn.Owner == nodeID(n); d.final != listed || d.tmp {
				return fmt.Sprintf("of snapshot %d there is %+v left on node %d, and the log says %q", i, d, n, sn.State)
			}
		}
	}
	return ""
}

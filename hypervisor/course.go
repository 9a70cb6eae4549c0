package hypervisor

import (
	"errors"
	"strings"

	"stillframe/fsm"
)

// This file holds what the owner decides, apart from what it does: how an intent goes on after each of its steps,
// after a crash at any of them, and after each answer of the log. Nothing here touches a file, a process or the log,
// so that the same code runs a node and is explored in every interleaving by the tests (see TestModel).

// move is what is to be done next for an intent.
type move uint8

const (
	moveStep   move = iota // take the step that the course names
	moveUndo               // take back what the steps have made
	moveReport             // propose the failure
	moveEnd                // nothing: the intent is closed, or the log has taken it away
)

// course is an intent's way through its steps.
type course struct {
	steps []Step // the last one commits
	at    int    // steps before this one are done
	next  move
	over  bool // the log has closed the intent without this node
}

func newCourse(steps []Step) course {
	if len(steps) == 0 {
		return course{next: moveUndo} // planning failed; an earlier run of the daemon may have left something all the same
	}
	return course{steps: steps}
}

// step is the one to take; only while next is moveStep.
func (c course) step() Step { return c.steps[c.at] }

// stepped says how the step went.
func (c course) stepped(ok bool) course {
	if !ok {
		c.next = moveUndo
		return c
	}
	if c.at++; c.at == len(c.steps) {
		c.next = moveEnd
	}
	return c
}

// committed says what became of the outcome that the last step proposed. An outcome that may yet be accepted is never
// undone: the log would speak of what is not there.
func (c course) committed(v verdict) course {
	switch v {
	case verdictAgain:
		return c
	case verdictOver:
		return c.superseded()
	}
	return c.stepped(v == verdictSettled)
}

// superseded says that the log is known to have closed the intent. An owner that does not know it yet goes on, and
// comes to no harm: its outcome is refused.
func (c course) superseded() course {
	c.next, c.over = moveUndo, true
	return c
}

// undone says that what the steps made is taken back.
func (c course) undone() course {
	if c.next = moveReport; c.over {
		c.next = moveEnd
	}
	return c
}

// reported says what became of the proposal of the failure.
func (c course) reported(v verdict) course {
	if v != verdictAgain {
		c.next = moveEnd
	}
	return c
}

// verdict is what an owner makes of the log's answer to an outcome.
type verdict int

const (
	verdictSettled verdict = iota // the log has this outcome
	verdictAgain                  // it may or may not have it: the same is proposed again
	verdictRefused                // it will not have this one, and the intent is still open
	verdictOver                   // it has closed the intent otherwise
)

// judge reads the log's answer to a proposed outcome. Completions are fenced by owner and epoch, so that repeating one
// is harmless: a repetition of an accepted one is refused as superseded, and told apart by the state. The state must
// be that of after the answer.
func judge(state *fsm.State, in fsm.Intent, c fsm.Complete, err error) verdict {
	var refused *fsm.Error
	switch {
	case err == nil:
		return verdictSettled
	case fsm.Bug("no-doubt"):
		return verdictOver
	case !errors.As(err, &refused), refused.Kind == fsm.KindUnknown, refused.Kind == fsm.KindUnavailable:
		return verdictAgain
	case refused.Kind != fsm.KindSuperseded:
		return verdictRefused
	case hasOutcome(state, in, c.Error != nil):
		return verdictSettled
	}
	return verdictOver
}

// hasOutcome tells whether a closed intent was closed as its owner proposed. A closed intent is forgotten in time;
// what it was about tells then: what the log still counts on must never be taken for undone.
func hasOutcome(state *fsm.State, in fsm.Intent, failed bool) bool {
	if now, ok := state.Intent(in.ID); ok {
		return now.State == map[bool]fsm.IntentState{false: fsm.IntentDone, true: fsm.IntentFailed}[failed]
	}
	if failed {
		return true // nothing is left to do in either case
	}
	switch in.Kind {
	case fsm.IntentCreate, fsm.IntentRestore:
		return keepsSandbox(state, in.Owner, in.Sandbox)
	case fsm.IntentSnapshot:
		return keepsSnapshot(state, in.Owner, string(in.Snapshot))
	case fsm.IntentSetPolicy:
		return false // not known, so the log's policy is put in force again
	}
	return true
}

// closedWithout tells whether the log has closed an intent under way against what this node is doing. That it is
// closed is not enough: an outcome of an earlier run of the daemon may have come late, and what that is about must
// stay.
func closedWithout(state *fsm.State, in fsm.Intent) bool {
	if now, ok := state.Intent(in.ID); ok && now.State == fsm.IntentOpen {
		return false
	}
	return !hasOutcome(state, in, false)
}

// keepsSandbox tells whether the log accounts for what a node has of a sandbox.
func keepsSandbox(state *fsm.State, node fsm.NodeID, id fsm.SandboxID) bool {
	sb, ok := state.Sandbox(id)
	return ok && sb.Owner == node
}

// keepsSnapshot tells whether the log accounts for a folder of snapshot data on a node: it is ready, or its intent is
// open and will deal with it. A folder that is on its way out is never accounted for.
func keepsSnapshot(state *fsm.State, node fsm.NodeID, folder string) bool {
	name, _, _ := strings.Cut(folder, ".")
	sn, ok := state.Snapshot(fsm.SnapshotID(name))
	return (ok && sn.Owner == node && !strings.HasSuffix(folder, goneSuffix)) || fsm.Bug("no-sweep")
}

// What follows a snapshot's id in the names of folders that are not its final one.
const (
	tmpSuffix  = ".tmp"  // being made
	goneSuffix = ".gone" // being removed
)

// takesUp tells whether a sandbox of this node should have a VM to take up after a restart. Those that are starting or
// deleting are done again from the beginning; a stopped one has none.
func takesUp(sb fsm.Sandbox) bool {
	return sb.State == fsm.SandboxRunning || sb.State == fsm.SandboxSnapshotting
}

// snapshotSteps are the steps for a snapshot intent, given what an earlier run of the daemon has left of it. Data that
// was published is completed, after the folder that names it is synced, which that run may not have come to. Anything
// less is given up (no steps but the first, which is to fail): the instant that was asked for has passed.
func snapshotSteps(published, begun bool) []Step {
	all := Steps[fsm.IntentSnapshot]
	switch {
	case published:
		return all[len(all)-2:]
	case begun:
		return all[:1]
	}
	return all
}

// startable gives the open intents to start, given those that are being carried out. One thing has one intent at a
// time: when the log has superseded an intent, its owner may still be at work on the same sandbox, and to undo that
// would take the next one's pause or files away.
func startable(open []fsm.Intent, busy map[fsm.IntentID]fsm.Intent) (start []fsm.Intent) {
	sandboxes, snapshots := map[fsm.SandboxID]bool{"": false}, map[fsm.SnapshotID]bool{"": false}
	for _, in := range busy {
		sandboxes[in.Sandbox], snapshots[in.Snapshot] = in.Sandbox != "", in.Snapshot != ""
	}
	for _, in := range open {
		if _, under := busy[in.ID]; under {
			continue
		}
		if sandboxes[in.Sandbox] || snapshots[in.Snapshot] {
			continue
		}
		sandboxes[in.Sandbox], snapshots[in.Snapshot] = in.Sandbox != "", in.Snapshot != ""
		start = append(start, in)
	}
	return start
}

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// A snapshot name as a state machine: free, or held by one snapshot that is being made, is ready, or is being deleted.
// One operation of a client is one or more moves of this machine, each at some instant between call and return: a
// creation reserves the name and later has it ready. A move whose outcome nobody knows may come at any time or never;
// it then does nothing where it does not fit.

// move is one input of the checker.
type move struct {
	name  string
	what  string
	id    string // of the snapshot; of one that never got an id, the operation's key
	maybe bool
}

// held is a state of the name.
type held struct {
	phase string // "", creating, ready, deleting
	id    string
}

// step says what a move makes of a state, and whether it can be.
func (m move) step(s held) (bool, held) {
	after, fits := m.after(s)
	if !fits && m.maybe {
		return true, s
	}
	return fits, after
}

func (m move) after(s held) (held, bool) {
	mine := s.id == m.id
	switch m.what {
	case "reserve":
		return held{"creating", m.id}, s.phase == ""
	case "ready":
		return held{"ready", m.id}, s.phase == "creating" && mine
	case "release":
		return held{}, s.phase == "creating" && mine
	case "begin deletion":
		return held{"deleting", m.id}, s.phase == "ready" && mine
	case "end deletion":
		return held{}, s.phase == "deleting" && mine
	case "give up deletion":
		return held{"ready", m.id}, s.phase == "deleting" && mine
	case "is free":
		return s, s.phase == ""
	case "is taken":
		return s, s.phase != ""
	case "is not ready":
		return s, s.phase != "ready"
	case "is ready":
		return s, s.phase == "ready" && mine
	case "is gone":
		return s, !mine || s.phase == "creating" || s.phase == ""
	}
	return s, false
}

// moves are what an operation means for names.
func (op *operation) moves() (moves []move, known bool) {
	add := func(what, id string, maybe bool) {
		moves = append(moves, move{name: op.Name, what: what, id: id, maybe: maybe})
	}
	switch {
	case op.Kind == "snapshot" && op.Outcome == outcomeOK:
		add("reserve", op.Snapshot, false)
		add("ready", op.Snapshot, false)
	case op.Kind == "snapshot" && op.Outcome == outcomeUnknown:
		add("reserve", op.Key, true)
		add("ready", op.Key, true)
		add("release", op.Key, true)
	case op.Kind == "snapshot" && op.Outcome == outcomeFailed:
		add("reserve", op.Key, false)
		add("release", op.Key, false)
	case op.Kind == "snapshot" && strings.Contains(op.Message, "snapshot name"):
		add("is taken", "", false)
	case op.Kind == "delete-snapshot" && op.Outcome == outcomeOK:
		add("begin deletion", op.Snapshot, false)
		add("end deletion", op.Snapshot, false)
	case op.Kind == "delete-snapshot" && op.Status == 404:
		if op.Doubt { // an earlier try may be what has deleted it
			add("begin deletion", op.Snapshot, true)
			add("end deletion", op.Snapshot, true)
		}
		add("is gone", op.Snapshot, false)
	case op.Kind == "delete-snapshot" && (op.Doubt || op.Outcome == outcomeFailed):
		add("begin deletion", op.Snapshot, true)
		add("give up deletion", op.Snapshot, true)
		add("end deletion", op.Snapshot, true)
		return moves, false // whatever was answered last, an earlier try may be under way
	case op.Kind == "restore" && op.Outcome == outcomeOK:
		add("is ready", op.Snapshot, false)
	case op.Kind == "restore" && op.Status == 404:
		add("is not ready", "", false)
	case op.Kind == "list" && op.Outcome == outcomeOK:
		for i := range names {
			op.Name = fmt.Sprint("n", i)
			if id, there := op.Listed[op.Name]; there {
				add("is ready", id, false)
			} else {
				add("is not ready", "", false)
			}
		}
		op.Name = ""
	}
	return moves, op.Outcome != outcomeUnknown
}

// checkHistory asks for each name whether all that was answered can have been, one after the other.
func (r *run) checkHistory() {
	byName := map[string][]porcupine.Operation{}
	for _, op := range r.history.all() {
		if op.Outcome == "" {
			op.Outcome = outcomeUnknown // it was never answered at all
		}
		moves, known := op.moves()
		end := op.Return
		if !known {
			end = forever
		}
		for _, m := range moves {
			byName[m.name] = append(byName[m.name], porcupine.Operation{
				ClientId: op.Client, Input: m, Call: op.Call, Return: end,
			})
		}
	}
	model := porcupine.Model{
		Init: func() any { return held{} },
		Step: func(state, input, _ any) (bool, any) {
			ok, next := input.(move).step(state.(held)) //nolint:errcheck // the only types there are
			return ok, next
		},
		DescribeOperation: func(input, _ any) string {
			m := input.(move) //nolint:errcheck // the only type there is
			return fmt.Sprintf("%s %s %s", m.what, m.id, map[bool]string{true: "(?)"}[m.maybe])
		},
		DescribeState: func(state any) string { return fmt.Sprint(state) },
	}
	for name, ops := range byName {
		result, info := porcupine.CheckOperationsVerbose(model, ops, time.Minute)
		switch result {
		case porcupine.Illegal:
			file := filepath.Join(r.o.out, "name-"+name+".html")
			_ = os.Remove(file) // of an earlier run
			if err := porcupine.VisualizePath(model, info, file); err != nil {
				fmt.Println("chaos: draw the history:", err)
			}
			r.violated("1 names", "the history of name %s (%d moves) cannot be put in any order; see %s", name, len(ops), file)
		case porcupine.Unknown:
			r.violated("1 names", "the history of name %s (%d moves) could not be judged within a minute", name, len(ops))
		}
		r.judged += len(ops)
	}
}

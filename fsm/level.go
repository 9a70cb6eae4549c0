package fsm

import "cmp"

// Level numbers what a program knows: commands, their versions and fields, and what they leave in the state. A program
// knows all levels up to its own, which it says when it registers (Node.Level). Whoever adds a command, a version of one
// or a field raises Level with the first such change after a release, and gives the addition that level in levels.
//
//	1  the commands from PutOrg to Tick
//	2  everything since
//
// Nothing of a level is proposed before every registered node has it (see State.Level): a cluster of old and new programs
// goes on with what both know. A node that meets what it does not know all the same, in the log or in a snapshot, stops
// and says so. RegisterNode must keep a form that the level before can read, for it is what raises the level.
const Level = 2

// levels gives, for each command type, the level of each of its versions, the first for version 1. What is missing here
// is of Level.
var levels = func() map[CommandType][]int {
	out := map[CommandType][]int{}
	for t := TypePutOrg; t <= TypeTick; t++ {
		out[t] = []int{1}
	}
	for _, t := range []CommandType{TypePutOrg, TypeCreateSandbox, TypeRestoreSnapshot, TypeComplete} {
		out[t] = []int{1, 2} // see versionOf
	}
	return out
}()

// Needs gives the level that a node must have to apply an encoded command.
func Needs(command []byte) int {
	if len(command) < envelopeBytes {
		return Level
	}
	of, version := levels[CommandType(command[1])], int(command[2])
	if version < 1 || version > len(of) {
		return Level
	}
	return of[version-1]
}

// Level gives the level that every registered node has: what the cluster can be asked to do. Before any has registered
// it is 1.
func (s *State) Level() int {
	lowest, _ := s.lowest()
	return lowest
}

// Outdated names a node that keeps the cluster at its level, for people; empty where none is registered.
func (s *State) Outdated() string {
	_, node := s.lowest()
	return node.label()
}

func (s *State) lowest() (int, Node) {
	lowest, node := 0, Node{}
	for n := range s.nodes.rows() {
		if level := cmp.Or(n.Level, 1); n.RegisteredAt != 0 && !n.Removed() && (lowest == 0 || level < lowest) {
			lowest, node = level, *n
		}
	}
	return cmp.Or(lowest, 1), node
}

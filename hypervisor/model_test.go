package hypervisor

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stillframe/fsm"
)

// The intent protocol, explored exhaustively: every interleaving of clients that propose, lose their answers and try
// again; of owners that see the log late, act, and die at any step, by SIGKILL or by losing power; of virtual machines
// that end; of outcomes that arrive late; and of a leader that gives up on an owner. What decides is the code that
// runs a node: fsm.State.Apply for the log, course.go and Steps for the owner. What is a model is only what it decides
// over: files and machines, as a few bits each (model_world_test.go).
//
// The search is breadth first, so a violation comes with a shortest way to it. In every state the invariants of
// model_check_test.go hold; every run ends, since no state is met twice on any, and where it ends nothing is left
// open.

// The numbers of things in a model. Ids are numbered: a thing's number is its place in the arrays of a world.
const (
	maxNodes     = 2
	maxOps       = 3
	maxTries     = 2 // of a client's request, under the same key
	maxSandboxes = 4
	maxSnapshots = maxOps * maxTries
	maxIntents   = 2 * maxOps * maxTries // the second half: deletions that an outcome opens
)

// op is what a client wants.
type op struct {
	kind      fsm.IntentKind
	sandbox   int // of snapshot and delete; what create and restore make
	snapshot  string
	target    int // delete-snapshot: the number of the op that made the snapshot
	key       bool
	killAfter bool
	after     int // 1 + the number of the op whose success it waits for; 0: none
}

// limits bound how often what is not the protocol's doing happens.
type limits struct {
	crashes  uint8 // a daemon is killed
	cuts     uint8 // a node loses power
	losses   uint8 // an answer is lost; what it was to may be applied late, or never
	failures uint8 // a step fails
	deaths   uint8 // a VMM ends by itself
	giveUps  uint8 // the leader gives up a node for lost, and hears of it again later
	forgets  uint8 // ten minutes pass: closed intents without a key are dropped
}

// scenario is one small model.
type scenario struct {
	name   string
	ops    []op
	limits limits
}

// scenarios are explored by every "go test"; deep ones, which take minutes, with the build tag deep.
var scenarios = []scenario{
	{
		name: "two nodes, one name",
		ops: []op{
			{kind: fsm.IntentSnapshot, sandbox: 0, snapshot: "x", key: true},
			{kind: fsm.IntentSnapshot, sandbox: 1, snapshot: "x"},
		},
		limits: limits{crashes: 1, losses: 1},
	},
	{
		name: "one source, two names",
		ops: []op{
			{kind: fsm.IntentSnapshot, sandbox: 0, snapshot: "x", key: true},
			{kind: fsm.IntentSnapshot, sandbox: 0, snapshot: "y"},
		},
		limits: limits{failures: 1, giveUps: 1},
	},
	{
		name: "a name, taken and given back",
		ops: []op{
			{kind: fsm.IntentSnapshot, sandbox: 0, snapshot: "x", key: true},
			{kind: fsm.IntentDeleteSnapshot, target: 0, after: 1},
			{kind: fsm.IntentSnapshot, sandbox: 1, snapshot: "x"},
		},
		limits: limits{crashes: 1, losses: 1},
	},
	{
		name: "a power cut at any step",
		ops: []op{
			{kind: fsm.IntentSnapshot, sandbox: 0, snapshot: "x", key: true},
		},
		limits: limits{crashes: 1, cuts: 1, losses: 1},
	},
	{
		name: "a power cut while the copy is made",
		ops: []op{
			{kind: fsm.IntentSnapshot, sandbox: 0, snapshot: "x"},
			{kind: fsm.IntentRestore, sandbox: 2, snapshot: "x", key: true, after: 1},
		},
		limits: limits{crashes: 1, cuts: 1},
	},
	{
		name: "an owner that is given up",
		ops: []op{
			{kind: fsm.IntentCreate, sandbox: 2, key: true},
			{kind: fsm.IntentSnapshot, sandbox: 2, snapshot: "x", after: 1},
		},
		limits: limits{crashes: 1, giveUps: 1},
	},
	{
		name: "an owner that is given up while a snapshot is deleted",
		ops: []op{
			{kind: fsm.IntentSnapshot, sandbox: 0, snapshot: "x"},
			{kind: fsm.IntentDeleteSnapshot, target: 0, after: 1},
		},
		limits: limits{crashes: 1, giveUps: 1},
	},
	{
		name: "machines that end",
		ops: []op{
			{kind: fsm.IntentSnapshot, sandbox: 0, snapshot: "x", key: true, killAfter: true},
			{kind: fsm.IntentRestore, sandbox: 2, snapshot: "x", after: 1},
		},
		limits: limits{crashes: 1, deaths: 1},
	},
	{
		name: "answers that are lost for long",
		ops: []op{
			{kind: fsm.IntentSnapshot, sandbox: 0, snapshot: "x"},
			{kind: fsm.IntentRestore, sandbox: 2, snapshot: "x", after: 1},
		},
		limits: limits{crashes: 1, losses: 1, forgets: 1},
	},
}

func TestModel(t *testing.T) { explore(t, scenarios) }

func explore(t *testing.T, scenarios []scenario) {
	total := 0
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			e := newExplorer(s, "")
			broken := e.run()
			require.Empty(t, broken, "%s", e.trail())
			t.Logf("%d states, %d states of the log, %d transitions", len(e.parents), len(e.logs.states), e.moves)
			total += len(e.parents)
		})
	}
	t.Logf("%d states in all", total)
}

// deliberate are bugs that the exploration must find: each makes one decision otherwise than a node does, in the
// scenario that is enough to show it.
var deliberate = map[string]struct{ bug, scenario, finds string }{
	"a source that a failed snapshot leaves paused":     {"no resume", "one source, two names", "stands still"},
	"a restart that completes what may not be synced":   {"no second sync", "a power cut at any step", "not durable"},
	"an idempotency key that is not looked at":          {"no dedup", "two nodes, one name", "under one key"},
	"an outcome that is taken for refused when unknown": {"no doubt", "two nodes, one name", "not durable"},
	"a forgotten intent that is taken for refused":      {"no memory", "answers that are lost for long", "not durable"},
	"a loss that only the open intent is to tell of":    {"no report", "a power cut at any step", "left"},
	"an outcome that comes before the name is synced":   {"no fsync", "a power cut at any step", "not durable"},
	"an intent that is undone because it is closed":     {"no second look", "a power cut at any step", "not durable"},
	"leftovers that a restart does not sweep up":        {"no sweep", "an owner that is given up", "left"},
	"an interrupted snapshot that goes on where it was": {"no instant", "two nodes, one name", "torn"},
}

func TestModelFindsDeliberateBugs(t *testing.T) {
	for name, d := range deliberate {
		t.Run(name, func(t *testing.T) {
			for _, s := range scenarios {
				if s.name != d.scenario {
					continue
				}
				e := newExplorer(s, d.bug)
				broken := e.run()
				require.Contains(t, broken, d.finds, "%s", e.trail())
				t.Logf("found after %d states: %s\n%s", len(e.parents), broken, e.trail())
				return
			}
			t.Fatalf("no scenario %q", d.scenario)
		})
	}
}

// explorer is one search.
type explorer struct {
	scenario scenario
	bug      string
	logs     *logs
	seen     map[world]int32
	worlds   []world
	parents  []int32
	edges    [][]int32
	moves    int
	last     int32
}

func newExplorer(s scenario, bug string) *explorer {
	return &explorer{scenario: s, bug: bug, logs: newLogs(), seen: map[world]int32{}}
}

// run explores everything and gives what is broken first, if anything is.
func (e *explorer) run() (broken string) {
	e.add(e.initial(), -1)
	for at := int32(0); int(at) < len(e.worlds); at++ {
		e.last = at
		w := e.worlds[at]
		if broken := e.check(w); broken != "" {
			return broken
		}
		var to []int32
		var edgeBroken string
		e.successors(w, func(next world, _ saying, bad string) {
			e.moves++
			id := e.add(next, at)
			to = append(to, id)
			if bad == "" {
				bad = e.checkClosed(w.log, next.log)
			}
			if bad != "" && edgeBroken == "" {
				edgeBroken, e.last = bad, id
			}
		})
		if edgeBroken != "" {
			return edgeBroken
		}
		if len(to) == 0 {
			if broken := e.checkEnd(w); broken != "" {
				return "at the end: " + broken
			}
		}
		e.edges = append(e.edges, to)
	}
	return e.checkEnds()
}

// add notes a world, and who came to it first.
func (e *explorer) add(w world, from int32) int32 {
	if id, ok := e.seen[w]; ok {
		return id
	}
	id := int32(len(e.worlds))
	e.seen[w] = id
	e.worlds, e.parents = append(e.worlds, w), append(e.parents, from)
	return id
}

// checkEnds proves that every run ends: the worlds can be put in an order in which every move goes forward.
func (e *explorer) checkEnds() string {
	into := make([]int32, len(e.worlds))
	for from, to := range e.edges {
		for _, id := range to {
			if int(id) != from {
				into[id]++
			} else {
				e.last = id
				return "a move that changes nothing"
			}
		}
	}
	ready := []int32{0}
	done := 0
	for len(ready) > 0 {
		at := ready[len(ready)-1]
		ready = ready[:len(ready)-1]
		done++
		for _, id := range e.edges[at] {
			if into[id]--; into[id] == 0 {
				ready = append(ready, id)
			}
		}
	}
	if done != len(e.worlds) {
		return fmt.Sprintf("%d of %d states lie on a run that never ends", len(e.worlds)-done, len(e.worlds))
	}
	return ""
}

// trail is the way to the last world that was looked at.
func (e *explorer) trail() string {
	var steps []string
	for at := e.last; e.parents[at] >= 0; at = e.parents[at] {
		step := ""
		e.successors(e.worlds[e.parents[at]], func(next world, how saying, _ string) {
			if next == e.worlds[at] {
				step = "  " + how.String()
			}
		})
		steps = append(steps, step)
	}
	slices.Reverse(steps)
	return strings.Join(steps, "\n") + "\n" + e.worlds[e.last].describe()
}

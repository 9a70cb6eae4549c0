package hypervisor

import (
	"fmt"
	"strings"

	"stillframe/fsm"
)

// world is one state of the model. It is comparable, so that a world that was met is known again; the log's state in
// it is a number (see logs).
type world struct {
	log     int32
	clients [maxOps]client
	nodes   [maxNodes]host
	late    proposal // an entry whose proposer got no answer: it comes into the log later, or never
	left    limits
	forgot  bool
}

// client is how far an op's client is.
type client struct {
	phase  phase
	tries  uint8
	intent uint8 // that it waits for or had its answer from
	sure   phase // the first answer, which every later one under the same key must equal
}

type phase uint8

const (
	idle phase = iota
	waiting
	unsure // no answer
	succeeded
	failed
	refused
)

// host is a node: its daemon, its copy of the log, and what is on it.
type host struct {
	life      life
	at        uint8 // how far the take-up is
	view      int32 // the state of the log that it acts by
	found     int32 // the one that it takes up by after a restart
	seen      uint8 // its own epoch when it last compared what it has with the log
	machines  [maxSandboxes]machineState
	attached  [maxSandboxes]bool // the daemon watches the machine
	ended     [maxSandboxes]bool // the machine ended under the daemon's eyes, and that is not reported yet
	folders   [maxSandboxes]bool
	snapshots [maxSnapshots]data
	work      [maxIntents]worker
}

type life uint8

const (
	up life = iota
	takingUp
	down
)

type machineState uint8

const (
	noMachine machineState = iota
	machineRuns
	machinePaused
)

// data is a snapshot's folder.
type data struct {
	tmp   bool // under its temporary name
	final bool // under its final name
	named bool // the final name is on the disk: it is there after a power cut, even where it was removed since
	torn  bool // not one instant, yet or for good: nothing is captured, or was while the machine ran
}

// worker is the goroutine that carries out an intent.
type worker struct {
	active bool
	epoch  uint8
	begin  uint8 // which plan; see begins
	at     uint8 // of the course
	half   bool  // in the middle of a step that is not one instant
	next   move
	over   bool // of the course
	// proposed: an outcome was, and only the log's answer counts.
	proposed bool
}

const (
	fromScratch uint8 = iota
	fromPublished
	fromBegun
	withoutPlan
)

// proposal is a command on its way into the log.
type proposal struct {
	what    what
	n       uint8 // the number of the op, the intent or the sandbox
	try     uint8
	node    uint8
	epoch   uint8
	thing   uint8 // the number of the sandbox or snapshot that a client's op is about
	failed  bool
	stopped bool
}

type what uint8

const (
	nothing what = iota
	ask
	outcome
	mark   // the leader says that a node is lost, or there again
	lost   // a VMM that ended
	forget // ten minutes pass
)

func nodeID(n int) fsm.NodeID         { return fsm.NodeID(fmt.Sprint("node-", n)) }
func sandboxNo(n int) fsm.SandboxID   { return fsm.SandboxID(fmt.Sprint("sbx-", n)) }
func snapshotNo(n int) fsm.SnapshotID { return fsm.SnapshotID(fmt.Sprint("snap-", n)) }
func intentNo(n int) fsm.IntentID     { return fsm.IntentID(fmt.Sprint("int-", n)) }

// number reads the number that the functions above put into an id.
func number[T ~string](id T) int {
	_, digits, _ := strings.Cut(string(id), "-")
	n := 0
	for _, d := range digits {
		n = 10*n + int(d-'0')
	}
	return n
}

const (
	modelTime  = fsm.Time(1e18)
	modelLater = modelTime + 2*fsm.IntentRetention
	modelOrg   = fsm.OrgID("org-0")
	modelSize  = 1024 // MiB of memory and of disk
)

// logs numbers the states of the log that were met, and remembers what commands make of them.
type logs struct {
	states  []*fsm.State
	numbers map[string]int32
	applied map[appliedKey]answer
	checked map[int32]string
	// parts numbers what a node may look at in each state of the log.
	parts    [][maxNodes]int32
	numbered map[string]int32
}

type appliedKey struct {
	log int32
	p   proposal
	bug bool
}

type answer struct {
	log int32
	res fsm.Result
}

func newLogs() *logs {
	return &logs{
		numbers: map[string]int32{}, applied: map[appliedKey]answer{}, checked: map[int32]string{},
		numbered: map[string]int32{},
	}
}

func (l *logs) number(s *fsm.State) int32 {
	digest := fmt.Sprint(s.Digest())
	if n, ok := l.numbers[digest]; ok {
		return n
	}
	n := int32(len(l.states))
	l.states = append(l.states, s)
	l.numbers[digest] = n
	var parts [maxNodes]int32
	for node := range parts {
		self, _ := s.Node(nodeID(node))
		part := fmt.Sprint(self, s.SandboxesOn(nodeID(node)), s.SnapshotsOn(nodeID(node)))
		for i := range maxIntents {
			if in, ok := s.Intent(intentNo(i)); ok && in.Owner == nodeID(node) {
				part += fmt.Sprint(in.ID, in.State, in.Epoch)
			}
		}
		if _, ok := l.numbered[part]; !ok {
			l.numbered[part] = int32(len(l.numbered))
		}
		parts[node] = l.numbered[part]
	}
	l.parts = append(l.parts, parts)
	return n
}

// initial has two nodes and a running sandbox on each.
func (e *explorer) initial() world {
	s := fsm.New()
	apply := func(cmd fsm.Command) fsm.Result {
		next, res := s.Apply(cmd)
		if res.Err != nil {
			panic(res.Err)
		}
		s = next
		return res
	}
	apply(fsm.PutOrg{Now: modelTime, Org: fsm.Org{ID: modelOrg, Name: "org"}})
	apply(fsm.PutTemplate{Now: modelTime, Template: fsm.Template{ID: "tpl-0", Name: "system/t", Digest: "sha256:0"}})
	w := world{left: e.scenario.limits}
	for n := range maxNodes {
		apply(fsm.RegisterNode{Now: modelTime, Node: fsm.Node{
			ID: nodeID(n), Capacity: fsm.Capacity{VCPU: 8, MemoryMiB: 8 * modelSize, DiskMiB: 8 * modelSize},
		}})
	}
	for n := range maxNodes {
		intent := fsm.IntentID(fmt.Sprint("int-first-", n))
		in := apply(fsm.CreateSandbox{
			Now: modelTime, Intent: intent, Org: modelOrg, Sandbox: sandboxNo(n), TemplateName: "system/t", VCPU: 1,
			MemoryMiB: modelSize, DiskMiB: modelSize, TimeoutSec: 1 << 30,
		}).Intent
		apply(fsm.Complete{Now: modelTime, Intent: intent, Owner: in.Owner, Epoch: in.Epoch})
		if in.Owner != nodeID(n) {
			panic("the sandboxes are not on a node each")
		}
		w.nodes[n].machines[n], w.nodes[n].attached[n], w.nodes[n].folders[n] = machineRuns, true, true
	}
	w.log = e.logs.number(s)
	for n := range w.nodes {
		w.nodes[n].view = w.log
	}
	return w
}

// command makes the log's command of a proposal.
func (e *explorer) command(w *world, p proposal) fsm.Command {
	now := modelTime
	if w.forgot {
		now = modelLater
	}
	switch p.what {
	case mark:
		return fsm.MarkNode{Now: now, Node: nodeID(int(p.node)), Lost: p.failed, Epoch: uint64(p.epoch)}
	case outcome:
		c := fsm.Complete{Now: now, Intent: intentNo(int(p.n)), Owner: nodeID(int(p.node)), Epoch: uint64(p.epoch)}
		c.NextIntent = intentNo(int(p.n) + maxOps*maxTries)
		c.Manifest = &fsm.Manifest{Version: 1, TemplateDigest: "sha256:0"}
		if p.failed {
			c.Error, c.Manifest = fsm.Errorf(fsm.KindUnavailable, "no"), nil
		}
		if p.stopped {
			c.SandboxStopped = vmmNotRunning
		}
		return c
	case lost:
		return fsm.ReportStopped{
			Now: now, Sandbox: sandboxNo(int(p.n)), Owner: nodeID(int(p.node)), Epoch: uint64(p.epoch), Reason: "gone",
		}
	case forget:
		return fsm.Tick{Now: modelLater}
	}
	return e.request(now, p)
}

// request makes the command of a client's request. Each try has ids of its own, as the API gives it.
func (e *explorer) request(now fsm.Time, p proposal) fsm.Command {
	o, id := e.scenario.ops[p.n], int(p.n)*maxTries+int(p.try)
	rq := fsm.Request{}
	if o.key && e.bug != "no dedup" {
		rq = fsm.Request{Key: fmt.Sprint("key-", p.n), BodyHash: [32]byte{1}}
	}
	switch o.kind {
	case fsm.IntentCreate:
		return fsm.CreateSandbox{
			Now: now, Request: rq, Intent: intentNo(id), Org: modelOrg, Sandbox: sandboxNo(int(p.thing)),
			TemplateName: "system/t", VCPU: 1, MemoryMiB: modelSize, DiskMiB: modelSize, TimeoutSec: 1 << 30,
		}
	case fsm.IntentRestore:
		return fsm.RestoreSnapshot{
			Now: now, Request: rq, Intent: intentNo(id), Org: modelOrg, Sandbox: sandboxNo(int(p.thing)),
			SnapshotName: o.snapshot, TimeoutSec: 1 << 30,
		}
	case fsm.IntentSnapshot:
		return fsm.CreateSnapshot{
			Now: now, Request: rq, Intent: intentNo(id), Org: modelOrg, Sandbox: sandboxNo(int(p.thing)),
			Snapshot: snapshotNo(id), Name: o.snapshot, GeneratedName: "g", KillAfter: o.killAfter,
		}
	case fsm.IntentDelete:
		return fsm.DeleteSandbox{Now: now, Intent: intentNo(id), Org: modelOrg, Sandbox: sandboxNo(int(p.thing))}
	default:
		return fsm.DeleteSnapshot{Now: now, Intent: intentNo(id), Org: modelOrg, Snapshot: snapshotNo(int(p.thing))}
	}
}

// apply brings a proposal into the log.
func (e *explorer) apply(w *world, p proposal) answer {
	key := appliedKey{w.log, p, w.forgot}
	a, ok := e.logs.applied[key]
	if !ok {
		next, res := e.logs.states[w.log].Apply(e.command(w, p))
		a = answer{e.logs.number(next), res}
		e.logs.applied[key] = a
	}
	w.log = a.log
	for n := range w.nodes {
		// A node that has not seen what is none of its business is as one that has: fewer states, no fewer runs.
		if v := w.nodes[n].view; e.logs.parts[v][n] == e.logs.parts[w.log][n] {
			w.nodes[n].view = w.log
		}
	}
	return a
}

// madeBy gives the number of what an op of a client made: each try would make another.
func (w *world) madeBy(e *explorer, opNo int) int {
	o := e.scenario.ops[opNo]
	try := int(w.clients[opNo].intent) % maxTries
	if o.kind == fsm.IntentSnapshot {
		return opNo*maxTries + try
	}
	return o.sandbox + try
}

// about gives the number of the sandbox or snapshot that a request of an op names.
func (w *world) about(e *explorer, opNo, try int) uint8 {
	o := e.scenario.ops[opNo]
	switch o.kind {
	case fsm.IntentCreate, fsm.IntentRestore:
		return uint8(o.sandbox + try)
	case fsm.IntentDeleteSnapshot:
		return uint8(w.madeBy(e, o.target))
	}
	for other, maker := range e.scenario.ops {
		if (maker.kind == fsm.IntentCreate || maker.kind == fsm.IntentRestore) && maker.sandbox == o.sandbox {
			return uint8(w.madeBy(e, other))
		}
	}
	return uint8(o.sandbox)
}

func (w world) describe() string {
	out := fmt.Sprintf("clients %+v\n", w.clients)
	for n, h := range w.nodes {
		out += fmt.Sprintf("node %d: life %d, machines %v, folders %v, snapshots %+v\n", n, h.life, h.machines, h.folders,
			h.snapshots)
		for i, work := range h.work {
			if work.active {
				out += fmt.Sprintf("  intent %d: %+v\n", i, work)
			}
		}
	}
	return out
}

package main

import (
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// What an operation came to, as its client knows it.
const (
	outcomeOK      = "ok"
	outcomeRefused = "refused" // a definite no, see Status
	outcomeFailed  = "failed"  // begun, and definitely come to nothing
	outcomeUnknown = "unknown" // nobody has said, so that it may have been done, or be done yet
)

// operation is one thing that a client wanted, with all its tries.
type operation struct {
	Client int    `json:"client"`
	Kind   string `json:"kind"` // create, snapshot, restore, delete, delete-snapshot, list
	Key    string `json:"key,omitempty"`
	Call   int64  `json:"call"` // nanoseconds since the start
	Return int64  `json:"return"`
	Tries  int    `json:"tries"`
	// Doubt: some try before the last may have been carried out.
	Doubt    bool   `json:"doubt,omitempty"`
	Nodes    string `json:"nodes"` // that were asked, in order
	Outcome  string `json:"outcome"`
	Status   int    `json:"status"`
	Message  string `json:"message,omitempty"`
	Sandbox  string `json:"sandbox,omitempty"`
	Snapshot string `json:"snapshot,omitempty"`
	Name     string `json:"name,omitempty"`
	// Listed: of list, the snapshots that were shown: name to id.
	Listed map[string]string `json:"listed,omitempty"`

	request request
	answer  answer
}

// request is what is sent, the same in every try.
type request struct {
	method, path string
	body         any
}

// history is everything that all clients did.
type history struct {
	mu  sync.Mutex
	ops []*operation
}

func (h *history) add(op *operation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, op)
}

func (h *history) all() []*operation {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]*operation(nil), h.ops...)
}

// checkTeeth has a run in which next to nothing was done prove nothing.
func (r *run) checkTeeth() {
	done := map[string]int{}
	for _, op := range r.history.all() {
		if op.Outcome == outcomeOK {
			done[op.Kind]++
		}
	}
	for kind, least := range map[string]int{"create": 2, "snapshot": 3, "restore": 2, "list": 2} {
		if done[kind] < least {
			r.violated("0 teeth", "%d operations %q were done, %d at the least prove anything", done[kind], kind, least)
		}
	}
}

// since gives the time of the run, which orders everything in the history.
func (r *run) since() int64 { return time.Since(r.went).Nanoseconds() }

// forever is when an unknown operation returns.
const forever = math.MaxInt64

// writeHistory keeps the history, one operation a line.
func (r *run) writeHistory() error {
	f, err := os.Create(filepath.Join(r.o.out, "history.jsonl"))
	if err != nil {
		return err
	}
	enc := json.NewEncoder(f)
	for _, op := range r.history.all() {
		err = errors.Join(err, enc.Encode(op))
	}
	return errors.Join(err, f.Close())
}

// pool is what the clients know of together: sandboxes and what is in them, snapshots and what must be in them.
type pool struct {
	mu        sync.Mutex
	sandboxes map[string]*content
	snapshots map[string]*kept // by id
	strays    map[string]bool  // sandboxes that were made and could not be furnished, to be deleted
}

// content is what a sandbox was given to keep.
type content struct {
	nonce string
	light bool // its counter can be asked for
}

// kept is an acknowledged snapshot.
type kept struct {
	id, name string
	nonce    string
	// from and to bound the counter of its instant, where that is known: read before it was asked for, and after it was
	// acknowledged.
	from, to uint64
	light    bool
	doomed   bool // its deletion was asked for
}

func newPool() *pool {
	return &pool{sandboxes: map[string]*content{}, snapshots: map[string]*kept{}, strays: map[string]bool{}}
}

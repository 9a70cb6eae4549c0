package agent

import (
	"sync"
	"time"

	"stillframe/hypervisor/guest"
)

// killMemory is how long a kill is remembered whose run has not been heard of: the two travel on connections of their
// own, and the kill may come first.
const killMemory = time.Minute

// runTable finds runs by the id that their caller gave them, from before they start until they are over.
type runTable struct {
	mu      sync.Mutex
	entries map[string]*runEntry
}

type runEntry struct {
	run    *run // nil until started, and for a kill that came first
	killed bool
}

func newRunTable() *runTable { return &runTable{entries: map[string]*runEntry{}} }

// start registers id, calls begin, and kills what it began if a kill came meanwhile. A kill that came before all that
// means that nothing is begun.
func (t *runTable) start(id string, begin func() (*run, error)) (*run, error) {
	if id == "" {
		return begin()
	}
	e, err := t.register(id)
	if err != nil {
		return nil, err
	}
	r, err := begin()
	if err != nil {
		t.remove(id, e)
		return nil, err
	}
	t.mu.Lock()
	e.run = r
	killed := e.killed
	t.mu.Unlock()
	if killed {
		r.kill()
	}
	go func() {
		<-r.done
		t.remove(id, e)
	}()
	return r, nil
}

func (t *runTable) register(id string) (*runEntry, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e, ok := t.entries[id]; ok {
		if e.killed && e.run == nil {
			return nil, guest.Errorf(guest.CodeInvalid, "run %q was killed before it began", id)
		}
		return nil, guest.Errorf(guest.CodeExists, "a run %q is under way", id)
	}
	e := &runEntry{}
	t.entries[id] = e
	return e, nil
}

func (t *runTable) remove(id string, e *runEntry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.entries[id] == e {
		delete(t.entries, id)
	}
}

// kill ends a run. One that is not known may be over, or still to come.
func (t *runTable) kill(id string) {
	t.mu.Lock()
	e, ok := t.entries[id]
	if !ok {
		e = &runEntry{}
		t.entries[id] = e
		time.AfterFunc(killMemory, func() { t.remove(id, e) })
	}
	e.killed = true
	r := e.run
	t.mu.Unlock()
	if r != nil {
		r.kill()
	}
}

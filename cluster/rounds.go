package cluster

import (
	"context"
	"sync"

	"stillframe/fsm"
)

// rounds has callers that ask the same at the same time share one answer. A caller takes part in a round that begins
// after its call, never in one that is under way: what the answer must be newer than is the call.
type rounds[T any] struct {
	n       *Node
	ask     func() (T, error) // answers one round, within bounds of its own
	mu      sync.Mutex
	next    *round[T] // that callers join; nil: none has called
	running bool
}

type round[T any] struct {
	done  chan struct{} // closed when the answer is there
	value T
	err   error
}

// join takes part in the next round and waits for it until ctx ends.
func (r *rounds[T]) join(ctx context.Context) (none T, _ error) {
	mine, err := r.enter()
	if err != nil {
		return none, err
	}
	select {
	case <-mine.done:
		return mine.value, mine.err
	case <-ctx.Done():
		return none, fsm.Wrap(fsm.KindTimeout, ctx.Err(), "no answer in time")
	case <-r.n.stopped:
		return none, errShuttingDown()
	}
}

// enter gives the next round, which is begun where none is under way.
func (r *rounds[T]) enter() (*round[T], error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.running && !r.n.enter() {
		return nil, errShuttingDown()
	}
	if r.next == nil {
		r.next = &round[T]{done: make(chan struct{})}
	}
	if !r.running {
		r.running = true
		go r.run()
	}
	return r.next, nil
}

// run holds rounds for as long as there are callers. It counts as a call into the library: the node waits for it.
func (r *rounds[T]) run() {
	defer r.n.leave()
	for {
		r.mu.Lock()
		now := r.next
		r.next = nil
		if now == nil {
			r.running = false
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
		now.value, now.err = r.ask()
		close(now.done)
	}
}

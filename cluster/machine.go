package cluster

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"stillframe/fsm"
)

// view is what readers see at one instant. It never changes but for changed, which is closed when the next one is
// there.
type view struct {
	state   *fsm.State
	index   uint64 // every entry up to this one that touches the state is in it
	touched uint64 // the last entry in it that reached the state machine; the same on every node with this state
	changed chan struct{}
}

// machine is the library's view of the state machine. Its methods run on one goroutine of the library, except advance;
// readers load the view.
type machine struct {
	view   atomic.Pointer[view]
	broken atomic.Pointer[brokenError]
	onFail func(error) // called once, on the library's goroutine: must not block
	decode func([]byte) (fsm.Command, error)
}

// applied is the response to one entry.
type applied struct {
	result fsm.Result
	err    error
}

// brokenError is why the machine stopped.
type brokenError struct{ err error }

// errBroken says that an entry cannot be applied here and none after it will be.
var errBroken = errors.New("the state machine has stopped")

func newMachine(onFail func(error)) *machine {
	m := &machine{onFail: onFail, decode: fsm.Decode}
	m.view.Store(&view{state: fsm.New(), changed: make(chan struct{})})
	return m
}

var (
	_ raft.FSM                = (*machine)(nil)
	_ raft.BatchingFSM        = (*machine)(nil)
	_ raft.ConfigurationStore = (*machine)(nil)
)

// Apply implements raft.FSM.
func (m *machine) Apply(l *raft.Log) any { return m.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch implements raft.BatchingFSM: entries that were committed together become visible together, and who waits
// for a change is woken once.
func (m *machine) ApplyBatch(logs []*raft.Log) []any {
	out := make([]any, len(logs))
	state, last := m.view.Load().state, uint64(0)
	for i, l := range logs {
		if b := m.broken.Load(); b != nil {
			out[i] = applied{err: b.err}
			continue
		}
		if l.Type == raft.LogConfiguration { // see StoreConfiguration, which the library does not call with batches
			last = l.Index
			continue
		}
		cmd, err := m.decode(l.Data)
		if err != nil {
			out[i] = applied{err: m.stop(fmt.Errorf("%w at log index %d: %w", errBroken, l.Index, err))}
			continue
		}
		var result fsm.Result
		state, result = state.Apply(cmd)
		out[i], last = applied{result: result}, l.Index
	}
	if last != 0 {
		m.publish(state, last, last)
	}
	return out
}

// stop has the machine apply nothing from here on.
func (m *machine) stop(err error) error {
	m.broken.Store(&brokenError{err})
	m.onFail(err)
	return err
}

// StoreConfiguration implements raft.ConfigurationStore: entries about the membership count as applied, too.
func (m *machine) StoreConfiguration(index uint64, _ raft.Configuration) {
	if m.broken.Load() == nil {
		m.publish(nil, index, index)
	}
}

// Snapshot implements raft.FSM. A machine that stopped gives none: it would stand for entries that it lacks.
func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	if b := m.broken.Load(); b != nil {
		return nil, b.err
	}
	return snapshot{m.view.Load()}, nil
}

// Restore implements raft.FSM.
func (m *machine) Restore(r io.ReadCloser) error {
	defer func() { _ = r.Close() }()
	if b := m.broken.Load(); b != nil {
		return b.err
	}
	in := bufio.NewReader(r)
	position, err := readPosition(in)
	if err != nil {
		return err
	}
	state, err := fsm.Read(in)
	if errors.Is(err, fsm.ErrUnknownState) {
		return m.stop(fmt.Errorf("%w at the snapshot of position %d: %w", errBroken, position, err))
	}
	if err != nil {
		return err
	}
	m.publish(state, position, position)
	return nil
}

// publish makes a state visible and wakes who waits for a change. The index never goes back. Only the library's
// goroutine brings a new state; advance, which may run beside it, brings none and keeps the one that is there.
func (m *machine) publish(state *fsm.State, index, touched uint64) {
	for {
		old := m.view.Load()
		next := &view{
			state: state, index: max(old.index, index), touched: max(old.touched, touched), changed: make(chan struct{}),
		}
		if state == nil {
			next.state = old.state
		}
		if m.view.CompareAndSwap(old, next) {
			close(old.changed)
			return
		}
	}
}

// advance notes that everything up to an index is applied, which a barrier has shown.
func (m *machine) advance(index uint64) { m.publish(nil, index, 0) }

// A snapshot of the machine is positionMagic, the entry that its state stands at (see view.touched) in eight bytes, and
// the state's stream. Without the position, a node that was sent a snapshot could not tell that it has caught up.
// Snapshots of older programs begin with the state.
var positionMagic = []byte("stillframe position 1\n")

// readPosition reads a snapshot up to where the state begins. Zero is a position that is not known.
func readPosition(r *bufio.Reader) (uint64, error) {
	head, err := r.Peek(len(positionMagic) + 8)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	at, ok := bytes.CutPrefix(head, positionMagic)
	if !ok || len(at) != 8 {
		return 0, nil // a state from its beginning, or nothing that fsm.Read will take
	}
	position := binary.BigEndian.Uint64(at)
	_, err = r.Discard(len(head))
	return position, err
}

// snapshot is a view, which never changes, so that persisting it needs no lock.
type snapshot struct{ view *view }

// Persist implements raft.FSMSnapshot.
func (s snapshot) Persist(sink raft.SnapshotSink) error {
	_, err := sink.Write(binary.BigEndian.AppendUint64(slices.Clone(positionMagic), s.view.touched))
	if err == nil {
		_, err = s.view.state.WriteTo(sink)
	}
	if err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

// Release implements raft.FSMSnapshot.
func (snapshot) Release() {}

package netpolicy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
)

// pool keeps namespaces ready: complete, with every rule read back, and closed. Which they are is in their names alone,
// so that a process that is killed leaves nothing that the next one does not find.
type pool struct {
	m      *Manager
	prefix string

	mu     sync.Mutex
	ready  []readied
	number int
	wake   chan struct{}
}

// readied is a namespace and the generation that its rules were found right at.
type readied struct {
	ns   *Namespace
	seen uint32
}

func newPool(m *Manager) *pool {
	return &pool{m: m, prefix: "sfpool-" + m.cfg.Instance + "-", wake: make(chan struct{}, 1)}
}

// sweep removes what an earlier process kept ready. A namespace that was being given to a sandbox when that process was
// killed has two names, and only loses the one.
func (p *pool) sweep(ctx context.Context) error {
	names, err := List(p.prefix)
	if err != nil || len(names) == 0 {
		return err
	}
	entries, err := os.ReadDir(Dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if hasOtherName(name, entries) {
			err = (&Namespace{name}).forget()
		} else {
			err = Destroy(ctx, name)
		}
		if err != nil {
			return fmt.Errorf("remove what was kept ready: %w", err)
		}
	}
	return nil
}

func hasOtherName(name string, entries []os.DirEntry) bool {
	st, err := os.Stat(filepath.Join(Dir, name))
	if err != nil {
		return false
	}
	for _, e := range entries {
		other, err := os.Stat(filepath.Join(Dir, e.Name()))
		if err == nil && e.Name() != name && os.SameFile(st, other) {
			return true
		}
	}
	return false
}

// take gives a closed namespace a sandbox's name, and tells which generation its rules were read back at.
func (p *pool) take(ctx context.Context, ns *Namespace) (uint32, error) {
	r, ok, err := p.popIntact(ctx)
	if err != nil {
		return 0, err
	}
	if !ok {
		p.m.metrics.taken.WithLabelValues("made").Inc()
		return p.make(ctx, ns)
	}
	p.m.metrics.taken.WithLabelValues("ready").Inc()
	select {
	case p.wake <- struct{}{}:
	default:
	}
	// The new name first: in between it has two, and in no case none.
	if err := ns.give(r.ns.Path()); err != nil {
		return 0, errors.Join(err, Destroy(context.WithoutCancel(ctx), r.ns.name))
	}
	return r.seen, r.ns.forget()
}

// popIntact gives one that is as it was when it was made. One that somebody has changed meanwhile is destroyed.
func (p *pool) popIntact(ctx context.Context) (readied, bool, error) {
	for {
		r, ok := p.pop()
		if !ok {
			return readied{}, false, nil
		}
		err := p.intact(r)
		if err == nil {
			return r, true, nil
		}
		p.m.metrics.drift.WithLabelValues(driftReady).Inc()
		p.m.log.Warn("a namespace that was kept ready is not as it should be", "namespace", r.ns.name, "error", err)
		if err := Destroy(ctx, r.ns.name); err != nil {
			return readied{}, false, err
		}
	}
}

// intact tells whether nothing has changed rules and links since they were made.
func (p *pool) intact(r readied) error {
	return r.ns.Do(func() error {
		now, err := generation(nil)
		if err != nil {
			return err
		}
		if now != r.seen {
			return errors.New("its rules have changed")
		}
		if _, _, err := p.m.kernel.pairs.find(); err != nil {
			return err
		}
		_, err = netlink.LinkByName(TapName)
		return err
	})
}

func (p *pool) pop() (readied, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.ready) == 0 {
		return readied{}, false
	}
	r := p.ready[0]
	p.ready = p.ready[1:]
	p.m.metrics.ready.Set(float64(len(p.ready)))
	return r, true
}

// make makes a closed namespace and reads its rules back.
func (p *pool) make(ctx context.Context, ns *Namespace) (seen uint32, err error) {
	k := &p.m.kernel
	err = onThread(func() error {
		return ns.build(func() error {
			if err := k.close(ctx); err != nil {
				return err
			}
			have, at, err := readStable(ctx, k.readAll)
			if err != nil {
				return err
			}
			want := k.meant([]forwarding{nil})
			if differ := have.diff(want); len(differ) > 0 {
				return fmt.Errorf("the rules are not what was written: %s", have.explain(differ[0], want))
			}
			seen = at
			return nil
		})
	})
	if err != nil {
		return 0, fmt.Errorf("make a closed namespace: %w", err)
	}
	return seen, nil
}

// fill makes namespaces until there are as many as there should be.
func (p *pool) fill(ctx context.Context) error {
	for {
		p.mu.Lock()
		missing := p.m.cfg.Ready - len(p.ready)
		p.number++
		name := fmt.Sprintf("%s%d-%d", p.prefix, os.Getpid(), p.number)
		p.mu.Unlock()
		if missing <= 0 || ctx.Err() != nil {
			return ctx.Err()
		}
		r := readied{ns: &Namespace{name}}
		var err error
		if r.seen, err = p.make(ctx, r.ns); err != nil {
			return err
		}
		p.mu.Lock()
		p.ready = append(p.ready, r)
		p.m.metrics.ready.Set(float64(len(p.ready)))
		p.mu.Unlock()
	}
}

// drain destroys what is ready.
func (p *pool) drain(ctx context.Context) error {
	var errs []error
	for r, ok := p.pop(); ok; r, ok = p.pop() {
		errs = append(errs, Destroy(ctx, r.ns.name))
	}
	return errors.Join(errs...)
}

// run keeps the pool full until ctx ends, and then empties it.
func (p *pool) run(ctx context.Context) {
	again := time.NewTicker(p.m.cfg.Interval)
	defer again.Stop()
	for ctx.Err() == nil {
		if err := p.fill(ctx); err != nil && ctx.Err() == nil {
			p.m.log.Error("no namespace could be made ready", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-p.wake:
		case <-again.C:
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoDeadline)
	defer cancel()
	if err := p.drain(ctx); err != nil {
		p.m.log.Error("namespaces that were kept ready could not be removed", "error", err)
	}
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"stillframe/fsm"
	"stillframe/hypervisor/store"
)

func contextFor(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}

func sorted(all []interval) []interval {
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b interval) int { return int(min(max(a.from-b.from, -1), 1)) })
	return all
}

// resolve asks again, now that all is healed, what has never been answered. What is asked under a key must come to an
// answer within a bound; what has none stays open, as its client would have to leave it.
func (r *run) resolve(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, recovery)
	defer cancel()
	var open []*operation
	for _, op := range r.history.all() {
		if op.Outcome == outcomeUnknown || op.Outcome == "" {
			r.unknowns++
			if op.Key != "" {
				open = append(open, op)
			}
		}
	}
	var asking sync.WaitGroup
	slots := make(chan struct{}, 8)
	for _, op := range open {
		asking.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			r.resolveOne(ctx, op)
		})
	}
	asking.Wait()
}

func (r *run) resolveOne(ctx context.Context, op *operation) {
	same := 0
	for i := 0; ctx.Err() == nil; i++ {
		n := r.nodes[i%len(r.nodes)]
		before := op.Message
		a := n.api.do(ctx, op.request.method, op.request.path, op.request.body, op.Key)
		if r.took(op, n, a) {
			r.adopt(op)
			return
		}
		// The intent itself has failed as unavailable, which is its answer for good. In a healed cluster that is told from
		// a passing trouble by asking some more.
		if same++; !a.replayed || a.message() != before {
			same = 0
		}
		if same == 3 {
			op.Outcome, op.Return = outcomeFailed, r.since()
			return
		}
		pauseFor(ctx, 200*time.Millisecond)
	}
	r.violated("10 recovery", "operation %s of client %d has no outcome %s after everything was healed: %s", op.Kind,
		op.Client, recovery, op.answer)
}

// adopt takes note of what an operation has come to after all.
func (r *run) adopt(op *operation) {
	if op.Outcome != outcomeOK {
		return
	}
	m := op.made()
	switch op.Kind {
	case "create":
		op.Sandbox = m.ID
		r.pool.stray(m.ID)
	case "restore":
		op.Sandbox, op.Snapshot = m.ID, m.SnapshotID
		r.pool.stray(m.ID)
	case "snapshot":
		op.Snapshot = m.ID
		r.pool.mu.Lock()
		held := r.pool.sandboxes[op.Sandbox]
		r.pool.mu.Unlock()
		if held != nil {
			r.pool.keep(&kept{id: m.ID, name: op.Name, nonce: held.nonce})
		}
	}
}

// checkAgreement has all nodes come to one entry, with one state (invariant 8).
func (r *run) checkAgreement(ctx context.Context) {
	deadline := time.Now().Add(recovery)
	for {
		digests := map[uint64]string{}
		asked := 0
		for _, n := range r.nodes {
			members, ok := r.status(ctx, n, true)
			for _, m := range members {
				if ok && m.Name == n.name && m.Digest != "" {
					asked++
					r.compare(digests, m)
				}
			}
		}
		if asked == len(r.nodes) && len(digests) == 1 {
			return
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			r.violated("8 digests", "the nodes do not come to one entry: %v", digests)
			return
		}
		pauseFor(ctx, 200*time.Millisecond)
	}
}

func (r *run) compare(digests map[uint64]string, m member) {
	if before, seen := digests[m.Position]; seen && before != m.Digest {
		r.violated("8 digests", "two states at entry %d: %s, and %s on node %s", m.Position, before, m.Digest, m.Name)
	}
	digests[m.Position] = m.Digest
}

// checkKeys asks again under keys that were answered: the same answer, and a conflict for another body (invariant 5).
func (r *run) checkKeys(ctx context.Context) {
	rnd := r.random(3)
	ops := r.history.all()
	rnd.Shuffle(len(ops), func(i, j int) { ops[i], ops[j] = ops[j], ops[i] })
	asked := 0
	for _, op := range ops {
		if op.Key == "" || op.Outcome == outcomeUnknown || op.Status == http.StatusTooManyRequests || asked == 60 {
			continue
		}
		asked++
		n := r.anyNode(rnd)
		a := n.api.do(ctx, op.request.method, op.request.path, op.request.body, op.Key)
		if a.status != op.Status || (a.status/100 == 2 && !bytes.Equal(a.body, op.answer.body)) {
			r.violated("5 keys", "%s under key %s was answered %s, and now %s", op.Kind, op.Key, op.answer, a)
		}
		other, ok := op.request.body.(map[string]any)
		if !ok {
			continue
		}
		changed := map[string]any{"timeout": 4711}
		for k, v := range other {
			if k != "timeout" {
				changed[k] = v
			}
		}
		switch op.Kind {
		case "snapshot":
			changed = map[string]any{"name": "another"}
		case "policy":
			changed = map[string]any{"mode": "custom", "allow_domains": []string{"b.example"}}
		}
		if a := n.api.do(ctx, op.request.method, op.request.path, changed, op.Key); a.status != http.StatusConflict {
			r.violated("5 keys", "another body under key %s is answered %s", op.Key, a)
		}
	}
	r.rechecked = asked
	r.checkOneEffect()
}

// checkOneEffect has no two operations with different keys share what they made, and each key make one thing.
func (r *run) checkOneEffect() {
	made := map[string]string{}
	for _, op := range r.history.all() {
		if op.Outcome != outcomeOK || op.Key == "" || op.Kind == "policy" {
			continue
		}
		id := op.Sandbox
		if op.Kind == "snapshot" {
			id = op.Snapshot
		}
		if other, twice := made[id]; twice {
			r.violated("5 keys", "%s was made under keys %s and %s", id, other, op.Key)
		}
		made[id] = op.Key
	}
}

// checkSnapshots has every acknowledged snapshot be listed everywhere, be whole, restore, and hold what its source
// held (invariants 2 and 3).
func (r *run) checkSnapshots(ctx context.Context) {
	must := r.pool.mustBeThere()
	for _, n := range r.nodes {
		a := n.api.do(ctx, "GET", "/v1/snapshots?page-size=100", nil, "")
		items, err := listed(a.body)
		if a.status != http.StatusOK || err != nil {
			r.violated("10 recovery", "node %s does not list snapshots: %s", n.name, a)
			continue
		}
		byID := map[string]string{}
		for _, m := range items {
			byID[m.ID] = m.Name
		}
		for _, k := range must {
			if byID[k.id] != k.name {
				r.violated("2 kept", "snapshot %s (%s) was acknowledged and is not listed on node %s", k.id, k.name, n.name)
			}
		}
		for id := range byID {
			r.checkFiles(ctx, id)
		}
	}
	for _, k := range must {
		r.restoreAgain(ctx, k)
	}
	r.restored = len(must)
}

// checkFiles looks at a listed snapshot's files on the node that holds them: each is there, with the digest of the
// manifest.
func (r *run) checkFiles(ctx context.Context, id string) {
	for _, n := range r.nodes {
		dir := filepath.Join(n.dir, "snapshots", id)
		raw, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
		if err != nil {
			continue
		}
		if r.digested == nil {
			r.digested = map[string]bool{}
		}
		if r.digested[id] {
			return
		}
		r.digested[id] = true
		var mf fsm.Manifest
		if err := json.Unmarshal(raw, &mf); err != nil || len(mf.Files) < 4 {
			r.violated("3 whole", "the manifest of %s: %v, %d files", id, err, len(mf.Files))
			return
		}
		for _, f := range mf.Files {
			if !strings.HasPrefix(f.Digest, "xxh3:") {
				continue
			}
			got, err := store.New().Digest(ctx, filepath.Join(dir, f.Name))
			if err != nil || got != f.Digest {
				r.violated("3 whole", "file %s of %s has digest %s, by its manifest %s (%v)", f.Name, id, got, f.Digest, err)
			}
		}
		return
	}
	r.violated("3 whole", "snapshot %s is listed, and no node has its files", id)
}

// restoreAgain restores a snapshot by its name and compares.
func (r *run) restoreAgain(ctx context.Context, k *kept) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	rnd := r.random(4)
	in := map[string]any{"snapshot_name": k.name, "timeout": sandboxTime}
	key := "final-" + k.id
	var a answer
	for i := 0; ctx.Err() == nil; i++ {
		if a = r.nodes[i%len(r.nodes)].api.do(ctx, "POST", "/v1/snapshot/restore", in, key); !a.open() {
			break
		}
		pauseFor(ctx, 300*time.Millisecond)
	}
	var m made
	if a.status != http.StatusCreated || json.Unmarshal(a.body, &m) != nil || m.SnapshotID != k.id {
		r.violated("2 kept", "snapshot %s (%s) does not restore: %s", k.id, k.name, a)
		return
	}
	if _, ok := r.holdsWhatItShould(ctx, rnd, m.ID, k.id); !ok {
		r.violated("2 kept", "sandbox %s, restored from %s, does not hold what it should", m.ID, k.id)
	}
	r.nodes[0].api.do(ctx, "DELETE", "/v1/sandbox/"+m.ID, nil, "")
}

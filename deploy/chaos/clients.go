package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// clientLoop is one client.
type clientLoop struct {
	r   *run
	no  int
	rnd *rand.Rand
	n   int // operations so far, for keys
}

func (r *run) newClient(i int) *clientLoop {
	return &clientLoop{r: r, no: i, rnd: r.random(100 + uint64(i))}
}

const (
	names        = 8  // different snapshot names
	maxSandboxes = 10 // at once, roughly: clients do not agree on it
	sandboxTime  = 28800
	memoryMiB    = 512
)

// run does operations until the storm is over; the one under way is brought to an end of its own.
func (c *clientLoop) run(storm context.Context) {
	for storm.Err() == nil {
		c.once(storm)
		select {
		case <-storm.Done():
		case <-time.After(time.Duration(c.rnd.IntN(300)) * time.Millisecond):
		}
	}
}

func (c *clientLoop) once(storm context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(storm), patience)
	defer cancel()
	sandboxes := c.r.pool.count()
	switch choice := c.rnd.IntN(100); {
	case sandboxes < 3 || (choice < 15 && sandboxes < maxSandboxes):
		c.create(ctx)
	case choice < 45:
		c.snapshot(ctx)
	case choice < 65:
		c.restore(ctx)
	case choice < 75 || sandboxes >= maxSandboxes:
		c.deleteSandbox(ctx)
	case choice < 87:
		c.deleteSnapshot(ctx)
	case choice < 94:
		c.list(ctx)
	default:
		c.setPolicy(ctx)
	}
}

// patience is how long a client goes on with one operation before it turns to the next and leaves this one open.
const patience = 20 * time.Second

// try sends an operation until it has an outcome, with its key, each time at a node by chance.
func (c *clientLoop) try(ctx context.Context, op *operation) {
	op.Client, op.Call = c.no, c.r.since()
	c.r.history.add(op)
	for ctx.Err() == nil {
		n := c.r.nodes[c.rnd.IntN(len(c.r.nodes))]
		callCtx, cancel := ctx, context.CancelFunc(func() {})
		if c.rnd.IntN(20) == 0 {
			// The connection is lost: what was asked may be done all the same.
			callCtx, cancel = context.WithTimeout(ctx, time.Duration(1+c.rnd.IntN(300))*time.Millisecond)
		}
		a := n.api.do(callCtx, op.request.method, op.request.path, op.request.body, op.Key)
		cancel()
		if c.r.took(op, n, a) {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(100+c.rnd.IntN(500)) * time.Millisecond):
		}
	}
}

// took notes an answer to one try, and tells whether it is the end.
func (r *run) took(op *operation, n *node, a answer) (done bool) {
	op.Tries++
	op.Nodes += n.name
	op.Status, op.answer, op.Message = a.status, a, a.message()
	if a.open() {
		op.Outcome = outcomeUnknown
		op.Doubt = true
		return false
	}
	op.Return = r.since()
	switch {
	case a.status/100 == 2:
		op.Outcome = outcomeOK
	case a.status == http.StatusInternalServerError:
		op.Outcome = outcomeFailed
	default:
		op.Outcome = outcomeRefused
	}
	return true
}

func (c *clientLoop) key() string {
	c.n++
	return fmt.Sprintf("chaos-%d-%d", c.no, c.n)
}

// made is what the API says of a new sandbox or snapshot.
type made struct {
	ID         string `json:"id"`
	Name       string `json:"name"`
	SnapshotID string `json:"snapshot_id"`
	PodID      string `json:"pod_id"`
}

func (op *operation) made() made {
	var m made
	_ = json.Unmarshal(op.answer.body, &m) // an answer that is no JSON has no id, and is judged for that
	return m
}

func (c *clientLoop) create(ctx context.Context) {
	op := &operation{Kind: "create", Key: c.key(), request: request{"POST", "/v1/sandbox", map[string]any{
		"template_name": "system/busybox", "vcpu": 1, "memory": memoryMiB, "timeout": sandboxTime,
	}}}
	c.try(ctx, op)
	if op.Outcome == outcomeOK {
		op.Sandbox = op.made().ID
		c.furnish(ctx, op.Sandbox)
	}
}

// furnish gives a sandbox something to keep, in memory and on its disk, before anybody else knows of it.
func (c *clientLoop) furnish(ctx context.Context, id string) {
	c.r.pool.stray(id)
	nonce := fmt.Sprintf("%s %d", id, c.rnd.Uint64())
	for _, path := range []string{memoryFile, diskFile} {
		if !c.write(ctx, id, path, nonce) {
			return
		}
	}
	_, _, light := c.counter(ctx, id)
	c.r.pool.add(id, &content{nonce: nonce, light: light})
}

const (
	memoryFile = "/dev/shm/nonce"
	diskFile   = "/home/user/nonce"
)

// write writes a file until it is written, or the time is over.
func (c *clientLoop) write(ctx context.Context, id, path, text string) bool {
	for ctx.Err() == nil {
		n := c.r.nodes[c.rnd.IntN(len(c.r.nodes))]
		query := url.Values{"path": {path}}.Encode()
		a := n.api.do(ctx, "POST", "/v1/sandbox/"+id+"/filesystem/write-file?"+query, []byte(text), "")
		if a.status/100 == 2 {
			return true
		}
		if a.status == http.StatusNotFound || a.status == http.StatusBadRequest {
			return false
		}
		pauseFor(ctx, 300*time.Millisecond)
	}
	return false
}

func pauseFor(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// read reads a file through a node; ok says that the agent answered.
func (r *run) read(ctx context.Context, n *node, id, path string) (string, bool) {
	a := n.api.do(ctx, "POST", "/v1/sandbox/"+id+"/filesystem/read-file", map[string]string{"path": path}, "")
	return string(a.body), a.status == http.StatusOK
}

// counter reads a light VM's counter and the one that it began with.
func (c *clientLoop) counter(ctx context.Context, id string) (now, base uint64, ok bool) {
	return c.r.counter(ctx, c.r.nodes[c.rnd.IntN(len(c.r.nodes))], id)
}

func (r *run) counter(ctx context.Context, n *node, id string) (now, base uint64, ok bool) {
	text, ok := r.read(ctx, n, id, "/proc/lightvmm")
	if !ok {
		return 0, 0, false
	}
	_, err := fmt.Sscan(text, &now, &base)
	return now, base, err == nil
}

func (c *clientLoop) snapshot(ctx context.Context) {
	id, held := c.r.pool.any(c.rnd)
	if id == "" {
		return
	}
	k := &kept{name: fmt.Sprint("n", c.rnd.IntN(names)), nonce: held.nonce, light: held.light}
	if held.light {
		k.from, _, _ = c.counter(ctx, id)
	}
	op := &operation{Kind: "snapshot", Key: c.key(), Name: k.name, Sandbox: id, request: request{
		"POST", "/v1/sandbox/" + id + "/snapshot/create", map[string]any{"name": k.name},
	}}
	c.try(ctx, op)
	if strings.Contains(op.Message, "is stopped") {
		c.r.pool.stray(id) // its VMM was killed: it is of no more use
		return
	}
	if op.Outcome != outcomeOK {
		return
	}
	m := op.made()
	op.Snapshot, k.id = m.ID, m.ID
	if m.Name != k.name {
		c.r.violated("1 names", "snapshot %s was asked for as %q and is called %q", m.ID, k.name, m.Name)
	}
	if now, _, ok := c.counter(ctx, id); ok {
		k.to = now
	}
	c.r.pool.keep(k)
}

func (c *clientLoop) restore(ctx context.Context) {
	name := fmt.Sprint("n", c.rnd.IntN(names))
	op := &operation{Kind: "restore", Key: c.key(), Name: name, request: request{
		"POST", "/v1/snapshot/restore", map[string]any{"snapshot_name": name, "timeout": sandboxTime},
	}}
	c.try(ctx, op)
	if op.Outcome != outcomeOK {
		return
	}
	m := op.made()
	op.Sandbox, op.Snapshot = m.ID, m.SnapshotID
	c.r.pool.stray(m.ID)
	if nonce, ok := c.r.holdsWhatItShould(ctx, c.rnd, m.ID, m.SnapshotID); ok {
		_, _, light := c.counter(ctx, m.ID)
		c.r.pool.add(m.ID, &content{nonce: nonce, light: light})
	}
	if c.rnd.IntN(3) > 0 {
		c.end(ctx, m.ID) // so that the snapshot can be deleted
	}
}

// holdsWhatItShould reads what a restored sandbox holds, and compares it with what its snapshot was taken of. Where
// that is not known, because nobody has had the answer yet, only memory and disk are compared.
func (r *run) holdsWhatItShould(ctx context.Context, rnd *rand.Rand, sandbox, snapshot string) (nonce string, ok bool) {
	var texts []string
	for _, path := range []string{memoryFile, diskFile} {
		for ctx.Err() == nil && len(texts) < 2 {
			text, ok := r.read(ctx, r.nodes[rnd.IntN(len(r.nodes))], sandbox, path)
			if ok {
				texts = append(texts, text)
				break
			}
			if !r.exists(ctx, sandbox) {
				return "", false
			}
			pauseFor(ctx, 300*time.Millisecond)
		}
	}
	if len(texts) < 2 {
		return "", false
	}
	if texts[0] != texts[1] || texts[0] == "" {
		r.violated("2 content", "sandbox %s, restored from %s, has %q in memory and %q on its disk", sandbox, snapshot,
			texts[0], texts[1])
		return "", false
	}
	k := r.pool.snapshot(snapshot)
	if k == nil {
		return texts[0], true
	}
	if texts[0] != k.nonce {
		r.violated("2 content", "sandbox %s, restored from %s, holds %q where its source held %q", sandbox, snapshot,
			texts[0], k.nonce)
		return "", false
	}
	r.compareInstant(ctx, rnd, sandbox, k)
	return texts[0], true
}

// compareInstant has a snapshot be of an instant between its request and its acknowledgement.
func (r *run) compareInstant(ctx context.Context, rnd *rand.Rand, sandbox string, k *kept) {
	_, base, ok := r.counter(ctx, r.nodes[rnd.IntN(len(r.nodes))], sandbox)
	if ok && k.light && (base < k.from || (k.to > 0 && base > k.to)) {
		r.violated("2 content", "snapshot %s (%s) is of round %d, but was asked for after %d and acknowledged before %d",
			k.id, k.name, base, k.from, k.to)
	}
}

// exists says whether a sandbox may still be there.
func (r *run) exists(ctx context.Context, id string) bool {
	for _, n := range r.nodes {
		var sb struct {
			State string `json:"state"`
		}
		a := n.api.do(ctx, "GET", "/v1/sandbox/"+id, nil, "")
		switch {
		case a.status == http.StatusNotFound:
			return false
		case a.status == http.StatusOK && json.Unmarshal(a.body, &sb) == nil:
			return sb.State == "running" || sb.State == "snapshotting"
		}
	}
	return true
}

func (c *clientLoop) deleteSandbox(ctx context.Context) {
	id, _ := c.r.pool.any(c.rnd)
	if stray := c.r.pool.anyStray(); stray != "" {
		id = stray
	}
	if id != "" {
		c.end(ctx, id)
	}
}

// end deletes a sandbox.
func (c *clientLoop) end(ctx context.Context, id string) {
	c.r.pool.drop(id)
	op := &operation{Kind: "delete", Sandbox: id, request: request{"DELETE", "/v1/sandbox/" + id, nil}}
	c.try(ctx, op)
	if op.Outcome == outcomeUnknown || (op.Outcome == outcomeRefused && op.Status != http.StatusNotFound) {
		c.r.pool.stray(id)
	} else {
		c.r.pool.drop(id)
	}
}

func (c *clientLoop) deleteSnapshot(ctx context.Context) {
	k := c.r.pool.anySnapshot(c.rnd)
	if k == nil {
		return
	}
	op := &operation{Kind: "delete-snapshot", Snapshot: k.id, Name: k.name, request: request{
		"DELETE", "/v1/snapshot/" + k.id, nil,
	}}
	c.r.pool.doom(k, true)
	c.try(ctx, op)
	if op.Outcome == outcomeRefused && op.Status == http.StatusConflict && !op.Doubt &&
		strings.Contains(op.Message, "in use") {
		c.r.pool.doom(k, false)
	}
}

func (c *clientLoop) list(ctx context.Context) {
	op := &operation{Kind: "list", request: request{"GET", "/v1/snapshots?page-size=100", nil}}
	c.try(ctx, op)
	if op.Outcome != outcomeOK {
		return
	}
	items, err := listed(op.answer.body)
	if err != nil {
		c.r.violated("1 names", "a list cannot be read: %v", err)
		return
	}
	op.Listed = map[string]string{}
	for _, m := range items {
		if other, twice := op.Listed[m.Name]; twice {
			c.r.violated("1 names", "name %q is listed for %s and %s", m.Name, other, m.ID)
		}
		op.Listed[m.Name] = m.ID
	}
}

func listed(body []byte) ([]made, error) {
	var list struct {
		Items []made `json:"items"`
	}
	err := json.NewDecoder(bytes.NewReader(body)).Decode(&list)
	return list.Items, err
}

func (p *pool) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.sandboxes) + len(p.strays)
}

func (p *pool) add(id string, c *content) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.strays, id)
	p.sandboxes[id] = c
}

// stray has a sandbox be one that is only to be deleted.
func (p *pool) stray(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.sandboxes, id)
	p.strays[id] = true
}

func (p *pool) drop(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.sandboxes, id)
	delete(p.strays, id)
}

// any gives a sandbox by chance.
func (p *pool) any(rnd *rand.Rand) (string, *content) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ids := slices.Sorted(maps.Keys(p.sandboxes))
	if len(ids) == 0 {
		return "", nil
	}
	id := ids[rnd.IntN(len(ids))]
	return id, p.sandboxes[id]
}

// anyStray gives a sandbox that is to go, once there are more than a few.
func (p *pool) anyStray() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	ids := slices.Sorted(maps.Keys(p.strays))
	if len(ids) < 4 {
		return ""
	}
	return ids[0]
}

func (p *pool) keep(k *kept) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.snapshots[k.id] = k
}

func (p *pool) snapshot(id string) *kept {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.snapshots[id]
}

func (p *pool) anySnapshot(rnd *rand.Rand) *kept {
	p.mu.Lock()
	defer p.mu.Unlock()
	var there []*kept
	for _, id := range slices.Sorted(maps.Keys(p.snapshots)) {
		if k := p.snapshots[id]; !k.doomed {
			there = append(there, k)
		}
	}
	if len(there) == 0 {
		return nil
	}
	return there[rnd.IntN(len(there))]
}

func (p *pool) doom(k *kept, doomed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k.doomed = doomed
}

// mustBeThere gives the acknowledged snapshots whose deletion nobody has asked for.
func (p *pool) mustBeThere() []*kept {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []*kept
	for _, id := range slices.Sorted(maps.Keys(p.snapshots)) {
		if k := p.snapshots[id]; !k.doomed {
			out = append(out, k)
		}
	}
	return out
}

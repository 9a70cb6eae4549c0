package main

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"time"
)

// outage measures for how long no write was taken, by whichever node.
type outage struct {
	mu      sync.Mutex
	last    time.Time
	longest time.Duration
	at      time.Duration
}

// wrote notes that a write has come into the log.
func (o *outage) wrote(went time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	if !o.last.IsZero() && now.Sub(o.last) > o.longest {
		o.longest, o.at = now.Sub(o.last), o.last.Sub(went)
	}
	o.last = now
}

func (o *outage) result() (longest, at time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.longest, o.at
}

// watch looks on while clients and faults are at work: whether writes are taken, and whether nodes agree.
func (r *run) watch(ctx context.Context) {
	for _, n := range r.nodes {
		r.watching.Go(func() {
			// The admin socket is no network: only the log itself can be what keeps it from answering. That there is no such
			// key is what the log answers, and nobody before it.
			admin := n.admin()
			for ctx.Err() == nil {
				a := admin.do(ctx, "DELETE", "/admin/v1/keys/key-that-never-was", nil, "")
				if a.status == http.StatusNotFound {
					r.outage.wrote(r.went)
				}
				pauseFor(ctx, 200*time.Millisecond)
			}
		})
	}
	digests := map[uint64]string{}
	for ctx.Err() == nil {
		for _, n := range r.nodes {
			r.compareDigests(ctx, n, digests)
		}
		pauseFor(ctx, 2*time.Second)
	}
}

// member is a node as the cluster's status shows it.
type member struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Role     string `json:"role"`
	Position uint64 `json:"position"`
	Digest   string `json:"digest"`
}

func (r *run) status(ctx context.Context, n *node, digest bool) ([]member, bool) {
	var got struct {
		Nodes []member `json:"nodes"`
	}
	path := "/v1/cluster"
	if digest {
		path += "?digest=true"
	}
	a := n.api.do(ctx, "GET", path, nil, "")
	ok := a.status == http.StatusOK && json.Unmarshal(a.body, &got) == nil
	return got.Nodes, ok
}

// compareDigests has every state at one position be the same, on whichever node and whenever it was seen.
func (r *run) compareDigests(ctx context.Context, n *node, digests map[uint64]string) {
	members, ok := r.status(ctx, n, true)
	if !ok {
		return
	}
	for _, m := range members {
		if m.Digest == "" || m.Position == 0 {
			continue
		}
		if before, seen := digests[m.Position]; seen && before != m.Digest {
			r.violated("8 digests", "two states at entry %d: %s, and %s on node %s", m.Position, before, m.Digest, m.Name)
		}
		digests[m.Position] = m.Digest
	}
}

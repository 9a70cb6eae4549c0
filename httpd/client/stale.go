package client

import (
	"context"
	"net/http"
	"strconv"
	"time"
)

// Staleness is what a node tells of a stale answer.
type Staleness struct {
	Told     bool          // an answer has come that tells it
	Known    bool          // Age is known: not on a node that has reached no majority since its start
	Age      time.Duration // how old the answer is at most; of several, the oldest's
	Position uint64        // the last log entry in it; of several, the first's
}

type staleKey struct{}

// WithStale has the reads under the context answered from what the node has, however old, also where it is cut off from
// the rest of its cluster. What the node says of the answers' age is left in into, for one call after another.
func WithStale(ctx context.Context, into *Staleness) context.Context {
	return context.WithValue(ctx, staleKey{}, into)
}

// wishStale marks a read that may be stale.
func wishStale(ctx context.Context, req *http.Request) {
	if _, ok := ctx.Value(staleKey{}).(*Staleness); ok && req.Method == http.MethodGet {
		req.Header.Set("Stillframe-Consistency", "stale")
	}
}

// tellStale takes down what an answer says of its age.
func tellStale(ctx context.Context, header http.Header) {
	into, ok := ctx.Value(staleKey{}).(*Staleness)
	if !ok || header.Get("Stillframe-Consistency") != "stale" {
		return
	}
	ms, err := strconv.ParseInt(header.Get("Stillframe-Age-Ms"), 10, 64)
	age := time.Duration(ms) * time.Millisecond
	if !into.Told {
		into.Told, into.Known = true, true
		into.Position, _ = strconv.ParseUint(header.Get("Stillframe-Position"), 10, 64)
	}
	into.Known = into.Known && err == nil
	into.Age = max(into.Age, age)
}

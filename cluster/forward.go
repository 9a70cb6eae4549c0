package cluster

import (
	"context"
	"io"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-msgpack/v2/codec"

	"stillframe/fsm"
)

// Proposals on their way to the leader share calls: what comes while earlier calls are under way goes with the next
// one, as entries share a write to the disk.
const (
	// forwardCalls is how many calls are under way at once.
	forwardCalls = 4
	// maxForward bounds the proposals of one call, and maxForwardBytes all but the last of them.
	maxForward      = 128
	maxForwardBytes = 256 << 10
	// maxForwardAnswer bounds the answer to a call: each result holds a few things made from bounded commands.
	maxForwardAnswer = 64 << 20
)

// forwards is the body of a call, forwarded its answer: one for each proposal, in their order.
type (
	forwards  struct{ Proposals [][]byte }
	forwarded struct{ Answers []applyAnswer }
)

// forwarding is one proposal on its way. Exactly one side takes it: the worker that sends it, or the caller that gives
// it up before.
type forwarding struct {
	leader fsm.NodeID
	data   []byte
	taken  atomic.Bool
	done   chan forwardResult // takes one result without a reader
}

type forwardResult struct {
	answer applyAnswer
	sent   bool
	err    error
}

// forwarder sends proposals to the leader.
type forwarder struct {
	n      *Node
	queue  chan *forwarding
	ctx    context.Context // ends with stop
	cancel context.CancelFunc
	work   sync.WaitGroup
}

func newForwarder(n *Node) *forwarder {
	f := &forwarder{n: n, queue: make(chan *forwarding, maxForward)}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	for range forwardCalls {
		f.work.Go(f.run)
	}
	return f
}

// stop ends calls under way, whose outcomes are then not known, and waits.
func (f *forwarder) stop() {
	f.cancel()
	f.work.Wait()
}

// send brings a proposal to the leader. sent tells whether the leader may have seen it.
func (f *forwarder) send(ctx context.Context, leader fsm.NodeID, data []byte) (a applyAnswer, sent bool, err error) {
	p := &forwarding{leader: leader, data: data, done: make(chan forwardResult, 1)}
	select {
	case f.queue <- p:
	case <-ctx.Done():
		return a, false, ctx.Err()
	case <-f.ctx.Done():
		return a, false, errShuttingDown()
	}
	select {
	case r := <-p.done:
		return r.answer, r.sent, r.err
	case <-ctx.Done():
		return a, p.taken.Swap(true), ctx.Err()
	case <-f.ctx.Done():
		return a, p.taken.Swap(true), errShuttingDown()
	}
}

func (f *forwarder) run() {
	var next *forwarding // taken from the queue, for another leader than those before it
	for {
		batch := []*forwarding{next}
		if next == nil {
			select {
			case batch[0] = <-f.queue:
			case <-f.ctx.Done():
				return
			}
		}
		batch, next = f.fill(batch)
		f.call(batch)
	}
}

// fill takes what is waiting for the same leader.
func (f *forwarder) fill(batch []*forwarding) (full []*forwarding, next *forwarding) {
	for size := len(batch[0].data); len(batch) < maxForward && size < maxForwardBytes; {
		select {
		case p := <-f.queue:
			if p.leader != batch[0].leader {
				return batch, p
			}
			batch = append(batch, p)
			size += len(p.data)
		default:
			return batch, nil
		}
	}
	return batch, nil
}

// call sends a batch, but for what was given up, and hands out the answers.
func (f *forwarder) call(batch []*forwarding) {
	var going []*forwarding
	var body forwards
	for _, p := range batch {
		if !p.taken.Swap(true) {
			going = append(going, p)
			body.Proposals = append(body.Proposals, p.data)
		}
	}
	if len(going) == 0 {
		return
	}
	var out forwarded
	var raw []byte
	sent, err := false, codec.NewEncoderBytes(&raw, wire).Encode(body)
	if err == nil {
		sent, err = f.n.callUpTo(f.ctx, going[0].leader, http.MethodPost, pathForward, raw, maxForwardAnswer, &out)
	}
	for i, p := range going {
		r := forwardResult{sent: sent, err: err}
		if err == nil && i < len(out.Answers) {
			r.answer = out.Answers[i]
		}
		p.done <- r
	}
}

// serveForward answers a batch of proposals as serveApply answers one.
func (n *Node) serveForward(w http.ResponseWriter, r *http.Request) {
	var body forwards
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 2*maxForwardBytes))
	if err == nil {
		err = codec.NewDecoderBytes(raw, wire).Decode(&body)
	}
	if err != nil || len(body.Proposals) > maxForward {
		http.Error(w, "not a batch of proposals", http.StatusBadRequest)
		return
	}
	out := forwarded{Answers: make([]applyAnswer, len(body.Proposals))}
	var proposing sync.WaitGroup
	for i, data := range body.Proposals {
		proposing.Go(func() { out.Answers[i] = n.answerProposal(r.Context(), data) })
	}
	proposing.Wait()
	answer(w, out)
}

// answerProposal proposes as the leader what another node has sent.
func (n *Node) answerProposal(ctx context.Context, data []byte) applyAnswer {
	if _, err := fsm.Decode(data); err != nil { // a proposal of a newer program must not get into this one's log
		return applyAnswer{Failed: fsm.Wrap(fsm.KindUnavailable, err, "the leader does not know this command")}
	}
	o := n.applyHere(ctx, data)
	if o.index == 0 {
		return applyAnswer{Failed: asError(o.err)}
	}
	return applyAnswer{Index: o.index, Result: &o.result, Refused: o.err != nil}
}

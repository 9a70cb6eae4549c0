package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-msgpack/v2/codec"

	"stillframe/fsm"
)

// Paths of the calls between nodes that this package answers. Those of others are added with Handle.
const (
	pathApply    = "/cluster/apply"
	pathForward  = "/cluster/forward"
	pathPosition = "/cluster/position"
	pathStatus   = "/cluster/status"
)

// maxAnswer bounds the answer to a call of this package. A result holds a few things of the state, each made from
// commands of bounded size.
const maxAnswer = 4 << 20

// wire is the encoding of answers. Unlike the log's it passes over fields that it does not know, so that nodes of two
// versions can talk.
var wire = func() *codec.MsgpackHandle {
	h := &codec.MsgpackHandle{WriteExt: true}
	h.MaxInitLen = 1024
	return h
}()

// applyAnswer is what the leader says of a forwarded proposal. Refused has the state machine's word, with its result;
// Failed is everything else that went wrong.
type applyAnswer struct {
	Index   uint64      `codec:"i,omitempty"`
	Result  *fsm.Result `codec:"r,omitempty"`
	Failed  *fsm.Error  `codec:"f,omitempty"`
	Refused bool        `codec:"x,omitempty"`
}

// positionAnswer is the leader's answer to a read.
type positionAnswer struct {
	Position uint64     `codec:"p,omitempty"`
	Failed   *fsm.Error `codec:"f,omitempty"`
}

func (n *Node) serveCalls() {
	n.port.routes.HandleFunc("POST "+pathApply, n.serveApply)
	n.port.routes.HandleFunc("POST "+pathForward, n.serveForward)
	n.port.routes.HandleFunc("POST "+pathPosition, n.servePosition)
	n.port.routes.HandleFunc("GET "+pathStatus, n.serveStatus)
	n.serveJoin()
	n.serveOrders()
}

// Handle serves calls of other nodes under a pattern of net/http. Every caller is a member of the cluster. The handler
// must end when its request's context does: Shutdown waits for nobody.
func (n *Node) Handle(pattern string, handler http.Handler) { n.port.routes.Handle(pattern, handler) }

// DialCall opens a connection to a node for one HTTP exchange with what Handle serves there. The caller closes it.
func (n *Node) DialCall(ctx context.Context, node fsm.NodeID) (net.Conn, error) {
	return n.port.dial(ctx, node, protoRPC)
}

// LastContact is when this node last received anything from another; the zero time: not since it started.
func (n *Node) LastContact(node fsm.NodeID) time.Time { return n.port.lastContact(node) }

// elsewhere is the leader when that is another node and known, else empty.
func (n *Node) elsewhere() fsm.NodeID {
	if leader := n.Leader().ID; leader != n.id {
		return leader
	}
	return ""
}

// applyAt sends a proposal to the leader, once.
func (n *Node) applyAt(ctx context.Context, leader fsm.NodeID, data []byte) (fsm.Result, error) {
	a, sent, err := n.forward.send(ctx, leader, data)
	switch {
	case err != nil && sent:
		return fsm.Result{}, fsm.Wrap(fsm.KindUnknown, err, "the outcome is not known: the leader did not answer")
	case err != nil:
		return fsm.Result{}, fsm.Wrap(fsm.KindUnavailable, err, "the leader, %s, cannot be reached", n.label(leader))
	case a.Failed != nil:
		return fsm.Result{}, a.Failed
	case a.Result == nil:
		return fsm.Result{}, fsm.Errorf(fsm.KindUnknown, "the outcome is not known: the leader's answer is empty")
	}
	if _, err := n.waitView(ctx, func(v *view) bool { return v.touched >= a.Index }); err != nil {
		return fsm.Result{}, fsm.Wrap(fsm.KindUnknown, err, "done by the leader, but not here yet")
	}
	if a.Refused {
		return *a.Result, a.Result.Err
	}
	return *a.Result, nil
}

func (n *Node) serveApply(w http.ResponseWriter, r *http.Request) {
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, fsm.MaxCommandBytes))
	if err != nil {
		answer(w, applyAnswer{Failed: fsm.Wrap(fsm.KindUnavailable, err, "the leader cannot read this command")})
		return
	}
	answer(w, n.answerProposal(r.Context(), data))
}

// asError is an error as it goes over the wire: its kind and message stay, its cause does not.
func asError(err error) *fsm.Error {
	var e *fsm.Error
	if errors.As(err, &e) {
		return e
	}
	return fsm.Errorf(fsm.KindUnknown, "the outcome is not known")
}

// askPosition asks the leader how far a read that begins now must be.
func (n *Node) askPosition() (uint64, error) {
	ctx, cancel := context.WithTimeout(n.forward.ctx, n.cfg.IOTimeout)
	defer cancel()
	leader := n.elsewhere()
	if leader == "" {
		return 0, n.notLeader() // it is this node now, or none is known
	}
	var a positionAnswer
	if _, err := n.call(ctx, leader, http.MethodPost, pathPosition, nil, &a); err != nil {
		return 0, fsm.Wrap(fsm.KindUnavailable, err, "the leader, %s, does not answer", n.label(leader))
	}
	if a.Failed != nil {
		return 0, a.Failed
	}
	return a.Position, nil
}

func (n *Node) servePosition(w http.ResponseWriter, r *http.Request) {
	v, err := n.readHere(r.Context())
	if err != nil {
		answer(w, positionAnswer{Failed: asError(err)})
		return
	}
	answer(w, positionAnswer{Position: v.touched})
}

// StatusOf asks a node for its status; of this one it looks itself.
func (n *Node) StatusOf(ctx context.Context, node fsm.NodeID, digest bool) (Status, error) {
	if node == n.id {
		return n.status(digest), nil
	}
	path := pathStatus
	if digest {
		path += "?digest=true"
	}
	var s Status
	asked := time.Now()
	if _, err := n.call(ctx, node, http.MethodGet, path, nil, &s); err != nil {
		return Status{}, fsm.Wrap(fsm.KindUnavailable, err, "node %s does not answer", n.label(node))
	}
	s.Trip = time.Since(asked)
	s.Skew = time.Unix(0, s.Clock).Sub(asked.Add(s.Trip / 2).Round(0)) // by the clocks, not by what passed
	return s, nil
}

func (n *Node) serveStatus(w http.ResponseWriter, r *http.Request) {
	answer(w, n.status(r.URL.Query().Get("digest") == "true"))
}

func answer(w http.ResponseWriter, v any) {
	var out []byte
	if err := codec.NewEncoderBytes(&out, wire).Encode(v); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = w.Write(out) // a caller that is gone is told nothing
}

// call does one call to another node, bounded by IOTimeout. sent tells whether the node may have seen it.
func (n *Node) call(ctx context.Context, node fsm.NodeID, method, path string, body []byte, out any) (bool, error) {
	return n.callUpTo(ctx, node, method, path, body, maxAnswer, out)
}

// callUpTo is call for an answer of at most some bytes.
func (n *Node) callUpTo(
	ctx context.Context, node fsm.NodeID, method, path string, body []byte, most int64, out any,
) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.IOTimeout)
	defer cancel()
	var connected atomic.Bool // not sent without a connection; with one, nobody knows
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
	})
	req, err := http.NewRequestWithContext(ctx, method, "http://"+string(node)+path, bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	resp, err := n.port.client.Do(req)
	if err != nil {
		return connected.Load(), err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end or given up
	raw, err := io.ReadAll(io.LimitReader(resp.Body, most))
	if err != nil {
		return true, err
	}
	if resp.StatusCode == http.StatusNotFound {
		return false, errors.New("the node is starting, or does not know this call")
	}
	if resp.StatusCode != http.StatusOK {
		return true, fmt.Errorf("the node answers %s", resp.Status)
	}
	return true, codec.NewDecoderBytes(raw, wire).Decode(out)
}

// label is what people call a node.
func (n *Node) label(node fsm.NodeID) string {
	if known, ok := n.State().Node(node); ok && known.Name != "" {
		return known.Name
	}
	if m, ok := n.cfg.Identity.Member(node); ok {
		return m.Name
	}
	return string(node)
}

package gate

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"stillframe/netpolicy/policy"
)

// flow is one connection of a guest, from its acceptance to its end.
type flow struct {
	s      *Session
	client net.Conn
	to     netip.AddrPort  // that the guest chose
	ctx    context.Context //nolint:containedctx // the connection's life
	cancel context.CancelFunc
	done   chan struct{} // closed when nothing of the flow runs

	mu    sync.Mutex
	ended bool
	conns []net.Conn // to be closed with the flow, beside client

	// Under the session's lock, written once each: a flow that is not settled has sent nothing.
	settled bool
	looked  bool // at what it says; a flow that was not looked at may have said anything
	said    said
	ruling  ruling
	addr    netip.Addr // that is dialled, for toName

	requests tally // for terminate
}

// end cuts the flow off: its sockets are closed when end returns, and done is closed soon after.
func (f *flow) end() {
	f.cancel()
	f.mu.Lock()
	f.ended = true
	conns := f.conns
	f.conns = nil
	f.mu.Unlock()
	reset(f.client)
	for _, c := range conns {
		reset(c)
	}
}

// own has a connection closed when the flow is ended; at once if it was.
func (f *flow) own(conn net.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended {
		reset(conn)
		return
	}
	f.conns = append(f.conns, conn)
}

// reset closes a connection with an RST, so that the other side knows at once.
func reset(conn net.Conn) {
	if c, ok := conn.(interface{ SetLinger(int) error }); ok {
		_ = c.SetLinger(0)
	}
	_ = conn.Close()
}

func (f *flow) run() {
	defer close(f.done)
	defer f.s.forget(f)
	defer f.client.Close() //nolint:errcheck // nobody is left to be told
	defer f.cancel()
	to, err := f.s.sb.OriginalDst(f.client)
	if err != nil {
		f.s.log.Warn("no original destination for a connection", "error", err)
		reset(f.client)
		return
	}
	f.to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	if f.client.LocalAddr().String() == f.to.String() {
		// The listener's own address was dialled. Nothing lives there but the gate, which would dial itself.
		f.refuse(said{}, ruling{rule: "floor node", reason: "it is the gate's own address"})
		return
	}
	plan := f.s.Plan()
	_, byAddress := plan.Reach(f.s.gate.floor(), f.to.Addr())
	if !matters(plan, byAddress) && f.settle(plan, said{}, false) {
		f.tunnel(nil)
		return
	}
	f.decided(byAddress)
}

// decided listens to what the connection says, decides and goes on. Where the address is enough to go on with, that is
// dialled meanwhile: for protocols in which the server speaks first.
func (f *flow) decided(byAddress bool) {
	var early *ahead
	if byAddress {
		early = f.dialAhead()
	}
	heard := f.listen(early)
	for !f.settle(f.s.Plan(), heard, true) {
		continue // the plan was replaced in between
	}
	if f.ruling.way != toAddress {
		early.drop()
	}
	switch f.ruling.way {
	case refuse:
		f.refuse(heard, f.ruling)
	case toAddress, toName:
		f.tunnel(early)
	case terminate:
		f.s.web.serve(f)
	}
}

// serverFirst are ports of protocols in which the server speaks first: who waits for it there says no name, and is told
// so soon.
var serverFirst = []uint16{21, 22, 23, 25, 110, 119, 143, 194, 220, 587, 3306, 5900, 6667}

// listen hears what the client says, within the limits of bytes and time, or until the server has spoken first.
func (f *flow) listen(early *ahead) said {
	wait := f.s.limits.HelloTime
	if slices.Contains(serverFirst, f.to.Port()) {
		wait /= 10
	}
	_ = f.client.SetReadDeadline(time.Now().Add(wait))
	stop := early.onSpeech(func() { _ = f.client.SetReadDeadline(time.Unix(1, 0)) })
	heard := listen(f.client, f.s.limits.HelloBytes)
	stop()
	_ = f.client.SetReadDeadline(time.Time{})
	return heard
}

// settle decides and registers the decision in one step, if the plan is still the one in force.
func (f *flow) settle(plan *policy.Plan, heard said, looked bool) bool {
	r := decide(plan, f.s.gate.floor(), f.to, heard)
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	if f.s.plan != plan {
		return false
	}
	f.settled, f.looked, f.said, f.ruling = true, looked, heard, r
	return true
}

// stands tells whether a plan lets the flow go on as it is. The session's lock is held.
func (f *flow) stands(plan *policy.Plan) bool {
	if !f.settled {
		return true
	}
	floor := f.s.gate.floor()
	now := decide(plan, floor, f.to, f.said)
	switch f.ruling.way {
	case refuse:
		return true
	case toAddress:
		_, open := plan.Reach(floor, f.to.Addr())
		// One that was not looked at may be to a domain that has a transform now.
		return open && now.way != terminate && now.way != refuse && (f.looked || !plan.Transforms())
	case toName:
		if plan.Name(f.ruling.name).Action != policy.Tunnel {
			return false
		}
		_, open := plan.Open(floor, f.addr)
		return open || !f.addr.IsValid()
	case terminate:
		return now.way == terminate && now.transform.Same(f.ruling.transform)
	}
	return false
}

// kind is the decision log's kind of what was heard.
func kind(s said) string {
	if s.proto == protoHTTP {
		return KindHTTP
	}
	return KindTCP
}

// failure says what kept an allowed connection from coming about, in words that hold no secret.
type failure struct {
	what   string // "dns", "dial", "tls", "floor": a metric's label
	rule   string // for "floor"
	reason string
	cause  error
}

func (e *failure) Error() string { return e.reason }
func (e *failure) Unwrap() error { return e.cause }

// asFailure finds the failure in an error.
func asFailure(err error) *failure {
	var f *failure
	if errors.As(err, &f) {
		return f
	}
	return &failure{what: "dial", reason: "the connection failed", cause: err}
}

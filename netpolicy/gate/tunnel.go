package gate

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// tunnel passes bytes through unread. early, where there is one, is the connection to the address that the guest chose.
func (f *flow) tunnel(early *ahead) {
	upstream, first, err := f.connect(early)
	if err != nil {
		f.failed(asFailure(err))
		return
	}
	f.own(upstream)
	defer upstream.Close() //nolint:errcheck // nobody is left to be told
	addr := f.to.Addr()
	if f.ruling.way == toName {
		addr = f.addr
	}
	e := f.s.note(Decision{
		Kind: kind(f.said), Name: f.ruling.name, Addr: addr, Port: f.to.Port(), Verdict: Allowed, Rule: f.ruling.rule,
	})
	carry(f.client, upstream, f.said.raw, first, &e.up, &e.down)
	f.s.gate.metrics.bytes.WithLabelValues("up").Add(float64(e.up.Load()))
	f.s.gate.metrics.bytes.WithLabelValues("down").Add(float64(e.down.Load()))
}

func (f *flow) connect(early *ahead) (upstream net.Conn, first []byte, err error) {
	switch {
	case f.ruling.way == toName:
		upstream, err = f.s.dialName(f.ctx, f.ruling.name, f.to.Port(), f.found)
	case early != nil:
		return early.take()
	default:
		upstream, err = f.s.dialAddress(f.ctx, f.to)
	}
	return upstream, nil, err
}

// found registers the address that a name's tunnel will go to, unless it is not open under the plan in force.
func (f *flow) found(addr netip.Addr) (rule string, ok bool) {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	if rule, ok = f.s.plan.Open(f.s.gate.floor(), addr); ok {
		f.addr = addr
	}
	return rule, ok
}

// carry copies both ways until both have ended, up and down after the bytes that were read before. When one side ends
// its half, the other is told and goes on; when one breaks, both end.
func carry(client, upstream net.Conn, up, down []byte, upBytes, downBytes *atomic.Int64) {
	var wg sync.WaitGroup
	wg.Go(func() { pass(upstream, client, up, upBytes) })
	pass(client, upstream, down, downBytes)
	wg.Wait()
}

// spliceBytes is how much passes before it is counted: the kernel moves it from socket to socket, unseen.
const spliceBytes = 64 << 20

func pass(to, from net.Conn, first []byte, count *atomic.Int64) {
	if len(first) > 0 {
		n, err := to.Write(first)
		count.Add(int64(n))
		if err != nil {
			reset(from)
			reset(to)
			return
		}
	}
	for {
		// io.CopyN wraps the source in a LimitedReader, which net.TCPConn.ReadFrom sees through: it splices.
		n, err := io.CopyN(to, from, spliceBytes)
		count.Add(n)
		if err == nil {
			continue
		}
		if err != io.EOF { //nolint:errorlint // CopyN gives it bare, and what wraps one is another
			reset(from)
			reset(to)
			return
		}
		if c, ok := to.(interface{ CloseWrite() error }); !ok || c.CloseWrite() != nil {
			_ = to.Close()
		}
		return
	}
}

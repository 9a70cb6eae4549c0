package gate

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

const maxAddresses = 8 // of a name that are tried

// addresses gives a name's addresses, IPv4 only, in the order of the answer. name is canonical.
func (s *Session) addresses(ctx context.Context, name string) ([]netip.Addr, error) {
	q := dns.Question{Name: name + ".", Qtype: dns.TypeA, Qclass: dns.ClassINET}
	answer, _, err := s.lookup(ctx, q)
	if err != nil {
		return nil, &failure{what: "dns", reason: "the name could not be resolved", cause: err}
	}
	var out []netip.Addr
	for _, rr := range chain(answer, q) {
		if a, ok := rr.(*dns.A); ok {
			if addr, ok := netip.AddrFromSlice(a.A.To4()); ok && len(out) < maxAddresses {
				out = append(out, addr)
			}
		}
	}
	if len(out) == 0 {
		return nil, &failure{what: "dns", reason: "the name has no address"}
	}
	return out, nil
}

// lookup asks the cache, then the resolvers. It gives the age of the answer.
func (s *Session) lookup(ctx context.Context, q dns.Question) (*dns.Msg, time.Duration, error) {
	if answer, age, ok := s.cache.get(q, time.Now()); ok {
		return answer, age, nil
	}
	select {
	case s.pending <- struct{}{}:
		defer func() { <-s.pending }()
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	}
	answer, err := s.gate.names.ask(ctx, q)
	if err != nil {
		return nil, 0, err
	}
	s.cache.put(q, answer, time.Now())
	return answer, 0, nil
}

// dialName connects to a name: to the first of its addresses that is open and answers. check is asked of each address
// before it is dialled.
func (s *Session) dialName(ctx context.Context, name string, port uint16,
	check func(netip.Addr) (rule string, ok bool)) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, s.limits.DialTime)
	defer cancel()
	addrs, err := s.addresses(ctx, name)
	if err != nil {
		return nil, err
	}
	for i, a := range addrs {
		rule, ok := check(a)
		if !ok {
			// The last word: addresses that are not open say more than ones that do not answer.
			err = &failure{what: "floor", rule: rule, reason: "the name resolves to an address that is not open"}
			continue
		}
		deadline, _ := ctx.Deadline()
		share := time.Until(deadline) / time.Duration(len(addrs)-i)
		one, cancelOne := context.WithTimeout(ctx, share)
		conn, dialErr := s.gate.cfg.Dial(one, netip.AddrPortFrom(a, port))
		cancelOne()
		if dialErr == nil {
			return conn, nil
		}
		err = dialFailure(dialErr)
	}
	return nil, err
}

func (s *Session) dialAddress(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, s.limits.DialTime)
	defer cancel()
	conn, err := s.gate.cfg.Dial(ctx, to)
	if err != nil {
		return nil, dialFailure(err)
	}
	return conn, nil
}

func dialFailure(err error) *failure {
	f := &failure{what: "dial", reason: "the destination cannot be reached", cause: err}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		f.reason = "the destination refused the connection"
	case errors.Is(err, context.DeadlineExceeded):
		f.reason = "the destination did not answer in time"
	}
	return f
}

// ahead is a connection to the address that the guest chose, made before it is known whether it will be used, and the
// bytes that the server said on it unasked. A nil ahead is none.
type ahead struct {
	cancel context.CancelFunc
	dialed chan struct{} // closed when conn or err is there
	conn   net.Conn
	err    error
	heard  chan struct{} // closed when first is there
	first  []byte

	mu     sync.Mutex
	spoken bool // the server has, or has hung up
	speech func()
}

const firstBytes = 16 << 10

func (f *flow) dialAhead() *ahead {
	ctx, cancel := context.WithCancel(f.ctx)
	a := &ahead{cancel: cancel, dialed: make(chan struct{}), heard: make(chan struct{})}
	f.s.wg.Go(func() {
		defer close(a.heard)
		a.conn, a.err = f.s.dialAddress(ctx, f.to)
		if a.err == nil {
			f.own(a.conn)
		}
		close(a.dialed)
		if a.err != nil {
			return
		}
		buf := make([]byte, firstBytes)
		n, err := a.conn.Read(buf)
		a.first = buf[:n]
		if !timedOut(err) {
			a.spoke()
		}
	})
	return a
}

func timedOut(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

func (a *ahead) spoke() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.spoken = true
	if a.speech != nil {
		a.speech()
	}
}

// onSpeech has fn called once the server has spoken or hung up, until stop is called.
func (a *ahead) onSpeech(fn func()) (stop func()) {
	if a == nil {
		return func() {}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.spoken {
		fn()
	}
	a.speech = fn
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.speech = nil
	}
}

// take waits for the connection and gives it, with what the server said on it so far.
func (a *ahead) take() (net.Conn, []byte, error) {
	<-a.dialed
	if a.err != nil {
		return nil, nil, a.err
	}
	_ = a.conn.SetReadDeadline(time.Unix(1, 0)) // it listens no longer
	<-a.heard
	return a.conn, a.first, a.conn.SetReadDeadline(time.Time{})
}

// drop ends a connection that will not be taken.
func (a *ahead) drop() {
	if a == nil {
		return
	}
	a.cancel()
	<-a.dialed
	if a.err == nil {
		_ = a.conn.Close()
	}
	<-a.heard
}

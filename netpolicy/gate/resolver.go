package gate

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	resolvConf    = "/etc/resolv.conf"
	resolvConfAge = 5 * time.Second // before its time of change is looked at again
	tryTime       = 2 * time.Second // for one resolver to answer
	udpSize       = 1232            // bytes that pass every network unfragmented
	maxChain      = 16              // aliases that are followed in one answer
)

var errNoResolver = errors.New("the node has no resolver")

// resolver asks the node's resolvers. It repeats nothing of a guest's message but the name and the type.
type resolver struct {
	fixed    []string // where the configuration names resolvers
	udp, tcp *dns.Client

	mu      sync.Mutex
	looked  time.Time
	changed time.Time
	found   []string // of resolvConf
}

func newResolver(upstreams []netip.AddrPort) *resolver {
	r := &resolver{
		udp: &dns.Client{Net: "udp", Timeout: tryTime, UDPSize: udpSize}, tcp: &dns.Client{Net: "tcp", Timeout: tryTime},
	}
	for _, u := range upstreams {
		r.fixed = append(r.fixed, u.String())
	}
	return r
}

// servers gives the resolvers to ask, read again from resolvConf when that has changed.
func (r *resolver) servers() []string {
	if len(r.fixed) > 0 {
		return r.fixed
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if now.Sub(r.looked) < resolvConfAge {
		return r.found
	}
	r.looked = now
	info, err := os.Stat(resolvConf)
	if err != nil || info.ModTime().Equal(r.changed) {
		return r.found
	}
	conf, err := dns.ClientConfigFromFile(resolvConf)
	if err != nil {
		return r.found
	}
	r.changed, r.found = info.ModTime(), nil
	for _, s := range conf.Servers {
		if a, err := netip.ParseAddr(s); err == nil {
			r.found = append(r.found, netip.AddrPortFrom(a, 53).String())
		}
	}
	return r.found
}

// ask gives the answer of the first resolver that has one, over TCP where it does not fit UDP.
func (r *resolver) ask(ctx context.Context, q dns.Question) (*dns.Msg, error) {
	err := errNoResolver
	for _, server := range r.servers() {
		var answer *dns.Msg
		if answer, err = r.askOne(ctx, q, server); err == nil {
			return answer, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return nil, err
}

func (r *resolver) askOne(ctx context.Context, q dns.Question, server string) (*dns.Msg, error) {
	m := &dns.Msg{Question: []dns.Question{q}}
	m.Id = dns.Id()
	m.RecursionDesired = true
	m.SetEdns0(udpSize, false)
	answer, _, err := r.udp.ExchangeContext(ctx, m, server)
	if err == nil && answer.Truncated {
		answer, _, err = r.tcp.ExchangeContext(ctx, m, server)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("resolver: %w", err)
	case !answer.Response, len(answer.Question) != 1, dns.CanonicalName(answer.Question[0].Name) != q.Name,
		answer.Question[0].Qtype != q.Qtype:
		return nil, errors.New("resolver: answers another question")
	case answer.Rcode != dns.RcodeSuccess && answer.Rcode != dns.RcodeNameError:
		return nil, fmt.Errorf("resolver: answers %s", dns.RcodeToString[answer.Rcode])
	}
	return answer, nil
}

// chain gives the records of an answer that belong to the question: the aliases, one after the other, and the records
// of the type asked for at their end. What else an answer holds is nothing that was asked.
func chain(answer *dns.Msg, q dns.Question) []dns.RR {
	var out []dns.RR
	at := q.Name
	for range maxChain {
		var next string
		for _, rr := range answer.Answer {
			if dns.CanonicalName(rr.Header().Name) != at || rr.Header().Class != dns.ClassINET {
				continue
			}
			alias, isAlias := rr.(*dns.CNAME)
			switch {
			case rr.Header().Rrtype == q.Qtype:
				out = append(out, rr)
			case isAlias && next == "":
				next = dns.CanonicalName(alias.Target)
				out = append(out, rr)
			}
		}
		if next == "" {
			return out
		}
		at = next
	}
	return out
}

const (
	cacheSize = 1024
	maxTTL    = 5 * time.Minute
	maxNoTTL  = 30 * time.Second // for "there is no such thing"
)

// cache keeps answers for one sandbox, for as long as they say, so that the address a guest is told and the one that
// the proxy dials are mostly the same. It is not shared between sandboxes: what one asked shows in the time of the
// next.
type cache struct {
	mu sync.Mutex
	m  map[dns.Question]cached
}

type cached struct {
	answer *dns.Msg // read only
	at     time.Time
	ttl    time.Duration
}

func (c *cache) get(q dns.Question, now time.Time) (*dns.Msg, time.Duration, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k, ok := c.m[q]
	age := now.Sub(k.at)
	if !ok || age < 0 || age >= k.ttl {
		return nil, 0, false
	}
	return k.answer, age, true
}

func (c *cache) put(q dns.Question, answer *dns.Msg, now time.Time) {
	ttl := answerTTL(answer)
	if ttl <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil {
		c.m = map[dns.Question]cached{}
	}
	for old := range c.m { // any: the order of a map is random
		if len(c.m) < cacheSize {
			break
		}
		delete(c.m, old)
	}
	c.m[q] = cached{answer: answer, at: now, ttl: ttl}
}

func answerTTL(answer *dns.Msg) time.Duration {
	ttl := maxTTL
	for _, rr := range answer.Answer {
		ttl = min(ttl, time.Duration(rr.Header().Ttl)*time.Second)
	}
	if len(answer.Answer) > 0 {
		return ttl
	}
	for _, rr := range answer.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			return min(maxNoTTL, time.Duration(min(soa.Minttl, soa.Hdr.Ttl))*time.Second)
		}
	}
	return 0
}

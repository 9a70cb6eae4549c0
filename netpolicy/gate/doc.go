// Package gate is what a sandbox's packets meet on the node: its DNS server and its TCP proxy. Both decide in one
// place, by the plan of the sandbox's policy, on one canonical name. The kernel brings every TCP connection and every
// DNS query of a sandbox to listeners that were opened for this sandbox alone, which is why nobody needs to say who he
// is.
//
// It imports netpolicy/policy, miekg/dns, golang.org/x/net and x/time, and Prometheus' client; nothing else of ours. It
// opens no listener and makes no rule: those are handed in.
//
// # How a connection is decided
//
// The first bytes say a name: a TLS ClientHello, read by the TLS library that would also terminate it, or the Host of
// an HTTP/1 request. A name of a transform: TLS ends here, requests are changed and sent on. A name of allow_domains:
// the gate resolves it, and passes the bytes through unread to an address that it found itself; the one that the guest
// chose does not matter. Else the original destination, if allow_cidrs has it or the mode is allow-all. Else it is
// refused, with a reason where the protocol has words for one. Where no name could change the answer none is waited
// for.
//
// # Invariants
//
//   - No byte of a guest leaves before a decision, and none after a decision that denies.
//   - Every address is held against the floor after it was resolved and before it is dialled, for DNS answers too.
//   - A connection is registered under the plan it was decided by, in one step with the look whether that is still the
//     plan. So after Replace and Cut have returned, none goes on that the new plan would not have let in.
//   - A header is injected only into a request whose Host is the name of the ClientHello, over a connection on which
//     the upstream has proved to be that name.
//   - Requests to a transform's domain are serialised anew, never copied through, and what two readers could take apart
//     differently is refused before anything is sent.
//   - Injected values, header values, bodies, paths and queries are in no log, error, decision or metric.
//   - What one sandbox can hold is bounded: connections, new ones and DNS queries per second, bytes and time before a
//     connection has said what it wants.
//
// # Not guaranteed
//
// A tunnel is not looked into: a server that answers for several names answers for all of them there (fronting), and
// what an allowed server does for its clients (DNS over HTTPS, proxying) it does for the sandbox. An upstream that
// echoes its request's headers shows the sandbox the injected value. UDP is not decided here; QUIC to a transform's
// domain is the kernel rules' matter, and is not transformed.
package gate

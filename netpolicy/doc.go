// Package netpolicy makes the network that a sandbox lives in, and keeps its egress policy in force there: a named
// network namespace with a tap, a way to the host, rules, and the sockets of the gate.
//
// It imports the standard library, golang.org/x/sys, the netlink libraries, the Prometheus client, netpolicy/policy and
// netpolicy/gate, and nothing else of ours. The only programs it runs are those of iptables-nft.
//
// # What a network is
//
// Create alone makes a Namespace: lo and tap0, both up, and no way out. A Manager makes a Network: besides, a veth pair
// to the host with two addresses of a pool, rules, and listeners of the node's gate. Inside, every sandbox's network
// has the same addresses, so that a guest that is restored in another one finds nothing changed.
//
//	guest ── tap0 ─┬─ TCP, and UDP 53 ── REDIRECT ── the gate's listeners here; it dials from the host
//	               ├─ the rest to allow_cidrs ── FORWARD, every packet checked ── up0 ── sfvN, the host's routes
//	               └─ anything else ── refused at once (reset, ICMP prohibited); not IPv4: dropped
//
// # Invariants
//
//   - A namespace gets its name when it is complete, in one step (a bind mount). What has the name without being one,
//     left behind by a kill at the wrong instant, is made anew by Create and removed by Destroy.
//   - Create never takes a namespace away from a process that runs in it or from whoever holds its tap: ErrInUse.
//   - There is no link without rules: a namespace's tables, of all protocols, refuse before it has a link, and links
//     come up last, after the rules have been read back and compared.
//   - Packets are checked one by one. That a connection is established opens nothing.
//   - While one policy replaces another, the kernel carries only what both allow; when Replace has returned, only the
//     new one is in force. If it cannot be put in force, nothing passes (ErrCutOff).
//   - Rules, links and settings are what they should be, within seconds whatever is done to them (Run), and if they
//     cannot be, the way to the host is down.
//   - A process that ends, in whatever way, changes no rule: what the kernel carries goes on under the same ones, what
//     needs the gate is refused.
//   - Nothing of the operator's rules on the host is changed or bypassed. Ours are in chains of our own.
//   - IPv6 is off, and all its tables drop. ARP is answered for the guest's own addresses only.
//   - A thread that could not return to the host's namespace is never used again.
//
// Names outlive the process: a node that was started again finds its namespaces with List, Open and TakeUp.
package netpolicy

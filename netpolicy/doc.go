// Package netpolicy makes the network that a sandbox lives in: a named network namespace with a tap in it, and ways for
// the node to open sockets there.
//
// It imports the standard library, golang.org/x/sys and the netlink libraries, and nothing of ours. It runs no program.
// The egress policy will be rules and listeners inside the same namespaces; until there is one, a namespace has no way
// out at all.
//
// # What a namespace has
//
// lo and tap0, both up. tap0 has HostIP and a fixed hardware address, and knows the guest's, so that neither side ever
// waits for a neighbour lookup, and a guest that is restored in another namespace finds its neighbour unchanged. The
// addresses are the same in every namespace, as no two of them are connected.
//
// # Invariants
//
//   - A namespace gets its name when it is complete, in one step (a bind mount). What has the name without being one,
//     left behind by a kill at the wrong instant, is made anew by Create and removed by Destroy.
//   - Create never takes a namespace away from a process that runs in it or from whoever holds its tap: ErrInUse.
//   - There is no route beyond the guest, forwarding is off and IPv6 is off. A packet of the guest ends at tap0: it
//     meets the sockets that the node opened in this namespace, never one of the host or of another sandbox, because
//     those are in other namespaces and nothing connects them.
//   - A thread that could not return to the host's namespace is never used again.
//
// Names outlive the process: a node that was started again finds its namespaces with List and Open.
package netpolicy

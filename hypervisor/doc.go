// Package hypervisor is the owning node at work: it follows the intents that the replicated log addresses to this node,
// carries each out as an ordered list of named steps on real virtual machines, and proposes the outcome.
//
// It may import fsm (types and the error kinds), netpolicy (the networks of sandboxes, with the policies in force
// there) and its own subpackages: vmm (the Cloud Hypervisor REST API and its processes), store (memory and disk files)
// and guest (the agent inside the VM). It owns the interfaces Log, through which it sees the log, Secrets, which opens
// what the log holds sealed, and Peers, which brings other nodes' snapshots; it knows nothing of HTTP handlers.
//
// # Invariants
//
//   - Nothing is done that an open intent of this node does not ask for, and everything done is undone when the intent
//     fails. The log is the only source of orders; the data folder is only what carrying them out has left.
//   - A step may be interrupted by SIGKILL at any instant. What a sandbox or snapshot has made is found again from its
//     folder, which is made before anything else and removed after everything else.
//   - A snapshot's folder bears its final name only when it is whole and synced; the intent is completed only after
//     that.
//   - A source VM is resumed on every path out of the paused window, and again at take-up after a restart.
//   - VMM processes are not children in spirit: they outlive the daemon, which takes them up again at its next start.
//   - A sandbox's network policy is in force before its VMM is started, and whatever fails afterwards lets nothing
//     through: a replacement that fails, or a policy that cannot be taken up again, leaves the sandbox cut off.
//   - Header values and the seeds of authorities are in clear only on their way to the network's manager. They are
//     stored and logged nowhere.
//   - A copy of another node's snapshot is used only when every file of it has the digest that the log has for it.
//   - A sandbox is reported running only after the agent in it has answered, set its clock, reseeded its random
//     generator, taken the sandbox's identity and had its programs trust the sandbox's authority.
//
// # Guarantees and what is not guaranteed
//
// A completed snapshot is one instant of memory, devices and disk. A disk that fills up under a running VM kills that
// VM: space is checked before a sandbox or snapshot is made, not held back for it. Random generators inside guest
// processes (not the kernel's) repeat in clones of one snapshot unless the process mixes in kernel randomness.
package hypervisor

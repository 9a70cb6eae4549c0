// Package e2e is the end-to-end test of a node: real daemon processes with real virtual machines, killed, starved and
// lied to at every named step. It holds tests only and may import, beside the client of the API, what shows the truth
// behind the API: hypervisor (the list of steps), hypervisor/vmm (to ask a VMM directly) and netpolicy (namespaces).
//
// # How it runs
//
// As root. The test binary starts itself again in a mount and a network namespace of its own, with an empty /run/netns,
// a loop filesystem with reflinks for the data folders, and no network but loopback and the bridge between the nodes of
// a cluster: what a failed test leaves behind ends with the namespaces. The daemon is built from this tree with fault
// points (build tag faults), and with the race detector where the test has it. Only processes that a data folder's
// records name are ever killed.
//
//	STILLFRAME_VMM     the VMM binary; default: the development VMM built from this tree
//	STILLFRAME_IMAGES  the images folder; default build/images of the tree
//
// With -short the crash matrix visits every step once instead of twice: dying after a step and dying before the next
// one leave the same things behind.
//
// # What is judged
//
// Never what the daemon says of itself alone: whether a VM runs is asked of its VMM and shown by a command in the
// guest; what is left is looked up among processes, namespaces, mounts and files, which must be exactly those of the
// sandboxes and snapshots that the API lists.
package e2e

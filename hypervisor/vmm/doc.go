// Package vmm drives one virtual machine monitor process over the Cloud Hypervisor REST API on its Unix socket: it
// starts the process so that it outlives its starter, takes it up again after a restart, sends it requests, edits the
// configuration inside its snapshots, and decides which VMM binary this machine can use. It knows nothing of sandboxes
// and imports nothing of ours.
//
// # Invariants
//
//   - Every request has a deadline: the context's own, else the default of its operation. Every reply is read bounded.
//   - The meaning of an error is never taken from its status code (the VMM answers nearly every refusal with 500): ask
//     [Client.State] what the VM is now.
//   - A process is addressed by pidfd only. A recorded process is taken up only if boot id, pid and start time all
//     agree, so a recycled pid can be neither taken over nor killed.
//   - A VMM that was started is never killed by the end of its starter, only by [Process.Kill] or by itself.
//
// # What the VMM does and does not do
//
// It serves requests one at a time: while a snapshot or a restore runs, a ping waits behind it. It syncs nothing that
// it writes, and does not notice every short write: [CheckSnapshot] reads the files back, the caller syncs them. It
// takes unknown configuration fields silently and checks a configuration when the VM boots, not when it is created.
package vmm

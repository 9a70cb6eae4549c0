// Package cluster keeps the replicated log: hashicorp/raft over a stream layer, with its entries and votes in a bbolt
// file and snapshots of the state machine beside it. A Node proposes commands, applies the committed ones to an
// fsm.State, and says of each proposal whether it is done, refused, certainly not applied, or unknown. A single voter
// takes the same path as several: the same transport, the same bootstrap, the same log.
//
// Nodes have one port for each other: mutual TLS, then Raft or calls (see port). A node that is not the leader sends
// what it is asked to the leader, once.
//
// It imports fsm, cluster/seal and the Raft libraries, and nothing else of this module.
//
// # Guarantees
//
//   - Apply that returns no error: the command is committed on a majority's disks and applied here; State shows it.
//   - Apply with KindUnavailable: the command is in no log and never will be. KindUnknown: it may be, now or later.
//   - A node serves as the leader only after a barrier in its term: it has applied all that was committed before.
//   - Apply and Linearizable wait for another node for IOTimeout at most, whatever their context allows.
//   - Nothing between nodes is in clear. Who shows no certificate of the cluster's CA is not listened to; a node is
//     taken for itself only by the id in its certificate.
//   - Linearizable gives a state at least as new as any command that was done before the call.
//   - An entry or a snapshot that this program does not know stops the node: it is never skipped, nor hidden in a
//     snapshot of its own. A leader proposes nothing that the program of a registered node does not know.
//   - What the leader alone decides (Tick, and what becomes of other nodes) ends with its term; a decision about a node
//     names the epoch that it was made at, and is refused at any other.
//   - A node founds a cluster only where all founders are there and none knows of one.
//   - A node that may have forgotten what it acknowledged votes for nobody until it has it again.
//   - A node that was removed is refused by every node that has applied the removal.
//
// # Not guaranteed
//
//   - State may lag behind on a node that is not the leader, and on a leader that was cut off and has not noticed.
//   - A disk that hangs without an error stalls proposals until their deadlines, for twice Config.StallTimeout; then
//     the node ends.
//
// # Choices against the library's defaults
//
// The transport takes no heartbeat fast path: in raft v1.8.0 it changes the term beside the main loop, and a leader
// that is just writing an entry can write it under a term that it does not hold, after which replicas differ. It sends
// one append request at a time to a peer: the pipeline can deadlock, and gains little within a data centre. Timeouts
// are three times the defaults, since a node shares its processors with the machines it runs.
package cluster

// Package fsm is the replicated state of Stillframe: organizations and keys, nodes, templates, sandboxes, snapshots
// with their names, intents and idempotency records. It is a pure state machine: Apply takes a State and a Command to
// the next State and a Result. It imports nothing of this module and has no clock, no I/O, no randomness and no
// iteration over Go maps, so that one log gives one state, byte for byte, on every node. Time comes from the
// command's Now, identifiers from its proposer.
//
// A State never changes. Its fields are immutable trees (see tree.go) that share structure with their predecessors, so
// a reader needs no lock, a snapshot is a pointer, and a refused command costs nothing. What a read returns shares
// memory with the state: callers must not write to its maps, slices and pointers.
//
// # Guarantees
//
// After every Apply, and after Read, these hold; Check tests them:
//
//  1. Every index is exactly what its table implies: none is part of the stream, all are rebuilt on Read.
//  2. A name maps to at most one snapshot of an organization, whatever the snapshot's state, and every snapshot has its
//     name in the index.
//  3. Sandbox.Intent is empty when State is stopped; when it is running, empty or an open set-policy intent; otherwise
//     an open intent of the kind that State names. An open intent is on that sandbox, with its Owner and Epoch.
//  4. Snapshot.Intent is empty exactly when State is ready; otherwise it is an open intent on that snapshot with its
//     Owner and Epoch. Manifest is set exactly when State is not creating.
//  5. Every open intent is the Intent of the things it names; a closed intent is never opened again.
//  6. Sandbox.Epoch and Snapshot.Epoch only grow, by one with each intent on them, and by one more when an intent is
//     closed without its owner (see MarkNode).
//  7. A node's use is the sum over what it holds (see Used) and an organization's counts are those of its things.
//  8. The intent that an idempotency record names is kept for as long as the record.
//  9. What a thing refers to exists: its organization, its owner, its template.
//  10. A closed intent holds no secret, sealed or not. What else the state holds of secrets is sealed by its proposers.
//  11. A node that is lost or removed has no open intents, and one that is removed holds nothing.
//
// # Not guaranteed
//
// Nothing here knows whether a node is alive, and nothing fails an intent by itself: the leader (MarkNode) and the
// owners (Complete) propose that. A thing that is gone from here may still be on a node that is lost. Proposers' clocks
// may disagree, and Now may go back from one command to the next: retention and timeouts are as good as those clocks.
package fsm

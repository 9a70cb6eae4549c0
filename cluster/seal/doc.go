// Package seal keeps the secrets of the replicated state from whoever reads the log, its snapshots or their backups:
// header values to inject, and the seeds of sandboxes' certificate authorities. They are sealed before they are
// proposed and opened by the node that needs them, with keys that are files beside the nodes' certificates and never
// enter the log. A ring holds several keys: values are sealed with one and opened with whichever sealed them.
//
// It imports fsm, for its types and error kinds.
//
// # Invariants
//
//   - A sealed value opens only for the organization and the place that it was sealed for: purpose, domain and header
//     name are authenticated with it. Whoever can write to the state cannot move a credential to a domain of theirs.
//   - No error, log line or String of this package holds a value or a key. Key ids are no secrets.
//   - A key is in a ring before any value is sealed with it: see key.UseAfter.
//   - A file of keys that others may read is refused.
//
// # Choices
//
// AES-256-GCM with random nonces of 96 bits, from the standard library: good for 2³² values under one key, which a
// cluster does not make between two rotations. Equal values give different sealed ones; what has to be compared (the
// hash of a request, for its idempotency key) is a MAC under a key of the same file instead.
package seal

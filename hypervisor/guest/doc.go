// Package guest is the language spoken between a node and the agent inside a sandbox's virtual machine: the wire types,
// and the client that the node uses.
//
// The agent is an HTTP/1.1 server on TCP port 1031 of the guest's address. Requests and answers are JSON, except the
// bodies of file reads and writes, which are raw bytes, and streamed command output, which is one JSON object a line.
// Every failure is an Error: a Code from a small fixed set and a message.
//
// The package imports the standard library only; it knows nothing of sandboxes as the control plane sees them, and it
// is linked into both the node's binary and the agent's.
//
// # Invariants
//
//   - No connection is used for two calls. A connection that lives through a snapshot exists, in the restored copy, on
//     one side only; a pool of such connections would hand out dead ones.
//   - A lost first packet never costs a second: connecting is repeated every few milliseconds, side by side with the
//     attempts already under way (see connect).
//   - A call either brings the agent's own answer, an *Error, or fails with an error that wraps ErrUnreachable; in the
//     last case the agent may or may not have done what was asked.
//
// # Not guaranteed
//
// The agent runs inside the sandbox, and whoever is root there can replace it. Its answers are the sandbox's word about
// itself, never a statement the node may base its own safety on.
package guest

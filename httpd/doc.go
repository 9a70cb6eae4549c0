// Package httpd is the HTTP door of a node: it authenticates, validates, hands what is asked to the replicated log or
// to the guest, waits, and answers in the wire format of openapi.yaml, which it also serves.
//
// It may import fsm (types, commands and error kinds) and netpolicy/policy (what a policy may say). It owns the
// interfaces Log, Guests, Policies and Secrets through which it reaches everything else, and imports no other package
// of this module.
//
// # Invariants
//
//   - Nothing is proposed that has not been validated, and every bad field of a request is named.
//   - Every read of an organization's things compares the organization: what belongs to another does not exist.
//   - An error has one fsm.Kind, and a kind has one status; the mapping is in errors.go and nowhere else.
//   - Secrets (API keys, header values, environment variables, command lines, file contents) are never logged and never
//     part of an error. API keys are looked up by their SHA-256 and not kept. Header values are sealed before they are
//     proposed, and answered as [redacted].
//   - No memory of the HTTP server outlives a handler. Fiber reuses its buffers unless told otherwise; New sets
//     Immutable, because one forgotten copy would let a later request rewrite what the log holds, and a copy costs
//     nothing beside an fsync.
//   - Every wait has a deadline, and a wait that ends says what state things are in.
//
// # Guarantees
//
// An Idempotency-Key makes a POST or PUT safe to repeat: the same key with the same request gives the same answer and
// one effect; with another request it gives a conflict. A request whose outcome is not known is answered as such
// (503), never as failed.
//
// # Not guaranteed
//
// A request goes on when its client hangs up: it ends at its own deadline. A key that was revoked through another
// node is refused once this node has applied the revocation. Answers longer than fsm.MaxKeptBody are not kept under
// an Idempotency-Key; a retry is told so. The bound on an organization's requests a minute is each node's own: spread
// over n nodes it is n times as high, and a node that restarts begins anew.
package httpd

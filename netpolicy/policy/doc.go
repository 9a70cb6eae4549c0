// Package policy is what an egress policy means: which names and addresses a sandbox may reach, and what is done to its
// requests on the way. It is pure: no sockets, no clock, no state. The API validates with it, the kernel's rules are
// made from it, and the gate decides with it, so that no two of them can read the same policy differently.
//
// It imports the standard library only.
//
// # Invariants
//
//   - There is one canonical form of a name (CanonicalName). A name that has none is never allowed, never resolved and
//     never dialled in mode custom; whatever compares names compares canonical ones.
//   - Compile gives equal plans for equal policies, and no plan at all for a policy that Validate finds fault with.
//   - A plan denies what no rule names. The zero Plan, and a nil one, deny everything.
//   - Nothing in a policy opens what a Floor denies.
//   - The values of injected headers are in no error, no String and no log value of this package.
package policy

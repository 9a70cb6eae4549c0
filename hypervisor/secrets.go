package hypervisor

import "stillframe/fsm"

// Secrets opens what the log holds sealed. The keys are the node's; the log has none of them. An error is an *fsm.Error
// that says which key is missing or that a value is damaged, and never holds a value.
type Secrets interface {
	// OpenPolicy gives a copy of a sandbox's policy with the values of injected headers in clear; nil for nil.
	OpenPolicy(org fsm.OrgID, p *fsm.NetworkPolicy) (*fsm.NetworkPolicy, error)
	// OpenCA gives the seed of a sandbox's certificate authority.
	OpenCA(org fsm.OrgID, sealed []byte) ([32]byte, error)
}

package cluster

import (
	"crypto/rand"
	"encoding/base32"

	"stillframe/fsm"
)

// idEncoding is base32 in lower case, so that an id is a DNS label.
var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// newID gives 128 random bits as 26 characters. crypto/rand cannot fail: it ends the process instead.
func newID(prefix string) string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	return prefix + "-" + idEncoding.EncodeToString(b[:])
}

// The makers of identifiers: unguessable, unique without coordination, and made by proposers only, for the state
// machine has no randomness.

// NewOrgID makes an organization's identifier.
func NewOrgID() fsm.OrgID { return fsm.OrgID(newID("org")) }

// NewKeyID makes an API key's identifier, which is no secret.
func NewKeyID() fsm.KeyID { return fsm.KeyID(newID("key")) }

// NewTemplateID makes a template's identifier.
func NewTemplateID() fsm.TemplateID { return fsm.TemplateID(newID("tpl")) }

// NewSandboxID makes a sandbox's identifier.
func NewSandboxID() fsm.SandboxID { return fsm.SandboxID(newID("sbx")) }

// NewSnapshotID makes a snapshot's identifier.
func NewSnapshotID() fsm.SnapshotID { return fsm.SnapshotID(newID("snap")) }

// NewIntentID makes an intent's identifier.
func NewIntentID() fsm.IntentID { return fsm.IntentID(newID("int")) }

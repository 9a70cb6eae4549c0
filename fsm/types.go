package fsm

import "time"

// Identifiers are distinct types so that the compiler tells them apart. All are made by the proposer (the state
// machine has no randomness): a prefix, a dash and 26 lower-case base32 characters, valid as a DNS label.
type (
	OrgID      string // org-…
	KeyID      string // key-…
	NodeID     string // a persisted UUID, never an address
	TemplateID string // tpl-…
	SandboxID  string // sbx-…
	SnapshotID string // snap-…
	IntentID   string // int-…
)

// Time is nanoseconds since the Unix epoch, UTC, always taken from a command and so from the proposer's clock.
type Time int64

// At converts a clock reading into a Time.
func At(t time.Time) Time { return Time(t.UnixNano()) }

// Std gives the time as a time.Time in UTC; the zero Time gives the zero time.Time.
func (t Time) Std() time.Time {
	if t == 0 {
		return time.Time{}
	}
	return time.Unix(0, int64(t)).UTC()
}

// Add moves the time by a duration.
func (t Time) Add(d time.Duration) Time { return t + Time(d) }

// Org is an organization: the owner of keys, sandboxes, snapshots and names.
type Org struct {
	ID        OrgID  `codec:"id"`
	Name      string `codec:"n"` // unique in the cluster
	CreatedAt Time   `codec:"c"`
	// MaxSandboxes and MaxSnapshots bound what the organization holds at once; 0 is no bound.
	MaxSandboxes int `codec:"ms,omitempty"`
	MaxSnapshots int `codec:"mn,omitempty"`
	// MaxRequests bounds the requests a minute that each node takes from it; 0 is no bound. Each node counts for itself.
	MaxRequests int `codec:"mr,omitempty"`
}

// APIKey is a credential of an organization. Only the SHA-256 of the secret is kept; the secret has 256 random bits, so
// a slow hash would add nothing.
type APIKey struct {
	ID        KeyID    `codec:"id"`
	Org       OrgID    `codec:"o"`
	Label     string   `codec:"l"`
	Hash      [32]byte `codec:"h"`
	CreatedAt Time     `codec:"c"`
	RevokedAt Time     `codec:"r,omitempty"` // zero while the key is good; never goes back to zero
}

// Capacity is what a node can hold: virtual CPUs (after the operator's overcommit factor), memory and disk in MiB.
type Capacity struct {
	VCPU      int   `codec:"v"`
	MemoryMiB int64 `codec:"m"`
	DiskMiB   int64 `codec:"d"`
}

// Node is a host of the cluster as it last described itself.
type Node struct {
	ID             NodeID   `codec:"id"`
	Name           string   `codec:"n"`
	APIAddr        string   `codec:"a"`
	Capacity       Capacity `codec:"cap"`
	VMM            string   `codec:"vm"`           // e.g. "cloud-hypervisor", "stillframe-devvmm"
	VMMVersion     string   `codec:"vv"`           // as the VMM reports it
	CPUFingerprint string   `codec:"cpu"`          // digest of what a guest can see of the CPU
	CloneMethod    string   `codec:"cm"`           // "reflink" or "copy": what the data folder's filesystem can do
	Level          int      `codec:"lv,omitempty"` // of its program (see Level); 0 is 1: older ones do not say
	// Templates are the digests of the images that the node has; empty: it has not said.
	Templates    []string `codec:"tp,omitempty"`
	Drained      bool     `codec:"dr,omitempty"` // takes no new sandboxes
	RegisteredAt Time     `codec:"r"`            // zero for a member that has not been here yet

	// What follows is the cluster's word, not the node's: RegisterNode leaves Addr, ends LostAt and moves Epoch.

	Addr      string `codec:"ra,omitempty"` // host:port for other nodes; empty: as the identity folders list it
	LostAt    Time   `codec:"lo,omitempty"` // when the leader gave it up; zero while it is there
	RemovedAt Time   `codec:"rm,omitempty"` // zero for a member; never goes back to zero
	// Epoch counts what changes whether the node is there: registrations but for the first, and every MarkNode.
	Epoch uint64 `codec:"ne,omitempty"`
}

// Template is a root filesystem from which sandboxes boot.
type Template struct {
	ID        TemplateID `codec:"id"`
	Org       OrgID      `codec:"o,omitempty"` // empty: a system template, visible to all
	Name      string     `codec:"n"`           // e.g. "system/debian:bookworm"
	Digest    string     `codec:"d"`           // "sha256:…" of the image file
	CreatedAt Time       `codec:"c"`
}

// NetworkPolicy is the egress policy of a sandbox, as in the HTTP contract.
type NetworkPolicy struct {
	Mode         string      `codec:"m" json:"mode"` // allow-all, deny-all, custom
	AllowDomains []string    `codec:"d,omitempty" json:"allow_domains,omitempty"`
	AllowCIDRs   []string    `codec:"c,omitempty" json:"allow_cidrs,omitempty"`
	Transforms   []Transform `codec:"t,omitempty" json:"transforms,omitempty"`
}

// Transform brokers credentials for a domain. The values of InjectHeaders are secrets: what the state holds is sealed
// with a key that is not in it.
type Transform struct {
	Domain        string            `codec:"d" json:"domain"`
	InjectHeaders map[string]string `codec:"i,omitempty" json:"inject_headers,omitempty"`
	StripHeaders  []string          `codec:"s,omitempty" json:"strip_headers,omitempty"`
}

// SandboxState is a state of the HTTP contract; clients reject any other word.
type SandboxState string

// The states that this version uses. A sandbox that is gone is not in the state machine at all.
const (
	SandboxStarting     SandboxState = "starting"     // create or restore intent open
	SandboxRunning      SandboxState = "running"      // no intent open, the VM runs
	SandboxSnapshotting SandboxState = "snapshotting" // snapshot intent open, the VM runs but for a short pause
	SandboxStopped      SandboxState = "stopped"      // the VM is gone; StateReason says why
	SandboxDeleting     SandboxState = "deleting"     // delete intent open
)

// Sandbox is one virtual machine that a client made.
type Sandbox struct {
	ID           SandboxID  `codec:"id"`
	Org          OrgID      `codec:"o"`
	Template     TemplateID `codec:"t"`
	TemplateName string     `codec:"tn"`
	// TemplateDigest is of the image that the sandbox booted from; a template may get another one later.
	TemplateDigest string            `codec:"tg"`
	Snapshot       SnapshotID        `codec:"sn,omitempty"` // restored from this one
	VCPU           int               `codec:"v"`
	MemoryMiB      int64             `codec:"m"`
	DiskMiB        int64             `codec:"d"`
	TimeoutSec     int64             `codec:"to"`
	AutoPause      bool              `codec:"ap,omitempty"`
	EnvVars        map[string]string `codec:"e,omitempty"`
	NetworkPolicy  *NetworkPolicy    `codec:"np,omitempty"` // nil means allow-all
	// PolicyNote says why NetworkPolicy is not what was last asked for; empty when it is.
	PolicyNote string `codec:"pn,omitempty"`
	// CA is the sealed seed of the CA that the guest trusts for transforms; the same in all that descends from a sandbox
	// by snapshots. Empty in what an older version made.
	CA          []byte       `codec:"ca,omitempty"`
	State       SandboxState `codec:"s"`
	StateReason string       `codec:"sr,omitempty"` // more about the state, for people
	Owner       NodeID       `codec:"ow"`
	Epoch       uint64       `codec:"ep"` // of the last intent on this sandbox; only grows
	// Intent is the open intent; empty when State is running or stopped, but for a running sandbox whose network policy
	// is being replaced.
	Intent     IntentID `codec:"in,omitempty"`
	CreatedAt  Time     `codec:"c"`
	UpdatedAt  Time     `codec:"u"`
	LaunchedAt Time     `codec:"l,omitempty"` // when it became running
	StateAt    Time     `codec:"sa"`          // when State last changed
	// TimeoutAt is LaunchedAt + TimeoutSec, or later after a failed deletion (see DeleteRetry); zero while starting.
	TimeoutAt Time `codec:"ta,omitempty"`
}

// SnapshotState says how far a snapshot is.
type SnapshotState string

// The states of a snapshot. A failed or deleted one is not in the state machine: its name is free, the reason is in
// the closed intent.
const (
	SnapshotCreating SnapshotState = "creating" // name reserved, data being taken; not listed, not restorable
	SnapshotReady    SnapshotState = "ready"    // data durable on Owner, manifest known
	SnapshotDeleting SnapshotState = "deleting" // not listed, not restorable; name still held until the data is gone
)

// File is one file of a snapshot's data.
type File struct {
	Name   string `codec:"n"` // relative to the snapshot's folder
	Size   int64  `codec:"s"` // bytes, apparent
	Stored int64  `codec:"a"` // bytes, allocated when taken
	Digest string `codec:"d"` // "xxh3:…" or "sha256:…" over the content, holes as zeros left out
}

// Manifest describes a snapshot's data. It is also stored beside the data, so that a folder explains itself.
type Manifest struct {
	Version        int    `codec:"v"`
	VMM            string `codec:"vm"`
	VMMVersion     string `codec:"vv"`
	CPUFingerprint string `codec:"cpu"`
	TemplateDigest string `codec:"td"`
	CloneMethod    string `codec:"cm"` // "reflink" or "copy": how memory and disk were kept
	PauseNanos     int64  `codec:"pn"` // how long the owner held the VM paused
	Files          []File `codec:"f"`
	TakenAt        Time   `codec:"ta"`
}

// Snapshot is one instant of a sandbox under one name.
type Snapshot struct {
	ID            SnapshotID        `codec:"id"`
	Org           OrgID             `codec:"o"`
	Name          string            `codec:"n"` // unique within Org from creating to gone
	Sandbox       SandboxID         `codec:"sb"`
	Template      TemplateID        `codec:"t"`
	TemplateName  string            `codec:"tn"`
	VCPU          int               `codec:"v"`
	MemoryMiB     int64             `codec:"m"`
	DiskMiB       int64             `codec:"d"`
	EnvVars       map[string]string `codec:"e,omitempty"`
	NetworkPolicy *NetworkPolicy    `codec:"np,omitempty"` // the sandbox's at that instant
	CA            []byte            `codec:"ca,omitempty"` // the sandbox's
	State         SnapshotState     `codec:"s"`
	Owner         NodeID            `codec:"ow"` // the node that holds the data; others may have copies
	Epoch         uint64            `codec:"ep"`
	// Intent is the open intent on this snapshot; empty exactly when State is ready.
	Intent    IntentID  `codec:"in,omitempty"`
	Manifest  *Manifest `codec:"mf,omitempty"` // set exactly when State is not creating
	CreatedAt Time      `codec:"c"`
}

// IntentKind is what an intent wants done.
type IntentKind string

// The kinds of intent; each has an ordered list of named steps in package hypervisor.
const (
	IntentCreate         IntentKind = "create"
	IntentRestore        IntentKind = "restore"
	IntentSnapshot       IntentKind = "snapshot"
	IntentDelete         IntentKind = "delete" // of a sandbox
	IntentDeleteSnapshot IntentKind = "delete-snapshot"
	IntentSetPolicy      IntentKind = "set-policy" // a running sandbox's network policy replaced
)

// IntentState is open until the owner (or its supersession) closes it; closed states are final.
type IntentState string

// The states of an intent.
const (
	IntentOpen   IntentState = "open"
	IntentDone   IntentState = "done"
	IntentFailed IntentState = "failed"
)

// Intent is work that the log asks of one node. It is the only way to tell a node what to do.
type Intent struct {
	ID       IntentID    `codec:"id"`
	Kind     IntentKind  `codec:"k"`
	Org      OrgID       `codec:"o"`
	Sandbox  SandboxID   `codec:"sb,omitempty"`
	Snapshot SnapshotID  `codec:"sn,omitempty"`
	Owner    NodeID      `codec:"ow"` // the node that does the work
	Epoch    uint64      `codec:"ep"` // must be repeated by the completion; a different one is superseded
	State    IntentState `codec:"s"`
	// KillAfter: a snapshot intent that, done, deletes its sandbox (by a delete intent that its completion opens).
	KillAfter bool `codec:"ka,omitempty"`
	// NetworkPolicy is what a set-policy intent is to put in force, and of no other kind. The values of its headers go
	// when it is closed.
	NetworkPolicy *NetworkPolicy `codec:"np,omitempty"`
	Error         *Error         `codec:"er,omitempty"` // set exactly when failed
	// ResultSandbox and ResultSnapshot are copies as of the closing, so that a retry is answered the same for as long
	// as the intent is kept, whatever has happened since. They hold no secrets, sealed or not.
	ResultSandbox  *Sandbox  `codec:"rs,omitempty"`
	ResultSnapshot *Snapshot `codec:"rn,omitempty"`
	CreatedAt      Time      `codec:"c"`
	ClosedAt       Time      `codec:"cl,omitempty"`
	KeepUntil      Time      `codec:"ku"` // a closed intent goes at the first Tick after this
}

// RequestRecord is what an idempotency key stands for within an organization.
type RequestRecord struct {
	Org       OrgID     `codec:"o"`
	Key       string    `codec:"k"`
	BodyHash  [32]byte  `codec:"h"`            // over method, path and body
	Intent    IntentID  `codec:"in,omitempty"` // the intent it opened, or
	Error     *Error    `codec:"er,omitempty"` // the refusal it met, or
	Response  *Response `codec:"rp,omitempty"` // the answer of a data call; nil while that is under way
	CreatedAt Time      `codec:"c"`
	ExpiresAt Time      `codec:"x"`
}

// Response is a kept HTTP answer of a data call (a command, a file).
type Response struct {
	Status      int    `codec:"s"`
	TooLarge    bool   `codec:"tl,omitempty"`
	ContentType string `codec:"c"`
	Body        []byte `codec:"b"` // at most MaxKeptBody bytes; nil with TooLarge when the answer was longer
}

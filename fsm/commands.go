package fsm

// Command is one entry of the replicated log. Each concrete type below is one; Encode and Decode carry them with a
// type tag and a version. Every command carries the proposer's clock reading in Now; the state machine has no other.
type Command interface{ commandType() CommandType }

// CommandType tags a command in the log. A number, once used, keeps its meaning for ever.
type CommandType uint8

// The command types.
const (
	TypePutOrg CommandType = iota + 1
	TypePutKey
	TypeRevokeKey
	TypeRegisterNode
	TypePutTemplate
	TypeCreateSandbox
	TypeRestoreSnapshot
	TypeCreateSnapshot
	TypeDeleteSandbox
	TypeDeleteSnapshot
	TypeComplete
	TypeReportStopped
	TypeBeginRequest
	TypeFinishRequest
	TypeTick
)

// Request identifies the client's request behind a command, for answering a retry the same. The zero Request means
// that the client gave no Idempotency-Key.
type Request struct {
	Key      string   `codec:"k,omitempty"` // 1–255 visible ASCII characters
	BodyHash [32]byte `codec:"h"`
}

// PutOrg makes an organization, or changes the name and the limits of the one with the same ID. A name in use by
// another: conflict.
type PutOrg struct {
	Now Time `codec:"now"`
	Org Org  `codec:"org"`
}

// PutKey adds an API key to an organization. An ID or a hash in use: conflict.
type PutKey struct {
	Now Time   `codec:"now"`
	Key APIKey `codec:"key"`
}

// RevokeKey ends a key. Repeating it changes nothing and is no error.
type RevokeKey struct {
	Now Time  `codec:"now"`
	ID  KeyID `codec:"id"`
}

// RegisterNode makes a node known or replaces what it says of itself (its Drained flag stays as it was).
type RegisterNode struct {
	Now  Time `codec:"now"`
	Node Node `codec:"node"`
}

// PutTemplate registers a template or a new digest under a system template's name. The ID of a name never changes:
// with a name that is known, Template.ID is ignored. Result.Template says which one it is.
type PutTemplate struct {
	Now      Time     `codec:"now"`
	Template Template `codec:"t"`
}

// CreateSandbox opens a create intent. The state machine checks limits, finds the template, assigns the owner (see
// place) and epoch 1; the sandbox is starting.
type CreateSandbox struct {
	Now           Time              `codec:"now"`
	Request       Request           `codec:"rq"`
	Intent        IntentID          `codec:"in"`
	Org           OrgID             `codec:"o"`
	Sandbox       SandboxID         `codec:"sb"`
	TemplateName  string            `codec:"tn"`
	VCPU          int               `codec:"v"`
	MemoryMiB     int64             `codec:"m"`
	DiskMiB       int64             `codec:"d"`
	TimeoutSec    int64             `codec:"to"`
	AutoPause     bool              `codec:"ap,omitempty"`
	EnvVars       map[string]string `codec:"e,omitempty"`
	NetworkPolicy *NetworkPolicy    `codec:"np,omitempty"` // header values sealed
	CA            []byte            `codec:"ca,omitempty"` // see Sandbox.CA
}

// RestoreSnapshot opens a restore intent on a new sandbox. Only a ready snapshot of the same organization restores.
// The owner is the node that holds the data or, where that cannot take it, one that can (see placeRestore). CA is for
// a snapshot that has none; one that has keeps its own.
type RestoreSnapshot struct {
	Now           Time           `codec:"now"`
	Request       Request        `codec:"rq"`
	Intent        IntentID       `codec:"in"`
	Org           OrgID          `codec:"o"`
	Sandbox       SandboxID      `codec:"sb"`
	SnapshotName  string         `codec:"sn"`
	TimeoutSec    int64          `codec:"to"`
	AutoPause     bool           `codec:"ap,omitempty"`
	NetworkPolicy *NetworkPolicy `codec:"np,omitempty"` // nil: the snapshot's
	CA            []byte         `codec:"ca,omitempty"`
}

// CreateSnapshot opens a snapshot intent and reserves the name. The sandbox must be running. With an empty Name the
// GeneratedName is used, made unique by a numeric suffix where it is taken, so that it is never a reason for a
// conflict.
type CreateSnapshot struct {
	Now           Time       `codec:"now"`
	Request       Request    `codec:"rq"`
	Intent        IntentID   `codec:"in"`
	Org           OrgID      `codec:"o"`
	Sandbox       SandboxID  `codec:"sb"`
	Snapshot      SnapshotID `codec:"sn"`
	Name          string     `codec:"n,omitempty"`
	GeneratedName string     `codec:"g"`
	KillAfter     bool       `codec:"ka,omitempty"`
}

// DeleteSandbox opens a delete intent on a running or stopped sandbox. In any other state: conflict.
type DeleteSandbox struct {
	Now     Time      `codec:"now"`
	Intent  IntentID  `codec:"in"`
	Org     OrgID     `codec:"o"`
	Sandbox SandboxID `codec:"sb"`
}

// DeleteSnapshot opens a delete-snapshot intent on a ready snapshot that no existing sandbox was restored from.
type DeleteSnapshot struct {
	Now      Time       `codec:"now"`
	Intent   IntentID   `codec:"in"`
	Org      OrgID      `codec:"o"`
	Snapshot SnapshotID `codec:"sn"`
}

// Complete closes an intent with its outcome. It is refused with KindSuperseded unless the intent is open and Owner and
// Epoch are its own. Error nil means done. What done and failed mean, by kind:
//
//	create, restore   done: sandbox running, TimeoutAt set      failed: sandbox gone
//	snapshot          done: snapshot ready with Manifest         failed: snapshot gone, name free; in both cases the
//	                  sandbox is running again, or stopped when SandboxStopped says that its VM was lost
//	delete            done: sandbox gone                         failed: sandbox stopped, reason kept; may be retried
//	delete-snapshot   done: snapshot gone, name free             failed: snapshot ready again
//	set-policy        done: the policy is the sandbox's          failed: the one before is, or deny-all when
//	                  PolicyFellBack says that it could not be kept up; in both cases the sandbox is running, or
//	                  stopped when SandboxStopped says that its VM was lost
//
// A done snapshot intent with KillAfter opens a delete intent with the ID NextIntent, and is refused without one.
type Complete struct {
	Now            Time      `codec:"now"`
	Intent         IntentID  `codec:"in"`
	Owner          NodeID    `codec:"ow"`
	Epoch          uint64    `codec:"ep"`
	Error          *Error    `codec:"er,omitempty"`
	Manifest       *Manifest `codec:"mf,omitempty"`
	SandboxStopped string    `codec:"ss,omitempty"` // why the sandbox's VM is gone; empty: it runs
	NextIntent     IntentID  `codec:"ni,omitempty"`
	// PolicyFellBack: of a set-policy intent that failed, that neither the new policy nor the one before it is in force,
	// and nothing is let through.
	PolicyFellBack bool `codec:"pf,omitempty"`
}

// ReportStopped is the owner's word that a running sandbox has lost its VM: the sandbox is stopped, with the reason,
// and the replacement of its network policy, where one is under way, has failed. Refused as superseded when the
// sandbox is not running or Owner and Epoch are not its own.
type ReportStopped struct {
	Now     Time      `codec:"now"`
	Sandbox SandboxID `codec:"sb"`
	Owner   NodeID    `codec:"ow"`
	Epoch   uint64    `codec:"ep"`
	Reason  string    `codec:"r"`
}

// BeginRequest reserves an idempotency key for a data call. Result.Request is the record as it is now; Result.Replayed
// says that it was there already: with a Response, answer that; without, the first attempt's outcome is not known.
type BeginRequest struct {
	Now     Time    `codec:"now"`
	Org     OrgID   `codec:"o"`
	Request Request `codec:"rq"`
}

// FinishRequest keeps the answer of a data call under its idempotency key.
type FinishRequest struct {
	Now      Time     `codec:"now"`
	Org      OrgID    `codec:"o"`
	Key      string   `codec:"k"`
	Response Response `codec:"rp"`
}

// Tick lets time pass: sandboxes beyond their TimeoutAt get a delete intent (IDs are taken from IntentIDs in the order
// of sandbox IDs; where they do not suffice, the rest waits for the next Tick), closed intents beyond KeepUntil and
// request records beyond ExpiresAt are dropped, and intents open for longer than IntentDeadline are left alone: to fail
// them is for the leader's liveness rules, which know whether the owner is gone.
type Tick struct {
	Now       Time       `codec:"now"`
	IntentIDs []IntentID `codec:"in,omitempty"`
}

func (PutOrg) commandType() CommandType          { return TypePutOrg }
func (PutKey) commandType() CommandType          { return TypePutKey }
func (RevokeKey) commandType() CommandType       { return TypeRevokeKey }
func (RegisterNode) commandType() CommandType    { return TypeRegisterNode }
func (PutTemplate) commandType() CommandType     { return TypePutTemplate }
func (CreateSandbox) commandType() CommandType   { return TypeCreateSandbox }
func (RestoreSnapshot) commandType() CommandType { return TypeRestoreSnapshot }
func (CreateSnapshot) commandType() CommandType  { return TypeCreateSnapshot }
func (DeleteSandbox) commandType() CommandType   { return TypeDeleteSandbox }
func (DeleteSnapshot) commandType() CommandType  { return TypeDeleteSnapshot }
func (Complete) commandType() CommandType        { return TypeComplete }
func (ReportStopped) commandType() CommandType   { return TypeReportStopped }
func (BeginRequest) commandType() CommandType    { return TypeBeginRequest }
func (FinishRequest) commandType() CommandType   { return TypeFinishRequest }
func (Tick) commandType() CommandType            { return TypeTick }

// Result is what applying a command answers. Err is a deterministic refusal; with it the state is unchanged, but for
// the record that a refused request under an idempotency key leaves.
type Result struct {
	Err      *Error
	Replayed bool     // the idempotency key was known: Intent (or Request) is the first attempt's
	Intent   Intent   // of the commands that open or close one; of a superseded completion, as it is
	Template Template // of PutTemplate
	Request  RequestRecord
}

// Retention, all measured on the proposers' clocks.
const (
	// RequestRetention is how long an idempotency key is remembered.
	RequestRetention = 24 * 3600 * 1e9 // nanoseconds
	// IntentRetention is how long a closed intent without an idempotency key is kept for its waiting handler.
	IntentRetention = 600 * 1e9 // nanoseconds
	// MaxKeptBody bounds a kept response in bytes: log entries above 64 KiB make heartbeats late.
	MaxKeptBody = 32 << 10
)

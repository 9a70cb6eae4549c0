package httpd

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"time"

	"stillframe/fsm"
)

// Log is the replicated log as the handlers use it.
type Log interface {
	// Apply proposes a command and waits until it is applied. A refusal is an *fsm.Error. KindUnknown: it may or may not
	// have been applied. KindUnavailable: certainly not.
	Apply(ctx context.Context, cmd fsm.Command) (fsm.Result, error)
	// State is the latest state that this node has applied.
	State() *fsm.State
	// WaitIntent waits until the intent is closed, or ctx ends (KindTimeout).
	WaitIntent(ctx context.Context, id fsm.IntentID) (fsm.Intent, error)
	// Linearizable is a state that holds everything acknowledged before the call.
	Linearizable(ctx context.Context) (*fsm.State, error)
	// StateAsOf is the latest state that this node has applied, the position of its last entry, and the latest instant up
	// to which everything acknowledged is known to be in it; the zero time: no instant is known. It waits for nobody.
	StateAsOf() (*fsm.State, uint64, time.Time)
}

// Guests reaches the agent inside a running sandbox, wherever it runs. Failures that the agent reports are *GuestError;
// an error that wraps ErrGuestUnreachable brought no answer, so what was asked may or may not have been done. An
// *fsm.Error is answered as it is. The sandbox is known to exist and to be running when a call begins.
type Guests interface {
	Exec(ctx context.Context, id fsm.SandboxID, req ExecRequest) (ExecResult, error)
	// ReadFile opens a part of a file; the caller closes it. An error of Read is a failure, never the end of the file.
	ReadFile(ctx context.Context, id fsm.SandboxID, req ReadFileRequest) (io.ReadCloser, error)
	// WriteFile replaces a file's contents in one step. A zero perm keeps the permissions of a file that is there.
	WriteFile(ctx context.Context, id fsm.SandboxID, path string, perm fs.FileMode, contents io.Reader) error
	Ls(ctx context.Context, id fsm.SandboxID, req LsRequest) ([]FileInfo, error)
	Stat(ctx context.Context, id fsm.SandboxID, path string) (FileInfo, error)
	Exists(ctx context.Context, id fsm.SandboxID, path string) (bool, error)
	Mkdir(ctx context.Context, id fsm.SandboxID, req MkdirRequest) error
	Delete(ctx context.Context, id fsm.SandboxID, req DeleteRequest) error
	Move(ctx context.Context, id fsm.SandboxID, req TransferRequest) error
	Copy(ctx context.Context, id fsm.SandboxID, req TransferRequest) error
}

// Policies asks the node on which a sandbox runs about the network policy in force there. Errors are *fsm.Error. The
// sandbox is known to exist and to be running when a call begins.
type Policies interface {
	// Log gives the last decisions, the newest last, at most limit.
	Log(ctx context.Context, id fsm.SandboxID, limit int) ([]PolicyDecision, error)
	// Check says what would become of a connection to a host name in canonical form, or to an address.
	Check(ctx context.Context, id fsm.SandboxID, host string, port uint16) (PolicyDecision, error)
}

// PolicyDecision is what a network policy decided, or would decide, about a connection or a query of a sandbox. It is
// also the answer's JSON. It holds no header values and no contents.
type PolicyDecision struct {
	Time     string `json:"time,omitempty"` // when it was taken; empty for one that was only asked about
	Action   string `json:"action"`         // allow, transform or deny
	Rule     string `json:"rule"`           // what decided
	Reason   string `json:"reason,omitempty"`
	Protocol string `json:"protocol,omitempty"`
	Name     string `json:"name,omitempty"`
	Address  string `json:"address,omitempty"`
	Sent     int64  `json:"bytes_sent"`     // from the sandbox
	Received int64  `json:"bytes_received"` // to the sandbox
}

// Secrets seals what must not be in the log in clear, for the node that will need it. Errors are *fsm.Error, and hold
// no secret.
type Secrets interface {
	// SealPolicy gives a copy of a policy with the values of its injected headers sealed.
	SealPolicy(org fsm.OrgID, p *fsm.NetworkPolicy) (*fsm.NetworkPolicy, error)
	// NewCA makes the sealed seed of a certificate authority.
	NewCA(org fsm.OrgID) ([]byte, error)
	// RequestHash makes of a hash over secrets one that does not help in guessing them; the same on every node.
	RequestHash(hash [32]byte) [32]byte
}

// Resealed is how sealing the state's secrets anew ended. It is also the answer's JSON.
type Resealed struct {
	Key   string `json:"key"`   // with which everything is sealed now
	Count int    `json:"count"` // of values that were sealed anew by this call
}

// ErrGuestUnreachable is wrapped by errors of Guests that brought no answer.
var ErrGuestUnreachable = errors.New("the sandbox's agent did not answer")

// GuestCode says what kind of failure the agent met.
type GuestCode string

// The codes of GuestError. One that is not known counts as internal.
const (
	GuestNotFound     GuestCode = "not_found"
	GuestIsDirectory  GuestCode = "is_directory"
	GuestNotDirectory GuestCode = "not_directory"
	GuestPermission   GuestCode = "permission"
	GuestExists       GuestCode = "exists"
	GuestInvalid      GuestCode = "invalid"
	GuestTimeout      GuestCode = "timeout"
	GuestInternal     GuestCode = "internal"
)

// GuestError is a failure inside a sandbox, as its agent tells it. The message is for the client.
type GuestError struct {
	Code    GuestCode
	Message string
}

func (e *GuestError) Error() string { return e.Message }

// ExecRequest is a shell command line to run.
type ExecRequest struct {
	Command   string
	Cwd       string            // empty: the agent's default
	Env       map[string]string // on top of the sandbox's
	Timeout   time.Duration
	MaxOutput int64 // bytes of stdout, and of stderr
}

// ExecResult is how a command ended.
type ExecResult struct {
	ExitCode        int // or 128 plus the number of the signal that ended it
	TimedOut        bool
	Stdout          []byte
	Stderr          []byte
	StdoutTruncated bool
	StderrTruncated bool
}

// ReadFileRequest selects a part of a file, by bytes or by lines; nil is not asked for.
type ReadFileRequest struct {
	Path                      string
	Offset, Limit, Head, Tail *uint64
}

// LsRequest lists a directory. Exclude holds glob patterns.
type LsRequest struct {
	Path      string
	Recursive bool
	Exclude   []string
}

// MkdirRequest makes a directory; Permissions is octal, empty for the agent's default.
type MkdirRequest struct {
	Path        string
	Recursive   bool
	Permissions string
}

// DeleteRequest removes what is at a path.
type DeleteRequest struct {
	Path      string
	Recursive bool
}

// TransferRequest is a move or a copy; Recursive is for copies.
type TransferRequest struct {
	Src, Dst             string
	Recursive, Overwrite bool
}

// FileInfo describes a file; a symbolic link is not followed. It is also the answer's JSON.
type FileInfo struct {
	Name       string `json:"name"`
	Path       string `json:"path"`
	IsDir      bool   `json:"is_dir"`
	Size       int64  `json:"size"`  // bytes
	Mode       string `json:"mode"`  // octal, e.g. "755"
	MTime      int64  `json:"mtime"` // Unix seconds
	Owner      string `json:"owner"`
	Group      string `json:"group"`
	IsSymlink  bool   `json:"is_symlink"`
	LinkTarget string `json:"link_target,omitempty"`
}

// NodeStatus is what a node tells of itself at GET /v1/node.
type NodeStatus struct {
	ID          fsm.NodeID   `json:"id"`
	Name        string       `json:"name"`
	Version     string       `json:"version"` // of this program
	VMM         VMMStatus    `json:"vmm"`
	CloneMethod string       `json:"clone_method"` // "reflink" or "copy"
	Egress      EgressStatus `json:"egress"`
}

// EgressStatus says whether a node can keep network policies in force. One that cannot starts no sandbox.
type EgressStatus struct {
	Enforced bool   `json:"enforced"`
	Reason   string `json:"reason,omitempty"` // why not
	Pool     string `json:"pool"`             // of sandboxes' addresses, in CIDR form
}

// VMMStatus says which virtual machine monitor a node uses.
type VMMStatus struct {
	Kind    string `json:"kind"` // e.g. "cloud-hypervisor", "stillframe-devvmm"
	Binary  string `json:"binary"`
	Version string `json:"version"` // as the VMM reports it
	Reason  string `json:"reason"`  // why this one was chosen
}

// ClusterStatus is the cluster as one node sees it, for GET /v1/cluster.
type ClusterStatus struct {
	Node   fsm.NodeID    `json:"node"`   // that answers
	Leader fsm.NodeID    `json:"leader"` // as far as it knows; empty: none
	Nodes  []ClusterNode `json:"nodes"`
}

// ClusterNode is a member of the cluster. What it says of itself (Role to Digest) is there when it is Reachable.
type ClusterNode struct {
	ID            fsm.NodeID      `json:"id"`
	Name          string          `json:"name"`
	APIAddr       string          `json:"api_addr"`
	Voter         bool            `json:"voter"`
	Leader        bool            `json:"leader"`
	Drained       bool            `json:"drained"`
	Lost          bool            `json:"lost"` // the leader has given it up: it has been silent for a lease
	Reachable     bool            `json:"reachable"`
	LastContactMS *int64          `json:"last_contact_ms"` // since the answering node heard it; nil: not since it started
	Role          string          `json:"role,omitempty"`  // follower, candidate, leader or shutdown
	Term          uint64          `json:"term,omitempty"`
	AppliedIndex  uint64          `json:"applied_index,omitempty"`
	Position      uint64          `json:"position,omitempty"` // the last entry that its state machine took
	Digest        string          `json:"digest,omitempty"`   // of its state at Position, where asked for
	Sandboxes     int             `json:"sandboxes"`
	Snapshots     int             `json:"snapshots"`
	Total         ClusterCapacity `json:"total"`
	Free          ClusterCapacity `json:"free"`
	VMM           string          `json:"vmm"`
	VMMVersion    string          `json:"vmm_version"`
	CloneMethod   string          `json:"clone_method"`
	Version       string          `json:"version,omitempty"` // of this program
	// SkewMS is how far the node's clock is ahead of the answering node's, known to half of TripMS.
	SkewMS float64 `json:"skew_ms"`
	TripMS float64 `json:"trip_ms"`
}

// ClusterCapacity is what a node promises to sandboxes, or has left of it. Memory and disk are MiB.
type ClusterCapacity struct {
	VCPU   int   `json:"vcpu"`
	Memory int64 `json:"memory"`
	Disk   int64 `json:"disk"`
}

package guest

import "time"

// The fixed addresses of every sandbox's network; each sandbox has a network namespace of its own, so they never
// collide, and a restored guest finds them as it left them.
const (
	HostIP   = "10.111.0.1"
	GuestIP  = "10.111.0.2"
	Port     = 1031 // TCP, the agent
	Addr     = "10.111.0.2:1031"
	HostMAC  = "02:5f:00:00:00:01" // tap0, in the sandbox's namespace
	GuestMAC = "02:5f:00:00:00:02" // eth0, in the guest

	// ClockPort is the UDP port of the host's clock, see the package clock.
	ClockPort = 123
)

// Bounds that both sides keep.
const (
	DefaultExecTimeout = 30 * time.Second
	MaxExecTimeout     = 8 * time.Hour
	// DefaultMaxOutput is how many bytes of stdout, and of stderr, an answer carries unless the request says less or more.
	DefaultMaxOutput = 8 << 20
	// MaxOutputLimit is the most a request may ask for: the agent holds it in the guest's memory.
	MaxOutputLimit = 64 << 20
	// SeedSize is the number of random bytes that SetIdentity must bring.
	SeedSize = 64
	// MaxRequestBody bounds JSON requests, in bytes; file contents are not counted.
	MaxRequestBody = 4 << 20
)

// Paths of the agent's calls.
const (
	PathHealth     = "/v1/health"
	PathIdentity   = "/v1/identity"
	PathExec       = "/v1/exec"
	PathExecStream = "/v1/exec/stream"
	PathExecKill   = "/v1/exec/kill"
	PathRead       = "/v1/files/read"
	PathWrite      = "/v1/files/write" // ?path=…&permissions=…
	PathLs         = "/v1/files/ls"
	PathStat       = "/v1/files/stat"
	PathExists     = "/v1/files/exists"
	PathMkdir      = "/v1/files/mkdir"
	PathDelete     = "/v1/files/delete"
	PathMove       = "/v1/files/move"
	PathCopy       = "/v1/files/copy"
)

// Health is what the agent says of itself.
type Health struct {
	Version   string `json:"version"`
	SandboxID string `json:"sandbox_id"` // empty until the first SetIdentity
	BootID    string `json:"boot_id"`    // the kernel's; the same in a guest and in its restored copies
	// UptimeMS is the kernel's CLOCK_BOOTTIME in milliseconds when the answer was written.
	UptimeMS int64 `json:"uptime_ms"`
	// Generation counts the identities taken since boot: 0 before the first.
	Generation int `json:"generation"`
	// Boot says when the steps of booting were done, in milliseconds of the same clock, in order.
	Boot []BootStep `json:"boot,omitempty"`
}

// BootStep is a named step of the guest's start and when it was done.
type BootStep struct {
	Name string `json:"name"`
	AtMS int64  `json:"at_ms"`
}

// Identity is what makes a guest this sandbox and no other.
type Identity struct {
	// SandboxID becomes the host name and the source of the machine id; it must be a DNS label.
	SandboxID string `json:"sandbox_id"`
	// UnixNano is the time to set, nanoseconds since the epoch. The client fills it in right before sending when zero.
	UnixNano int64 `json:"unix_nano"`
	// Seed is SeedSize fresh random bytes for the kernel's generator. The client fills it in when empty. It is secret.
	Seed []byte `json:"seed"`
	// Env is set for every command from now on. Nil keeps what is set (a restored guest keeps its source's); an empty
	// map clears it.
	Env map[string]string `json:"env"`
	// CAPEM is the certificate, in PEM form, of an authority that the guest's programs are to trust from now on, in place
	// of the one of an earlier call. Empty keeps what is set.
	CAPEM string `json:"ca_pem,omitempty"`
}

// IdentityResult says what SetIdentity changed.
type IdentityResult struct {
	SandboxID  string `json:"sandbox_id"`
	Hostname   string `json:"hostname"`
	MachineID  string `json:"machine_id"`
	Changed    bool   `json:"changed"`       // false when the guest had this id already
	ClockStep  int64  `json:"clock_step_ns"` // how far the clock was moved, nanoseconds, negative for backwards
	SeedBytes  int    `json:"seed_bytes"`    // mixed into the kernel's generator and credited
	Reseeded   bool   `json:"reseeded"`      // the generator took the seed into use before the answer
	Generation int    `json:"generation"`
	CA         string `json:"ca,omitempty"` // SHA-256 of the installed CAPEM, in hexadecimal
}

// ExecRequest is a command to run. Exactly one of Argv and Command is set.
type ExecRequest struct {
	// ID names the run so that it can be killed; the client makes one when empty.
	ID      string            `json:"id,omitempty"`
	Argv    []string          `json:"argv,omitempty"`
	Command string            `json:"command,omitempty"` // for /bin/sh -c
	Cwd     string            `json:"cwd,omitempty"`     // absolute; default /home/user where that exists, else /
	Env     map[string]string `json:"env,omitempty"`     // on top of the sandbox's
	// Timeout, in nanoseconds on the wire; 0 means DefaultExecTimeout. Then the whole process group is killed.
	Timeout time.Duration `json:"timeout_ns,omitempty"`
	// MaxOutput bounds stdout and stderr each, in bytes; 0 means DefaultMaxOutput. The rest is read and dropped, so
	// that the command never blocks on a full pipe.
	MaxOutput int64 `json:"max_output,omitempty"`
}

// ExecResult is how a command ended.
type ExecResult struct {
	// ExitCode is the command's, or 128 plus the number of the signal that ended it.
	ExitCode int `json:"exit_code"`
	// Signal is the number of the signal that ended it, else 0.
	Signal int `json:"signal,omitempty"`
	// TimedOut: the command was killed at its timeout; the output is what it had written by then.
	TimedOut bool `json:"timed_out,omitempty"`
	// Killed: the command was killed by a kill call (which the client sends when its context ends).
	Killed          bool          `json:"killed,omitempty"`
	Stdout          []byte        `json:"stdout,omitempty"` // empty in the result of a stream
	Stderr          []byte        `json:"stderr,omitempty"`
	StdoutTruncated bool          `json:"stdout_truncated,omitempty"`
	StderrTruncated bool          `json:"stderr_truncated,omitempty"`
	Duration        time.Duration `json:"duration_ns"` // by the guest's monotonic clock
}

// ExecEvent is one line of a streamed run: exactly one field is set, and the last line has Result or Error.
type ExecEvent struct {
	Stdout []byte      `json:"stdout,omitempty"`
	Stderr []byte      `json:"stderr,omitempty"`
	Result *ExecResult `json:"result,omitempty"`
	Error  *Error      `json:"error,omitempty"`
}

// ExecKillRequest asks to kill the process group of a run; one that is over or unknown is not an error.
type ExecKillRequest struct {
	ID string `json:"id"`
}

// FileInfo describes a file as lstat(2) sees it: a symbolic link is described, not followed.
type FileInfo struct {
	Name       string `json:"name"`
	Path       string `json:"path"`
	IsDir      bool   `json:"is_dir"`
	Size       int64  `json:"size"`  // bytes
	Mode       string `json:"mode"`  // permission bits in octal, e.g. "755"
	MTime      int64  `json:"mtime"` // Unix seconds
	Owner      string `json:"owner"` // name, or the number where the guest has no name for it
	Group      string `json:"group"`
	IsSymlink  bool   `json:"is_symlink"`
	LinkTarget string `json:"link_target,omitempty"`
}

// ReadFileRequest selects a part of a file: by bytes (Offset, Limit) or by lines (Head or Tail), not both kinds.
// Nil means not asked for; a Limit, Head or Tail of 0 gives nothing.
type ReadFileRequest struct {
	Path   string  `json:"path"`
	Offset *uint64 `json:"offset,omitempty"`
	Limit  *uint64 `json:"limit,omitempty"`
	Head   *uint64 `json:"head,omitempty"`
	Tail   *uint64 `json:"tail,omitempty"`
}

// LsRequest lists a directory, sorted by path. Exclude patterns are matched (path.Match) against each entry's name and
// against its path relative to Path; an excluded directory is not entered. Recursive does not follow links.
type LsRequest struct {
	Path      string   `json:"path"`
	Recursive bool     `json:"recursive,omitempty"`
	Exclude   []string `json:"exclude,omitempty"`
}

// LsResponse is the listing.
type LsResponse struct {
	Items []FileInfo `json:"items"`
}

// PathRequest names a path, for stat and exists.
type PathRequest struct {
	Path string `json:"path"`
}

// ExistsResponse answers whether something, a dangling link too, is at the path.
type ExistsResponse struct {
	Exists bool `json:"exists"`
}

// MkdirRequest makes a directory. With Recursive, parents are made and an existing directory is no error.
type MkdirRequest struct {
	Path        string `json:"path"`
	Recursive   bool   `json:"recursive,omitempty"`
	Permissions string `json:"permissions,omitempty"` // octal, default 755
}

// DeleteRequest removes a file, a link, or an empty directory; with Recursive a directory and what is in it.
type DeleteRequest struct {
	Path      string `json:"path"`
	Recursive bool   `json:"recursive,omitempty"`
}

// TransferRequest is a move or a copy. Without Overwrite an existing destination is CodeExists. Recursive is for
// copies: without it a directory is CodeIsDirectory.
type TransferRequest struct {
	Src       string `json:"src_path"`
	Dst       string `json:"dst_path"`
	Recursive bool   `json:"recursive,omitempty"`
	Overwrite bool   `json:"overwrite,omitempty"`
}

// Package job is what labrun (on the host) and labinit (inside the emulated machine) agree on: the description of one
// command to run, and the names of the disks and ports between the two sides. It imports only the standard library.
package job

import "time"

// Serial numbers by which labinit finds its disks, whatever order the kernel names them in.
const (
	RootDisk    = "lab-root"    // ext4, the Debian tree; writes are thrown away
	JobDisk     = "lab-job"     // ext4, read-only: File and what was brought in
	ScratchDisk = "lab-scratch" // empty; present when Job.ScratchMount is set
)

// Names of the virtio-serial ports. Every one carries bytes from the machine to the host only.
const (
	StdoutPort  = "lab.stdout"
	StderrPort  = "lab.stderr"
	ControlPort = "lab.control" // a stream of JSON Reports
	CollectPort = "lab.collect" // a tar stream of Job.Collect, written after the command has ended
)

// File is the path of the JSON form of a Job on the job disk; Files is the folder of what was brought in.
const (
	File  = "job.json"
	Files = "files"
)

// ExitTimeout is the exit code of a run whose time was over.
const ExitTimeout = 124

// A Job is one command with what it needs around it.
type Job struct {
	// Argv is the command; Argv[0] is looked up in the machine's PATH.
	Argv []string `json:"argv"`
	// Env is added to a minimal environment, as KEY=VALUE.
	Env []string `json:"env,omitempty"`
	// Dir is the working directory; empty means /root.
	Dir string `json:"dir,omitempty"`
	// Modules are loaded before the command starts.
	Modules []string `json:"modules,omitempty"`
	// Binds make what was brought in appear, read-only, at absolute paths.
	Binds []Bind `json:"binds,omitempty"`
	// ScratchMount is where the scratch disk is mounted after it was formatted with ScratchFS; empty means no disk.
	ScratchMount string `json:"scratch_mount,omitempty"`
	// ScratchFS is xfs (with reflink), btrfs or ext4.
	ScratchFS string `json:"scratch_fs,omitempty"`
	// Collect is the folder whose content goes back to the host; empty means none.
	Collect string `json:"collect,omitempty"`
	// Until is when the command is killed, so that a stuck command ends with what it left handed over; zero means never.
	// The machine has the host's wall clock, to about a second.
	Until time.Time `json:"until,omitzero"`
}

// A Bind makes one thing that was brought in appear at an absolute path.
type Bind struct {
	Source string `json:"source"` // name in Files
	Target string `json:"target"` // absolute path in the machine
}

// A Report is one message on the control port. Exactly one field is set.
type Report struct {
	// Started says that the machine is up and the command is about to start.
	Started *Started `json:"started,omitempty"`
	// Exit is the exit code of the command, 128+n after signal n, or ExitTimeout. It is the last Report.
	Exit *int `json:"exit,omitempty"`
	// Failure says why the machine could not run the command, or could not hand over what it left.
	Failure string `json:"failure,omitempty"`
}

// Started describes the machine at the moment the command starts.
type Started struct {
	Kernel string  `json:"kernel"` // uname -r
	KVM    bool    `json:"kvm"`    // /dev/kvm exists
	Uptime float64 `json:"uptime"` // seconds since the machine's kernel started, in its own time
}

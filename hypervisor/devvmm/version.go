package devvmm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// Name is what the program calls itself.
const Name = "stillframe-devvmm"

// release counts changes of the snapshot format and of the emulated machine.
const release = "1.0.0"

// cpuModel is the CPU that guests see: everything that QEMU can emulate, the same on every host.
const cpuModel = "max"

// EnvQEMU is the environment variable that names another QEMU than the one in PATH.
const EnvQEMU = "STILLFRAME_QEMU"

// VersionInfo is the reply to a ping.
type VersionInfo struct {
	BuildVersion string   `json:"build_version"`
	Version      string   `json:"version"` // names QEMU's too: both must be the same to restore a snapshot
	PID          int      `json:"pid"`
	Features     []string `json:"features"`
	QEMU         string   `json:"-"` // e.g. "7.2.22"
}

// Line is the output of --version. What is in parentheses makes the CPU and the devices that a guest sees.
func (v VersionInfo) Line() string { return fmt.Sprintf("%s %s", Name, v.BuildVersion) }

// Version learns the versions once; QEMU takes some 40 ms to tell its own.
type Version struct{ resolve func() (VersionInfo, error) }

// NewVersion prepares to ask; nothing is run until the first call of Resolve.
func NewVersion() Version { return Version{sync.OnceValues(findVersion)} }

// Resolve gives the versions, asking QEMU the first time.
func (v Version) Resolve() (VersionInfo, error) { return v.resolve() }

// prepare asks ahead of the first ping, which would wait for it. An error is told to whoever resolves it.
func (v Version) prepare() {
	if _, err := v.resolve(); err != nil {
		return
	}
}

func findVersion() (VersionInfo, error) {
	ctx, cancel := context.WithTimeout(context.Background(), qmpTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, qemuBinary(), "--version") // the operator's choice of QEMU
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return VersionInfo{}, fmt.Errorf("ask %s for its version: %w", qemuBinary(), err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	fields := strings.Fields(line)
	const prefix = "QEMU emulator version "
	if !strings.HasPrefix(line, prefix) || len(fields) < 4 {
		return VersionInfo{}, fmt.Errorf("%s calls itself %q", qemuBinary(), line)
	}
	qemu := fields[3]
	return VersionInfo{
		BuildVersion: fmt.Sprintf("v%s (QEMU %s, cpu %s)", release, qemu, cpuModel),
		Version:      release + "+qemu" + qemu,
		PID:          os.Getpid(),
		Features:     []string{"tcg"},
		QEMU:         qemu,
	}, nil
}

func qemuBinary() string {
	if named := os.Getenv(EnvQEMU); named != "" {
		return named
	}
	return "qemu-system-x86_64"
}

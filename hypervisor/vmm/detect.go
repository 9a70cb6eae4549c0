package vmm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Kind is which VMM a binary is.
type Kind string

// The VMMs that are known.
const (
	KindCloudHypervisor Kind = "cloud-hypervisor"
	KindDev             Kind = "stillframe-devvmm"
)

// EnvBinary is the environment variable that names the VMM binary.
const EnvBinary = "STILLFRAME_VMM"

// Choice is the VMM that will be used.
type Choice struct {
	Binary  string // absolute
	Kind    Kind
	Version string // what it prints for --version, one line
	Reason  string // why this one, a sentence for people
}

// Detect chooses the VMM binary: the one that STILLFRAME_VMM names; else cloud-hypervisor from PATH where KVM works;
// else the development VMM beside our own executable or from PATH. getenv is os.Getenv, or a test's.
func Detect(ctx context.Context, getenv func(string) string) (Choice, error) {
	if named := getenv(EnvBinary); named != "" {
		path, err := exec.LookPath(named)
		if err != nil {
			return Choice{}, fmt.Errorf("%s names %s: %w", EnvBinary, named, err)
		}
		return identify(ctx, path, EnvBinary+" names it.")
	}
	var why string
	ch, err := exec.LookPath(string(KindCloudHypervisor))
	if err != nil {
		why = "Cloud Hypervisor is not in PATH"
	} else if err := ProbeKVM(); err != nil {
		why = "Cloud Hypervisor is there, but KVM is not usable: " + err.Error()
	} else {
		return identify(ctx, ch, "It is in PATH and KVM works.")
	}
	dev, err := findDev()
	if err != nil {
		return Choice{}, fmt.Errorf("no VMM can be used: %s; %w", why, err)
	}
	return identify(ctx, dev, why+", so VMs are emulated in software: slow, for development only.")
}

func findDev() (string, error) {
	if exe, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(exe), string(KindDev))
		if st, err := os.Stat(beside); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return beside, nil
		}
	}
	path, err := exec.LookPath(string(KindDev))
	if err != nil {
		return "", fmt.Errorf("%s is neither beside this program nor in PATH", KindDev)
	}
	return path, nil
}

// identify asks the binary what it is.
func identify(ctx context.Context, path, reason string) (Choice, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return Choice{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, QuickTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--version") // the operator's choice of VMM
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return Choice{}, fmt.Errorf("ask %s for its version: %w", path, err)
	}
	version, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	for _, kind := range []Kind{KindDev, KindCloudHypervisor} {
		if name, _, _ := strings.Cut(version, " "); name == string(kind) {
			return Choice{Binary: path, Kind: kind, Version: version, Reason: reason}, nil
		}
	}
	return Choice{}, errors.Join(fmt.Errorf("%s calls itself %q", path, version),
		errors.New("neither Cloud Hypervisor nor the development VMM"))
}

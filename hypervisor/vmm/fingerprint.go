package vmm

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strings"
)

// CPUFingerprint digests what a guest of this VMM can see of the CPU: a snapshot can be restored where the fingerprint
// is the same. Under KVM that is the host CPU's vendor, family, model, stepping and features; under the development VMM
// it is the emulator's version and CPU model, whatever the host.
func CPUFingerprint(c Choice) (string, error) {
	if c.Kind == KindDev {
		// The version line reads "stillframe-devvmm v1 (QEMU 7.2.22, cpu max)"; only what is in parentheses makes
		// the CPU.
		_, cpu, found := strings.Cut(c.Version, "(")
		if !found {
			return "", fmt.Errorf("the development VMM's version %q does not name its CPU", c.Version)
		}
		return digest("emulated", cpu), nil
	}
	raw, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", fmt.Errorf("fingerprint the CPU: %w", err)
	}
	return hostFingerprint(raw)
}

func hostFingerprint(cpuinfo []byte) (string, error) {
	parts := []string{"kvm"}
	for _, field := range []string{"vendor_id", "cpu family", "model", "stepping"} {
		v := cpuField(cpuinfo, field)
		if v == "" {
			return "", fmt.Errorf("fingerprint the CPU: /proc/cpuinfo has no %q", field)
		}
		parts = append(parts, v)
	}
	// The order of flags is the kernel's affair, not the CPU's.
	flags := strings.Fields(cpuField(cpuinfo, "flags"))
	slices.Sort(flags)
	return digest(append(parts, flags...)...), nil
}

func digest(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\n")))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// cpuField is the value of a field of the first processor in /proc/cpuinfo; empty if there is none.
func cpuField(cpuinfo []byte, field string) string {
	for line := range bytes.Lines(cpuinfo) {
		name, value, ok := bytes.Cut(line, []byte(":"))
		if ok && string(bytes.TrimSpace(name)) == field {
			return string(bytes.TrimSpace(value))
		}
	}
	return ""
}

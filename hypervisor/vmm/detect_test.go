package vmm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func script(t *testing.T, name, says string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\necho '"+says+"'\n"), 0o700))
	return path
}

func env(value string) func(string) string {
	return func(name string) string {
		if name == EnvBinary {
			return value
		}
		return ""
	}
}

func TestDetectTakesTheNamedBinary(t *testing.T) {
	for says, kind := range map[string]Kind{
		"cloud-hypervisor v53.0":                        KindCloudHypervisor,
		"stillframe-devvmm v1.0 (QEMU 7.2.22, cpu max)": KindDev,
	} {
		// The name of the file tells nothing.
		path := script(t, "vmm", says)
		c, err := Detect(t.Context(), env(path))
		require.NoError(t, err)
		require.Equal(t, Choice{path, kind, says, "STILLFRAME_VMM names it."}, c)
	}
	_, err := Detect(t.Context(), env(script(t, "vmm", "something else")))
	require.ErrorContains(t, err, "neither Cloud Hypervisor nor the development VMM")
	_, err = Detect(t.Context(), env("/nonexistent"))
	require.ErrorContains(t, err, EnvBinary)
}

func TestDetectFallsBackAloud(t *testing.T) {
	dev := script(t, string(KindDev), "stillframe-devvmm v1.0 (QEMU 7.2.22, cpu max)")
	t.Setenv("PATH", filepath.Dir(dev)+":/usr/bin:/bin")
	c, err := Detect(t.Context(), env(""))
	require.NoError(t, err)
	require.Equal(t, dev, c.Binary)
	require.Contains(t, c.Reason, "Cloud Hypervisor is not in PATH")

	t.Setenv("PATH", t.TempDir())
	_, err = Detect(t.Context(), env(""))
	require.ErrorContains(t, err, "no VMM can be used")
}

func TestDetectTakesCloudHypervisorOnlyWithKVM(t *testing.T) {
	ch := script(t, string(KindCloudHypervisor), "cloud-hypervisor v53.0")
	dev := script(t, string(KindDev), "stillframe-devvmm v1.0 (QEMU 7.2.22, cpu max)")
	t.Setenv("PATH", filepath.Dir(ch)+":"+filepath.Dir(dev)+":/usr/bin:/bin")
	c, err := Detect(t.Context(), env(""))
	require.NoError(t, err)
	if kvm := ProbeKVM(); kvm == nil {
		require.Equal(t, ch, c.Binary)
	} else {
		require.Equal(t, dev, c.Binary)
		require.Contains(t, c.Reason, kvm.Error())
	}
}

func TestFingerprintIsOfTheCPUAlone(t *testing.T) {
	const cpu = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 207\nmodel name\t: X\n" +
		"stepping\t: 2\ncpu MHz\t\t: 2299.9\nflags\t\t: fpu vme de\n\nprocessor\t: 1\nmodel\t\t: 1\nflags\t\t: none\n"
	of := func(s string) string {
		f, err := hostFingerprint([]byte(s))
		require.NoError(t, err)
		return f
	}
	first := of(cpu)
	require.Equal(t, first, of(strings.Replace(cpu, "2299.9", "800", 1)), "the clock does not count")
	require.Equal(t, first, of(strings.Replace(cpu, "fpu vme de", "de vme fpu", 1)), "order does not count")
	for _, change := range [][2]string{{"207", "208"}, {"stepping\t: 2", "stepping\t: 3"}, {"vme", "vmx"}} {
		require.NotEqual(t, first, of(strings.Replace(cpu, change[0], change[1], 1)), change[1])
	}
	_, err := hostFingerprint([]byte("processor: 0\n"))
	require.Error(t, err)

	emulated := func(version string) string {
		f, err := CPUFingerprint(Choice{Kind: KindDev, Version: version})
		require.NoError(t, err)
		return f
	}
	require.Equal(t, emulated("stillframe-devvmm v1 (QEMU 7.2, cpu max)"),
		emulated("stillframe-devvmm v2 (QEMU 7.2, cpu max)"))
	require.NotEqual(t, emulated("stillframe-devvmm v1 (QEMU 7.2, cpu max)"),
		emulated("stillframe-devvmm v1 (QEMU 8.0, cpu max)"))
	_, err = CPUFingerprint(Choice{Kind: KindDev, Version: "nothing"})
	require.Error(t, err)
}

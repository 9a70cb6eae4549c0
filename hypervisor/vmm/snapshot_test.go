package vmm

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// listenIn listens below a folder whose path does not fit a socket address.
func listenIn(t *testing.T, dir, name string) net.Listener {
	t.Helper()
	require.NoError(t, os.MkdirAll(dir, 0o700))
	t.Chdir(dir)
	l, err := net.Listen("unix", name)
	require.NoError(t, err)
	return l
}

// savedConfig is a configuration as Cloud Hypervisor writes it, with keys that this package does not know.
const savedConfig = `{"cpus":{"boot_vcpus":1,"max_vcpus":1},"memory":{"size":0,"hotplug_method":"Acpi","zones":[
{"id":"ram","size":9007199254740993,"file":"/old/ram","shared":true,"new_key":1e400},
{"id":"other","size":1048576,"file":"/old/other","shared":true}]},
"payload":{"kernel":"/old/k","initramfs":"/old/i"},
"disks":[{"id":"base","path":"/old/base","readonly":true},{"id":"overlay","path":"/old/overlay"}],
"net":[{"id":"net","tap":"old","mac":"02:00:00:00:00:01"}],
"serial":{"mode":"File","file":"/old/serial"},"console":{"mode":"Off"},"unknown":[1,2,{"a":null}]}`

func snapshotDir(t *testing.T, config string) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, ConfigFile), []byte(config), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, StateFile), []byte(`{"id":"vm"}`), 0o600))
	return dir
}

func TestPatchChangesPlacesAndKeepsTheRest(t *testing.T) {
	dir := snapshotDir(t, savedConfig)
	require.NoError(t, PatchSnapshotConfig(dir, ConfigEdits{
		Zones:     map[string]ZoneEdit{"ram": {File: "/new/ram", Shared: false}},
		DiskPaths: map[string]string{"overlay": "/new/overlay"}, Taps: map[string]string{"net": "new"},
		SerialFile: "/new/serial", Kernel: "/new/k", Initramfs: "/new/i",
	}))
	got, err := os.ReadFile(filepath.Join(dir, ConfigFile))
	require.NoError(t, err)
	var doc map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(got, &doc))
	for key, want := range map[string]string{
		"cpus": `{"boot_vcpus":1,"max_vcpus":1}`, "unknown": `[1,2,{"a":null}]`, "console": `{"mode":"Off"}`,
		"payload": `{"initramfs":"/new/i","kernel":"/new/k"}`,
		"serial":  `{"file":"/new/serial","mode":"File"}`,
		"net":     `[{"id":"net","mac":"02:00:00:00:00:01","tap":"new"}]`,
		"disks": `[{"id":"base","path":"/old/base","readonly":true},` +
			`{"id":"overlay","path":"/new/overlay"}]`,
		"memory": `{"hotplug_method":"Acpi","size":0,"zones":[` +
			`{"file":"/new/ram","id":"ram","new_key":1e400,"shared":false,"size":9007199254740993},` +
			`{"file":"/old/other","id":"other","shared":true,"size":1048576}]}`,
	} {
		// Compared as text: numbers must keep their digits.
		require.Equal(t, want, string(doc[key]), key)
	}
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 2, "nothing else is left in the folder")
}

func TestPatchRefusesWhatIsNotThere(t *testing.T) {
	for name, e := range map[string]ConfigEdits{
		"zone": {Zones: map[string]ZoneEdit{"ram": {File: "/n"}, "absent": {File: "/n"}}},
		"disk": {DiskPaths: map[string]string{"absent": "/n"}},
		"net":  {Taps: map[string]string{"absent": "n"}},
		// The console is off: a file there would silently do nothing.
		"console": {ConsoleFile: "/n"},
		"vsock":   {VsockSocket: "/n"},
	} {
		dir := snapshotDir(t, savedConfig)
		require.Error(t, PatchSnapshotConfig(dir, e), name)
		got, err := os.ReadFile(filepath.Join(dir, ConfigFile))
		require.NoError(t, err)
		require.Equal(t, savedConfig, string(got), "%s: changed in spite of the error", name)
	}
	require.Error(t, PatchSnapshotConfig(snapshotDir(t, savedConfig[:100]), ConfigEdits{}))
}

func TestCheckSnapshotFindsWhatTheVMMDoesNotTell(t *testing.T) {
	const anonymous = `{"memory":{"size":1048576}}`
	const private = `{"memory":{"size":0,"zones":[{"id":"r","size":1,"file":"/f","shared":false}]}}`
	write := func(t *testing.T, dir, name, content string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	for name, c := range map[string]struct {
		config string
		spoil  func(t *testing.T, dir string)
		says   string // empty: it is good
	}{
		"external RAM": {config: savedConfig},
		"external RAM, dumped nevertheless": {
			savedConfig, func(t *testing.T, dir string) { write(t, dir, MemoryFile, "x") }, "should be cloned",
		},
		"anonymous, dumped": {anonymous, func(t *testing.T, dir string) { write(t, dir, MemoryFile, "x") }, ""},
		"anonymous, absent": {anonymous, nil, "no memory-ranges"},
		"private, absent":   {private, nil, "no memory-ranges"},
		"state cut short": {
			savedConfig, func(t *testing.T, dir string) { write(t, dir, StateFile, `{"id":`) }, "not a whole JSON document",
		},
		"state empty": {savedConfig, func(t *testing.T, dir string) { write(t, dir, StateFile, "") }, "not a whole"},
		"state followed by more": {
			savedConfig, func(t *testing.T, dir string) { write(t, dir, StateFile, `{"id":1}{`) }, "not a whole",
		},
		"config cut short": {savedConfig[:200], nil, "not a whole JSON document"},
		"no state": {
			savedConfig, func(t *testing.T, dir string) { require.NoError(t, os.Remove(filepath.Join(dir, StateFile))) },
			"no such file",
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := snapshotDir(t, c.config)
			if c.spoil != nil {
				c.spoil(t, dir)
			}
			info, err := CheckSnapshot(dir)
			if c.says != "" {
				require.ErrorContains(t, err, c.says)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.config == savedConfig, info.ExternalRAM)
			require.Equal(t, int64(len(c.config)), info.ConfigBytes)
		})
	}
}

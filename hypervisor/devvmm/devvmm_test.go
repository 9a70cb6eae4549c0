package devvmm

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What QEMU does is tested by package vmmtest on real VMs; here is what can be told without it.

func TestKernelArgsYieldToTheCallers(t *testing.T) {
	require.Equal(t, "console=ttyS0 tsc=reliable no_timer_check nokaslr mitigations=off", kernelArgs("console=ttyS0"))
	require.Equal(t, "tsc=unstable nokaslr no_timer_check mitigations=off", kernelArgs(" tsc=unstable  nokaslr"))
}

func TestConfigDefaultsAndAliases(t *testing.T) {
	cfg, err := decodeConfig([]byte(`{"disks":[{"path":"/d"}],"net":[{"tap":"t"}],"surprise":1,
		"platform":{"uuid":"u","serial_number":"s"}}`))
	require.NoError(t, err)
	require.Equal(t, int64(512<<20), cfg.memorySize())
	require.Equal(t, cpusConfig{1, 1}, cfg.CPUs)
	require.Equal(t, platformConfig{"s", "u"}, *cfg.Platform)
	require.Equal(t, imageUnknown, cfg.Disks[0].ImageType)
	cfg.nameDevices()
	require.Equal(t, "_disk0", cfg.Disks[0].ID)
	require.Equal(t, "_net0", cfg.Net[0].ID)

	// What is written into config.json is read back the same.
	raw, err := json.Marshal(cfg)
	require.NoError(t, err)
	again, err := decodeConfig(raw)
	require.NoError(t, err)
	require.Equal(t, cfg, again)

	for _, bad := range []string{`{"cpus":{"boot_vcpus":1}}`, `{"memory":{}}`, `{"serial":{}}`, `[]`, `{"disks":{}}`} {
		_, err := decodeConfig([]byte(bad))
		require.Error(t, err, bad)
	}
}

// TestNothingIsIgnored: what Cloud Hypervisor would do and this program cannot must be refused.
func TestNothingIsIgnored(t *testing.T) {
	kernel := filepath.Join(t.TempDir(), "kernel")
	require.NoError(t, os.WriteFile(kernel, nil, 0o600))
	check := func(more string) error {
		cfg, err := decodeConfig([]byte(`{"payload":{"kernel":"` + kernel + `"}` + more + `}`))
		require.NoError(t, err)
		cfg.nameDevices()
		return cfg.check()
	}
	require.NoError(t, check(""))
	require.NoError(t, check(`,"vsock":null`))
	for _, more := range []string{
		`,"vsock":{"cid":3,"socket":"/s"}`, `,"fs":[]`, `,"balloon":{"size":1}`, `,"watchdog":true`, `,"iommu":true`,
		`,"memory":{"size":2097152,"hugepages":true}`, `,"memory":{"size":1000}`, `,"memory":{"size":0}`,
		`,"memory":{"size":2097152,"zones":[{"id":"a","size":2097152}]}`,
		`,"memory":{"size":0,"zones":[{"id":"a","size":2097152},{"id":"b","size":2097152}]}`,
		`,"disks":[{"path":"` + kernel + `"}]`, `,"disks":[{"path":"` + kernel + `","image_type":"Qcow2"}]`,
		`,"disks":[{"path":"` + kernel + `","id":"a","image_type":"Raw"},{"path":"` + kernel +
			`","id":"a","image_type":"Raw"}]`,
		`,"net":[{"mac":"02:00:00:00:00:01"}]`, `,"serial":{"mode":"Pty"}`, `,"cpus":{"boot_vcpus":2,"max_vcpus":1}`,
	} {
		require.Error(t, check(more), more)
	}
}

func TestOptionsCannotBeSmuggledThroughPaths(t *testing.T) {
	cfg := defaultConfig()
	cfg.Payload = &payloadConfig{Kernel: "/k"}
	cfg.Serial = consoleConfig{Mode: modeFile, File: "/a,append=on,x=y"}
	cfg.Disks = []diskConfig{{ID: "d", Path: `/x","driver":"nbd`, Serial: "a,b", ImageType: imageRaw}}
	args := arguments(&cfg, &ram{size: 2 << 20, mapShared: true}, false)
	require.Contains(t, args, "file,id=serial0,path=/a,,append=on,,x=y")
	for i, a := range args {
		if a != "-blockdev" {
			continue
		}
		var block struct {
			Driver string `json:"driver"`
			File   struct{ Filename, Driver string }
		}
		require.NoError(t, json.Unmarshal([]byte(args[i+1]), &block))
		require.Equal(t, `/x","driver":"nbd`, block.File.Filename)
		require.Equal(t, "file", block.File.Driver)
	}
}

func TestSavedStateNoticesDamage(t *testing.T) {
	dir, cfg := writtenSnapshot(t)
	v := fixedVersion("7.2.22")
	snap, err := readSnapshot(dir, v)
	require.NoError(t, err)
	require.Equal(t, "device state", string(snap.device))
	require.False(t, snap.dumped)

	path := filepath.Join(dir, stateFile)
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	for cut := range len(whole) {
		require.NoError(t, os.WriteFile(path, whole[:cut], 0o600))
		_, err := readSnapshot(dir, v)
		require.Error(t, err, "cut after %d bytes", cut)
	}
	var s savedState
	require.NoError(t, json.Unmarshal(whole, &s))
	s.Device.Data[3] ^= 1
	raw, err := json.Marshal(s)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, raw, 0o600))
	_, err = readSnapshot(dir, v)
	require.ErrorContains(t, err, "damaged")

	require.NoError(t, os.WriteFile(path, whole, 0o600))
	_, err = readSnapshot(dir, fixedVersion("8.0.0"))
	require.ErrorContains(t, err, "made with QEMU 7.2.22")

	cfg.CPUs = cpusConfig{2, 2}
	raw, err = json.Marshal(cfg)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, configFile), raw, 0o600))
	_, err = readSnapshot(dir, v)
	require.ErrorContains(t, err, "another shape")
}

func fixedVersion(qemu string) Version {
	return Version{func() (VersionInfo, error) { return VersionInfo{QEMU: qemu}, nil }}
}

func writtenSnapshot(t *testing.T) (string, *vmConfig) {
	t.Helper()
	dir := t.TempDir()
	kernel, memory := filepath.Join(dir, "kernel"), filepath.Join(dir, "ram")
	for _, f := range []string{kernel, memory} {
		require.NoError(t, os.WriteFile(f, nil, 0o600))
	}
	cfg := defaultConfig()
	cfg.Payload = &payloadConfig{Kernel: kernel}
	cfg.Memory = memoryConfig{Zones: []zoneConfig{{ID: "ram", Size: 2 << 20, File: memory, Shared: true}}}
	vm := &qemu{ram: &ram{size: 2 << 20, path: memory, mapShared: true}}
	require.NoError(t, writeSnapshot(dir, &cfg, vm, []byte("device state"), fixedVersion("7.2.22")))
	return dir, &cfg
}

// fakeQEMU speaks the other end of QMP.
func fakeQEMU(t *testing.T, lines ...string) *qmp {
	t.Helper()
	ours, theirs := net.Pipe()
	go func() {
		_, _ = theirs.Write([]byte("{\"QMP\":{}}\n"))
		in := json.NewDecoder(theirs)
		for _, l := range append([]string{`{"return":{}}`}, lines...) {
			var request map[string]any
			if in.Decode(&request) != nil {
				return
			}
			_, _ = theirs.Write([]byte(l + "\n"))
		}
		_ = theirs.Close()
	}()
	q, err := newQMP(ours, func(qmpEvent) {})
	require.NoError(t, err)
	t.Cleanup(func() { _ = q.close() })
	return q
}

func TestQMPTellsRepliesFromEvents(t *testing.T) {
	q := fakeQEMU(t, `{"event":"STOP","data":{}}`+"\n"+`{"return":{"status":"paused"}}`,
		`{"error":{"class":"GenericError","desc":"no room"}}`)
	var status struct{ Status string }
	require.NoError(t, q.run("query-status", nil, &status))
	require.Equal(t, "paused", status.Status)
	require.ErrorContains(t, q.run("save", nil, nil), "no room")
	require.ErrorContains(t, q.run("quit", nil, nil), "QEMU quit")
	require.Error(t, q.run("cont", nil, nil), "after its end")
}

func TestRefusalsListTheirCauses(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
		says   string
	}{
		{errNotRunning, 500, "Error from API|op|VM is not running"},
		{errNotCreated, 404, "Error from API|op|VM is not created"},
		{because("a", "b"), 500, "Error from API|op|a|b"},
		{errors.New("plain"), 500, "Error from API|op|plain"},
	} {
		var r *replyError
		require.ErrorAs(t, wrap("op", c.err), &r)
		require.Equal(t, c.status, r.status)
		require.Equal(t, c.says, strings.Join(r.messages, "|"))
	}
	require.NoError(t, wrap("op", nil))
}

func TestDumpAndFillKeepMemory(t *testing.T) {
	const size = 16 << 20
	for _, dense := range []bool{true, false} {
		cfg := defaultConfig()
		cfg.Memory = memoryConfig{Size: size, Shared: !dense}
		source, err := newRAM(&cfg)
		require.NoError(t, err)
		_, err = source.file.WriteAt([]byte("in the middle"), size/2)
		require.NoError(t, err)
		path := filepath.Join(t.TempDir(), memoryFile)
		out, err := os.Create(path)
		require.NoError(t, err)
		require.NoError(t, source.dump(out, 0))
		require.NoError(t, out.Close())

		copied, err := newRAM(&cfg)
		require.NoError(t, err)
		require.NoError(t, copied.fill(path))
		a, b := make([]byte, size), make([]byte, size)
		_, err = source.file.ReadAt(a, 0)
		require.NoError(t, err)
		_, err = copied.file.ReadAt(b, 0)
		require.NoError(t, err)
		require.Equal(t, a, b)

		require.NoError(t, os.Truncate(path, size/2))
		require.Error(t, copied.fill(path), "a dump cut short")
		require.NoError(t, errors.Join(source.close(), copied.close()))
	}
}

func TestZoneFileMustBeThereInFullSize(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ram")
	cfg := defaultConfig()
	cfg.Memory = memoryConfig{Zones: []zoneConfig{{ID: "ram", Size: 2 << 20, File: path, Shared: true}}}
	_, err := newRAM(&cfg)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoError(t, os.WriteFile(path, make([]byte, 1<<20), 0o600))
	_, err = newRAM(&cfg)
	require.ErrorContains(t, err, "the zone")
}

func TestASocketInUseIsNotTakenOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	first, release, err := listen("path=" + path)
	require.NoError(t, err)
	_, _, err = listen("path=" + path)
	require.ErrorContains(t, err, "in use")
	// A stale socket, left by a killed process, is replaced.
	first.(*net.UnixListener).SetUnlinkOnClose(false)
	require.NoError(t, first.Close())
	release()
	require.FileExists(t, path)
	again, release, err := listen(path)
	require.NoError(t, err)
	defer release()
	require.NoError(t, again.Close())
	_, _, err = listen("fd=x")
	require.Error(t, err)
}

func TestEventsAreDocuments(t *testing.T) {
	var out strings.Builder
	m := &eventMonitor{log: slog.New(slog.DiscardHandler), out: &out}
	m.emit("vm", "booted")
	m.emit("vm", "paused")
	d := json.NewDecoder(strings.NewReader(out.String()))
	for _, want := range []string{"booted", "paused"} {
		var e struct{ Source, Event string }
		require.NoError(t, d.Decode(&e))
		require.Equal(t, want, e.Event)
	}
}

package vmm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// The files of a snapshot folder.
const (
	ConfigFile = "config.json"
	StateFile  = "state.json"
	MemoryFile = "memory-ranges" // only where some guest memory is not in a shared file
)

// SnapshotInfo describes the files that a VMM wrote for a snapshot.
type SnapshotInfo struct {
	ConfigBytes int64
	StateBytes  int64
	MemoryBytes int64 // 0 where RAM is external
	// ExternalRAM says that all guest memory lives in shared files, which the caller keeps.
	ExternalRAM bool
}

// CheckSnapshot reads back what vm.snapshot wrote, since the VMM can report success over a file cut short by a full
// disk: both documents must be whole JSON objects, and memory-ranges must be there exactly if some guest memory is not
// in a shared file. It does not sync.
func CheckSnapshot(dir string) (SnapshotInfo, error) {
	config, err := readObject(filepath.Join(dir, ConfigFile))
	if err != nil {
		return SnapshotInfo{}, fmt.Errorf("check snapshot %s: %w", dir, err)
	}
	state, err := readObject(filepath.Join(dir, StateFile))
	if err != nil {
		return SnapshotInfo{}, fmt.Errorf("check snapshot %s: %w", dir, err)
	}
	info := SnapshotInfo{ConfigBytes: int64(len(config)), StateBytes: int64(len(state))}
	if info.ExternalRAM, err = externalRAM(config); err != nil {
		return SnapshotInfo{}, fmt.Errorf("check snapshot %s: %w", dir, err)
	}
	st, err := os.Stat(filepath.Join(dir, MemoryFile))
	switch {
	case err == nil && info.ExternalRAM:
		return SnapshotInfo{}, fmt.Errorf("check snapshot %s: %d bytes of %s although all RAM is in shared files: "+
			"the VMM dumped memory that should be cloned", dir, st.Size(), MemoryFile)
	case err == nil:
		info.MemoryBytes = st.Size()
	case !errors.Is(err, fs.ErrNotExist):
		return SnapshotInfo{}, fmt.Errorf("check snapshot %s: %w", dir, err)
	case !info.ExternalRAM:
		return SnapshotInfo{}, fmt.Errorf("check snapshot %s: no %s although not all RAM is in shared files",
			dir, MemoryFile)
	}
	return info, nil
}

// readObject reads a file that must hold one whole JSON object.
func readObject(path string) ([]byte, error) {
	raw, err := os.ReadFile(path) // a snapshot folder named by the caller
	if err != nil {
		return nil, err
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(raw, &object); err != nil {
		return nil, fmt.Errorf("%s (%d bytes) is not a whole JSON document: %w", filepath.Base(path), len(raw), err)
	}
	if len(object) == 0 {
		return nil, fmt.Errorf("%s is an empty JSON document", filepath.Base(path))
	}
	return raw, nil
}

func externalRAM(config []byte) (bool, error) {
	var c struct {
		Memory struct {
			Size  int64        `json:"size"`
			Zones []MemoryZone `json:"zones"`
		} `json:"memory"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return false, fmt.Errorf("%s: memory: %w", ConfigFile, err)
	}
	if c.Memory.Size != 0 || len(c.Memory.Zones) == 0 {
		return false, nil
	}
	for _, z := range c.Memory.Zones {
		if z.File == "" || !z.Shared {
			return false, nil
		}
	}
	return true, nil
}

// ConfigEdits are the changes a snapshot's configuration can take before a restore: places, never shapes. CPUs, sizes
// and the ids of devices and zones belong to the saved device state.
type ConfigEdits struct {
	Zones     map[string]ZoneEdit // by zone id
	DiskPaths map[string]string   // by disk id
	Taps      map[string]string   // by net id
	// SerialFile and ConsoleFile are set only on a device whose mode is File; empty: unchanged.
	SerialFile  string
	ConsoleFile string
	// Kernel and Initramfs: the initramfs is opened even on a restore. Empty: unchanged.
	Kernel    string
	Initramfs string
	// VsockSocket replaces the path of the vsock device's socket; empty: unchanged.
	VsockSocket string
}

// ZoneEdit replaces where a memory zone's content is and how it is mapped. Shared false maps the file privately:
// nothing is copied and the file stays as it is, but the next snapshot of that VM is a full dump.
type ZoneEdit struct {
	File   string
	Shared bool
}

// PatchSnapshotConfig rewrites config.json of a snapshot folder, keeping every key it does not know. The file is
// replaced by rename, so it is never seen half written; it is not synced. An id that the configuration does not have is
// an error, and then nothing is changed.
func PatchSnapshotConfig(dir string, e ConfigEdits) error {
	path := filepath.Join(dir, ConfigFile)
	raw, err := readObject(path)
	if err != nil {
		return fmt.Errorf("patch snapshot %s: %w", dir, err)
	}
	patched, err := patchConfig(raw, e)
	if err != nil {
		return fmt.Errorf("patch snapshot %s: %w", dir, err)
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, patched, 0o600); err != nil {
		return errors.Join(fmt.Errorf("patch snapshot: %w", err), os.Remove(tmp))
	}
	if err := os.Rename(tmp, path); err != nil {
		return errors.Join(fmt.Errorf("patch snapshot: %w", err), os.Remove(tmp))
	}
	return nil
}

func patchConfig(raw []byte, e ConfigEdits) ([]byte, error) {
	doc, err := parseObject(raw)
	if err != nil {
		return nil, err
	}
	memory := map[string]func(object) error{}
	for id, z := range e.Zones {
		memory[id] = func(o object) error { return errors.Join(o.set("file", z.File), o.set("shared", z.Shared)) }
	}
	edits := []func() error{
		func() error {
			if len(memory) == 0 {
				return nil
			}
			return doc.edit("memory", func(m object) error { return m.editList("zones", memory) })
		},
		func() error { return doc.editList("disks", setters("path", e.DiskPaths)) },
		func() error { return doc.editList("net", setters("tap", e.Taps)) },
		func() error { return doc.setFile("serial", e.SerialFile) },
		func() error { return doc.setFile("console", e.ConsoleFile) },
		func() error { return doc.setIn("payload", "kernel", e.Kernel) },
		func() error { return doc.setIn("payload", "initramfs", e.Initramfs) },
		func() error { return doc.setIn("vsock", "socket", e.VsockSocket) },
	}
	for _, edit := range edits {
		if err := edit(); err != nil {
			return nil, err
		}
	}
	return json.Marshal(doc)
}

package devvmm

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

const (
	configFile = "config.json"
	stateFile  = "state.json"
	memoryFile = "memory-ranges"

	stateFormat = 1
)

// savedState is state.json.
type savedState struct {
	Format int         `json:"format"`
	VMM    string      `json:"vmm"`
	QEMU   string      `json:"qemu"`
	Memory savedMemory `json:"memory"`
	// Shape is what the configuration must still say at a restore, because the device state depends on it.
	Shape  string      `json:"shape"`
	Device savedDevice `json:"device_state"`
}

type savedMemory struct {
	Size int64 `json:"size"` // bytes
	// Dumped: the content is in memory-ranges. Else it is in the zone's file, which the caller keeps.
	Dumped bool `json:"dumped"`
}

// savedDevice is QEMU's device state with what tells that it is whole.
type savedDevice struct {
	Size   int    `json:"size"`
	SHA256 string `json:"sha256"`
	Data   []byte `json:"data"` // base64 in JSON
}

// snapshot is what a folder holds, checked.
type snapshot struct {
	cfg    *vmConfig
	device []byte
	dumped bool
}

// shape is every part of a configuration that the device state depends on. Paths and names of host things are not in
// it.
func shape(cfg *vmConfig) string {
	type device struct{ ID, Serial string }
	s := struct {
		CPUs        cpusConfig
		Memory      int64
		Zones       []string
		Disks, Nets []device
		Serial      bool
		Console     bool
	}{CPUs: cfg.CPUs, Memory: cfg.memorySize(), Serial: cfg.Serial.Mode != modeOff, Console: cfg.Console.Mode != modeOff}
	for _, z := range cfg.Memory.Zones {
		s.Zones = append(s.Zones, z.ID)
	}
	for _, d := range cfg.Disks {
		s.Disks = append(s.Disks, device{d.ID, d.Serial})
	}
	for _, n := range cfg.Net {
		s.Nets = append(s.Nets, device{ID: n.ID})
	}
	raw, err := json.Marshal(s)
	if err != nil {
		panic(err) // strings and numbers can always be encoded
	}
	return string(raw)
}

// writeSnapshot makes the files in their order; what an error leaves behind stays, as with Cloud Hypervisor.
func writeSnapshot(dir string, cfg *vmConfig, vm *qemu, device []byte, v Version) error {
	raw, err := json.Marshal(cfg)
	if err != nil {
		return err
	}
	if err := writeNew(filepath.Join(dir, configFile), raw); err != nil {
		return err
	}
	sum := sha256.Sum256(device)
	info, err := v.resolve()
	if err != nil {
		return err
	}
	raw, err = json.Marshal(savedState{
		Format: stateFormat, VMM: Name, QEMU: info.QEMU,
		Memory: savedMemory{Size: vm.ram.size, Dumped: !vm.ram.external()},
		Shape:  shape(cfg),
		Device: savedDevice{Size: len(device), SHA256: hex.EncodeToString(sum[:]), Data: device},
	})
	if err != nil {
		return err
	}
	if err := writeNew(filepath.Join(dir, stateFile), raw); err != nil {
		return err
	}
	if vm.ram.external() {
		return nil
	}
	out, err := os.OpenFile(filepath.Join(dir, memoryFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(vm.ram.dump(out, vm.pid()), out.Close())
}

func writeNew(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) // named by the caller
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Close())
}

// readSnapshot checks everything that can be checked before QEMU is started.
func readSnapshot(dir string, v Version) (*snapshot, error) {
	raw, err := os.ReadFile(filepath.Join(dir, configFile)) // named by the caller
	if err != nil {
		return nil, err
	}
	cfg, err := decodeConfig(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", configFile, err)
	}
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("%s: %w", configFile, err)
	}
	raw, err = os.ReadFile(filepath.Join(dir, stateFile)) // named by the caller
	if err != nil {
		return nil, err
	}
	var s savedState
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, fmt.Errorf("%s: %w", stateFile, err)
	}
	if err := s.check(cfg, v); err != nil {
		return nil, fmt.Errorf("%s: %w", stateFile, err)
	}
	return &snapshot{cfg: cfg, device: s.Device.Data, dumped: s.Memory.Dumped}, nil
}

func (s *savedState) check(cfg *vmConfig, v Version) error {
	if s.Format != stateFormat || s.VMM != Name {
		return fmt.Errorf("format %d of %q is not one of this program", s.Format, s.VMM)
	}
	info, err := v.resolve()
	if err != nil {
		return err
	}
	if s.QEMU != info.QEMU {
		return fmt.Errorf("made with QEMU %s, this is QEMU %s", s.QEMU, info.QEMU)
	}
	sum := sha256.Sum256(s.Device.Data)
	want, err := hex.DecodeString(s.Device.SHA256)
	if err != nil || len(s.Device.Data) != s.Device.Size || !bytes.Equal(sum[:], want) {
		return fmt.Errorf("the device state (%d of %d bytes) is damaged", len(s.Device.Data), s.Device.Size)
	}
	if now := shape(cfg); s.Shape != now {
		return fmt.Errorf("the configuration has another shape than the saved VM: %s, saved %s", now, s.Shape)
	}
	return nil
}

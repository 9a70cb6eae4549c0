package vmm

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// kvmClockRealtime is the flag KVM_CLOCK_REALTIME of struct kvm_clock_data (linux/kvm.h), and kvmClockFlags the offset
// of the low byte of the structure's flags.
const (
	kvmClockRealtime = 1 << 2
	kvmClockFlags    = 8
)

// KeepClockStill edits a snapshot's device state so that a restored guest's monotonic clock goes on from the snapshot's
// instant. As Cloud Hypervisor v53 writes it, KVM moves that clock by the age of the snapshot when the VM is resumed:
// every timer that lay in between fires, and a busy guest's kernel reports stalls. The wall clock is set by the agent
// in any case. A state that does not say its clock this way (another VMM, another version) is left alone; the result
// tells whether anything was changed.
func KeepClockStill(dir string) (bool, error) {
	path := filepath.Join(dir, StateFile)
	raw, err := readObject(path)
	if err != nil {
		return false, fmt.Errorf("clock of snapshot %s: %w", dir, err)
	}
	edited, changed := clearRealtime(raw)
	if !changed {
		return false, nil
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, edited, 0o600); err != nil {
		return false, err
	}
	return true, os.Rename(tmp, path)
}

// clearRealtime finds the clock at snapshot_data.state, which is a JSON document inside a string, and clears the flag.
func clearRealtime(raw []byte) (edited []byte, changed bool) {
	doc, err := parseObject(raw)
	if err != nil {
		return nil, false
	}
	data, err := parseObject(doc["snapshot_data"])
	if err != nil {
		return nil, false
	}
	state, err := parseObject([]byte(data.str("state")))
	if err != nil {
		return nil, false
	}
	clock, err := parseObject(state["clock"])
	if err != nil {
		return nil, false
	}
	var kvm []int
	if json.Unmarshal(clock["Kvm"], &kvm) != nil || len(kvm) <= kvmClockFlags || kvm[kvmClockFlags]&kvmClockRealtime == 0 {
		return nil, false
	}
	kvm[kvmClockFlags] &^= kvmClockRealtime
	inner, err := json.Marshal(state.with("clock", clock.with("Kvm", kvm)))
	if err != nil {
		return nil, false
	}
	edited, err = json.Marshal(doc.with("snapshot_data", data.with("state", string(inner))))
	return edited, err == nil
}

// with sets a value that certainly encodes, and gives the object.
func (o object) with(key string, value any) object {
	_ = o.set(key, value)
	return o
}

package devvmm

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

// machine is the VM: no configuration (nothing created), a configuration without QEMU (Created), or both (Running or
// Paused). The API calls it from one goroutine at a time.
type machine struct {
	events  *eventMonitor
	log     *slog.Logger
	version Version
	// ended is called when QEMU has ended by itself: the guest powered off (nil) or it crashed. The program ends then,
	// as Cloud Hypervisor does.
	ended func(error)

	cfg    *vmConfig
	vm     *qemu
	paused bool
}

func (m *machine) state() string {
	switch {
	case m.vm == nil:
		return "Created"
	case m.paused:
		return "Paused"
	default:
		return "Running"
	}
}

type vmInfo struct {
	Config     *vmConfig `json:"config"`
	State      string    `json:"state"`
	MemorySize int64     `json:"memory_actual_size"`
}

func (m *machine) info() (any, error) {
	if m.cfg == nil {
		return nil, errNotCreated
	}
	return vmInfo{m.cfg, m.state(), m.cfg.memorySize()}, nil
}

func (m *machine) counters() (any, error) {
	if m.vm == nil {
		return nil, errNotRunning
	}
	return m.vm.counters()
}

// create keeps the configuration. Like the real one it makes the consoles' files now, and keeps the configuration even
// where that fails.
func (m *machine) create(cfg *vmConfig) error {
	if m.cfg != nil {
		return errAlreadyCreated
	}
	m.cfg = cfg
	return m.makeConsoles()
}

func (m *machine) makeConsoles() error {
	for _, c := range []consoleConfig{m.cfg.Serial, m.cfg.Console} {
		if c.Mode != modeFile {
			continue
		}
		f, err := os.Create(c.File)
		if err != nil {
			return because("Error creating console devices", err.Error())
		}
		if err := f.Close(); err != nil {
			return because("Error creating console devices", err.Error())
		}
	}
	return nil
}

func (m *machine) boot() error {
	if m.vm != nil {
		return errAlreadyCreated
	}
	m.events.emit("vm", "booting")
	if m.cfg == nil {
		return errMissingConfig
	}
	m.cfg.nameDevices()
	if err := m.cfg.check(); err != nil {
		return err
	}
	ram, err := newRAM(m.cfg)
	if err != nil {
		return because("Memory manager error", err.Error())
	}
	if err := m.start(ram, nil); err != nil {
		return err
	}
	if err := m.vm.qmp.run("cont", nil, nil); err != nil {
		return errors.Join(err, m.stop())
	}
	m.events.emit("vm", "booted")
	return nil
}

// start runs QEMU, stopped; incoming is a device state to load, or nil. It takes over ram.
func (m *machine) start(ram *ram, incoming []byte) error {
	vm, err := startQEMU(m.cfg, ram, incoming, m.guestEvent, m.log)
	if err != nil {
		return err
	}
	m.vm, m.paused = vm, false
	go func() {
		<-vm.exited
		if vm.wanted.Load() {
			return
		}
		m.log.Error("QEMU ended by itself", "status", vm.status(), "output", vm.output.String())
		m.ended(vm.failure())
	}()
	return nil
}

// guestEvent runs on QMP's reading goroutine.
func (m *machine) guestEvent(e qmpEvent) {
	if e.Event != "RESET" {
		return
	}
	var data struct {
		Guest bool `json:"guest"`
	}
	if json.Unmarshal(e.Data, &data) == nil && data.Guest {
		m.events.emit("vm", "rebooting")
		m.events.emit("vm", "rebooted")
	}
}

// stop ends QEMU; the configuration stays.
func (m *machine) stop() error {
	vm := m.vm
	m.vm, m.paused = nil, false
	return vm.kill()
}

func (m *machine) pause() error {
	if m.vm == nil {
		return errNotRunning
	}
	m.events.emit("vm", "pausing")
	if m.paused {
		return because("Cannot pause VM", "Failed to pause migratable component",
			"Invalid transition: InvalidStateTransition(Paused, Paused)")
	}
	// QEMU answers when the virtual CPUs have stopped and every disk request has reached the host's page cache.
	if err := m.vm.qmp.run("stop", nil, nil); err != nil {
		return because("Cannot pause VM", err.Error())
	}
	m.paused = true
	m.events.emit("vm", "paused")
	return nil
}

func (m *machine) resume() error {
	if m.vm == nil {
		return errNotRunning
	}
	m.events.emit("vm", "resuming")
	if !m.paused {
		return because("Cannot resume VM", "Failed to resume migratable component",
			"Invalid transition: InvalidStateTransition(Running, Running)")
	}
	if err := m.vm.qmp.run("cont", nil, nil); err != nil {
		return because("Cannot resume VM", err.Error())
	}
	m.paused = false
	m.events.emit("vm", "resumed")
	return nil
}

func (m *machine) shutdown() error {
	if m.vm == nil {
		return errNotRunning
	}
	if err := m.stop(); err != nil {
		return err
	}
	m.events.emit("vm", "shutdown")
	return nil
}

func (m *machine) reboot() error {
	m.events.emit("vm", "rebooting")
	if m.vm == nil {
		return errNotCreated
	}
	if err := m.stop(); err != nil {
		return err
	}
	if err := m.boot(); err != nil {
		return err
	}
	m.events.emit("vm", "rebooted")
	return nil
}

func (m *machine) delete() error {
	if m.cfg == nil {
		return nil
	}
	if m.vm != nil {
		if err := m.shutdown(); err != nil {
			return err
		}
	}
	m.cfg = nil
	m.events.emit("vm", "deleted")
	return nil
}

func (m *machine) powerButton() error {
	if m.vm == nil {
		return errNotRunning
	}
	return m.vm.qmp.run("system_powerdown", nil, nil)
}

func (m *machine) nmi() error {
	if m.vm == nil {
		return errNotRunning
	}
	return m.vm.qmp.run("inject-nmi", nil, nil)
}

// snapshot writes configuration, device state, and memory that only this process has.
func (m *machine) snapshot(url string) error {
	if m.vm == nil {
		return errNotRunning
	}
	m.events.emit("vm", "snapshotting")
	if !m.paused {
		return because("Cannot snapshot VM", "Failed to snapshot migratable component",
			"Trying to snapshot while VM is running")
	}
	dir, err := folder(url)
	if err != nil {
		return because("Cannot send VM snapshot", "Failed to send migratable component snapshot", err.Error())
	}
	device, err := m.vm.saveDevices()
	if err != nil {
		return because("Cannot snapshot VM", err.Error())
	}
	m.events.emit("vm", "snapshotted")
	if err := writeSnapshot(dir, m.cfg, m.vm, device, m.version); err != nil {
		return because("Cannot send VM snapshot", "Failed to send migratable component snapshot", err.Error())
	}
	return nil
}

// restore makes the VM of a snapshot. Whatever fails, the machine is without a VM again.
func (m *machine) restore(url string, resume bool) error {
	if m.cfg != nil {
		return errAlreadyCreated
	}
	if err := m.load(url, resume); err != nil {
		m.log.Error("restore failed", "source", url, "error", err)
		var cleanup error
		if m.vm != nil {
			cleanup = m.stop()
		}
		m.cfg = nil
		return errors.Join(because("Cannot restore VM", "Failed to receive migratable component snapshot",
			err.Error()), cleanup)
	}
	return nil
}

func (m *machine) load(url string, resume bool) error {
	dir, err := folder(url)
	if err != nil {
		return err
	}
	snap, err := readSnapshot(dir, m.version)
	if err != nil {
		return err
	}
	m.events.emit("vm", "restoring")
	m.cfg = snap.cfg
	if err := m.makeConsoles(); err != nil {
		return err
	}
	ram, err := newRAM(m.cfg)
	if err != nil {
		return err
	}
	if snap.dumped {
		if err := ram.fill(filepath.Join(dir, memoryFile)); err != nil {
			return errors.Join(err, ram.close())
		}
	}
	if err := m.start(ram, snap.device); err != nil {
		return err
	}
	m.paused = true
	m.events.emit("vm", "restored")
	if resume {
		return m.resume()
	}
	return nil
}

// folder turns a URL of the API into the existing folder it must name.
func folder(url string) (string, error) {
	dir, ok := strings.CutPrefix(url, "file://")
	if !ok {
		return "", fmt.Errorf("could not extract a path from URL: %s", url)
	}
	st, err := os.Stat(dir)
	if err != nil || !st.IsDir() {
		return "", fmt.Errorf("destination is not a directory: %q", dir)
	}
	return dir, nil
}

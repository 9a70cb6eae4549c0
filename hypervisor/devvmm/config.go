package devvmm

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
)

// vmConfig is the part of Cloud Hypervisor's VmConfig that this program serves, with the same names and defaults.
type vmConfig struct {
	CPUs     cpusConfig      `json:"cpus"`
	Memory   memoryConfig    `json:"memory"`
	Payload  *payloadConfig  `json:"payload,omitempty"`
	Disks    []diskConfig    `json:"disks,omitempty"`
	Net      []netConfig     `json:"net,omitempty"`
	RNG      rngConfig       `json:"rng"`
	Serial   consoleConfig   `json:"serial"`
	Console  consoleConfig   `json:"console"`
	Platform *platformConfig `json:"platform,omitempty"`
	Landlock bool            `json:"landlock_enable"`
	Watchdog bool            `json:"watchdog"`
	IOMMU    bool            `json:"iommu"`
	PVPanic  bool            `json:"pvpanic"`
	// Foreign are the sections that Cloud Hypervisor knows and this program does not, kept for the refusal.
	Foreign []string `json:"-"`
}

type cpusConfig struct {
	Boot int `json:"boot_vcpus"`
	Max  int `json:"max_vcpus"`
}

type memoryConfig struct {
	Size      int64        `json:"size"`
	Mergeable bool         `json:"mergeable"`
	Shared    bool         `json:"shared"`
	HugePages bool         `json:"hugepages"`
	Prefault  bool         `json:"prefault"`
	THP       bool         `json:"thp"`
	Zones     []zoneConfig `json:"zones,omitempty"`
}

type zoneConfig struct {
	ID        string `json:"id"`
	Size      int64  `json:"size"`
	File      string `json:"file,omitempty"`
	Shared    bool   `json:"shared"`
	HugePages bool   `json:"hugepages"`
	Prefault  bool   `json:"prefault"`
}

type payloadConfig struct {
	Firmware  string `json:"firmware,omitempty"`
	Kernel    string `json:"kernel,omitempty"`
	Cmdline   string `json:"cmdline,omitempty"`
	Initramfs string `json:"initramfs,omitempty"`
}

type diskConfig struct {
	ID        string `json:"id,omitempty"`
	Path      string `json:"path"`
	ReadOnly  bool   `json:"readonly"`
	Direct    bool   `json:"direct"`
	NumQueues int    `json:"num_queues"`
	QueueSize int    `json:"queue_size"`
	Serial    string `json:"serial,omitempty"`
	ImageType string `json:"image_type"`
}

type netConfig struct {
	ID        string `json:"id,omitempty"`
	Tap       string `json:"tap,omitempty"`
	MAC       string `json:"mac,omitempty"`
	NumQueues int    `json:"num_queues"`
	QueueSize int    `json:"queue_size"`
}

type rngConfig struct {
	Source string `json:"src"`
}

type consoleConfig struct {
	Mode string `json:"mode"`
	File string `json:"file,omitempty"`
}

type platformConfig struct {
	SerialNumber string `json:"system_serial_number,omitempty"`
	UUID         string `json:"system_uuid,omitempty"`
}

const (
	modeOff  = "Off"
	modeNull = "Null"
	modeTTY  = "Tty"
	modeFile = "File"

	imageRaw     = "Raw"
	imageUnknown = "Unknown"

	defaultMemory = 512 << 20
)

func defaultConfig() vmConfig {
	return vmConfig{
		CPUs:    cpusConfig{Boot: 1, Max: 1},
		Memory:  memoryConfig{Size: defaultMemory, THP: true},
		RNG:     rngConfig{Source: "/dev/urandom"},
		Serial:  consoleConfig{Mode: modeNull},
		Console: consoleConfig{Mode: modeTTY},
	}
}

// foreignSections are the parts of a VmConfig that need a device or a feature this program does not have.
var foreignSections = []string{
	"balloon", "fs", "pmem", "devices", "user_devices", "vdpa", "vsock", "numa", "tpm", "pci_segments",
	"rate_limit_groups", "generic_vhost_user", "landlock_rules", "pvmemcontrol", "rtc",
}

// requiredFields are those whose absence makes a section undecodable, as in Cloud Hypervisor.
var requiredFields = map[string][]string{
	"cpus": {"boot_vcpus", "max_vcpus"}, "memory": {"size"}, "rng": {"src"}, "serial": {"mode"}, "console": {"mode"},
}

// decodeConfig reads a VmConfig. Unknown keys pass, wrong types and missing required fields do not.
func decodeConfig(raw []byte) (*vmConfig, error) {
	var sections map[string]json.RawMessage
	if err := json.Unmarshal(raw, &sections); err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(requiredFields)) {
		if err := requireFields(name, sections[name]); err != nil {
			return nil, err
		}
	}
	cfg := defaultConfig()
	if err := json.Unmarshal(raw, &cfg); err != nil {
		return nil, err
	}
	for i := range cfg.Disks {
		d := &cfg.Disks[i]
		d.NumQueues, d.QueueSize = orDefault(d.NumQueues, 1), orDefault(d.QueueSize, 128)
		if d.ImageType == "" {
			d.ImageType = imageUnknown
		}
	}
	for i := range cfg.Net {
		n := &cfg.Net[i]
		n.NumQueues, n.QueueSize = orDefault(n.NumQueues, 2), orDefault(n.QueueSize, 256)
	}
	cfg.readPlatformAliases(sections["platform"])
	for _, name := range foreignSections {
		if v, ok := sections[name]; ok && string(v) != "null" {
			cfg.Foreign = append(cfg.Foreign, name)
		}
	}
	return &cfg, nil
}

func requireFields(section string, raw json.RawMessage) error {
	if raw == nil {
		return nil
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return fmt.Errorf("%s: %w", section, err)
	}
	for _, f := range requiredFields[section] {
		if _, ok := fields[f]; !ok {
			return fmt.Errorf("missing field `%s`", f)
		}
	}
	return nil
}

// readPlatformAliases takes the older names of the SMBIOS fields, which the API still accepts.
func (c *vmConfig) readPlatformAliases(raw json.RawMessage) {
	var old struct {
		SerialNumber string `json:"serial_number"`
		UUID         string `json:"uuid"`
	}
	if c.Platform == nil || json.Unmarshal(raw, &old) != nil {
		return
	}
	if c.Platform.SerialNumber == "" {
		c.Platform.SerialNumber = old.SerialNumber
	}
	if c.Platform.UUID == "" {
		c.Platform.UUID = old.UUID
	}
}

func orDefault(v, def int) int {
	if v == 0 {
		return def
	}
	return v
}

// nameDevices gives every device without an id the one Cloud Hypervisor would give it, so that config.json names them.
func (c *vmConfig) nameDevices() {
	for i := range c.Disks {
		if c.Disks[i].ID == "" {
			c.Disks[i].ID = fmt.Sprintf("_disk%d", i)
		}
	}
	for i := range c.Net {
		if c.Net[i].ID == "" {
			c.Net[i].ID = fmt.Sprintf("_net%d", i)
		}
	}
}

// memorySize is the guest's RAM in bytes.
func (c *vmConfig) memorySize() int64 {
	size := c.Memory.Size
	for _, z := range c.Memory.Zones {
		size += z.Size
	}
	return size
}

// check refuses, before anything is started, what cannot be booted or what this program cannot do.
func (c *vmConfig) check() error {
	for _, check := range []func() error{
		c.checkPayload, c.checkForeign, c.checkMemory, c.checkDevices, c.checkFiles,
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// checkFiles opens what QEMU will open, because its own complaints are hard to read.
func (c *vmConfig) checkFiles() error {
	readable := func(what, path string, flags int) error {
		f, err := os.OpenFile(path, flags, 0) // the configuration's
		if err != nil {
			return because(what, err.Error())
		}
		return f.Close()
	}
	if err := readable("Cannot open kernel file", c.Payload.Kernel, os.O_RDONLY); err != nil {
		return err
	}
	if c.Payload.Initramfs != "" {
		if err := readable("Cannot open initramfs file", c.Payload.Initramfs, os.O_RDONLY); err != nil {
			return err
		}
	}
	for _, d := range c.Disks {
		flags := os.O_RDWR
		if d.ReadOnly {
			flags = os.O_RDONLY
		}
		if err := readable("Error from device manager: disk "+d.ID, d.Path, flags); err != nil {
			return err
		}
	}
	return nil
}

func (c *vmConfig) checkPayload() error {
	if c.Payload == nil || c.Payload.Kernel == "" && c.Payload.Firmware == "" {
		return because("Failed to validate config", "Payload configuration is not bootable",
			"No bootitem provided: neither firmware nor kernel")
	}
	if c.Payload.Firmware != "" {
		return unsupported("firmware")
	}
	if c.CPUs.Boot < 1 || c.CPUs.Max < c.CPUs.Boot {
		return because("Failed to validate config",
			fmt.Sprintf("%d boot CPUs of at most %d", c.CPUs.Boot, c.CPUs.Max))
	}
	return nil
}

func (c *vmConfig) checkForeign() error {
	if len(c.Foreign) > 0 {
		return unsupported(strings.Join(c.Foreign, ", "))
	}
	for name, set := range map[string]bool{
		"watchdog": c.Watchdog, "iommu": c.IOMMU, "pvpanic": c.PVPanic, "memory.hugepages": c.Memory.HugePages,
	} {
		if set {
			return unsupported(name)
		}
	}
	return nil
}

func (c *vmConfig) checkMemory() error {
	switch zones := len(c.Memory.Zones); {
	case zones > 1:
		return unsupported("more than one memory zone")
	case zones == 1 && c.Memory.Size != 0:
		return because("Memory manager error", "memory.size must be 0 with memory zones")
	case zones == 1 && c.Memory.Zones[0].HugePages:
		return unsupported("huge pages in a memory zone")
	case c.memorySize() <= 0 || c.memorySize()%(2<<20) != 0:
		return because("Memory manager error", fmt.Sprintf("%d bytes of memory: not a multiple of 2 MiB",
			c.memorySize()))
	}
	return nil
}

func (c *vmConfig) checkDevices() error {
	ids := map[string]bool{}
	unique := func(id string) error {
		if ids[id] {
			return because("Failed to validate config", fmt.Sprintf("Identifier %s is not unique", id))
		}
		ids[id] = true
		return nil
	}
	for _, d := range c.Disks {
		if d.ImageType != imageRaw {
			return unsupported("disk " + d.ID + ": image type " + d.ImageType + " (say Raw)")
		}
		if err := unique(d.ID); err != nil {
			return err
		}
	}
	for _, n := range c.Net {
		if n.Tap == "" {
			return unsupported("net " + n.ID + ": without the name of a tap")
		}
		if err := unique(n.ID); err != nil {
			return err
		}
	}
	for _, console := range []consoleConfig{c.Serial, c.Console} {
		switch console.Mode {
		case modeOff, modeNull, modeTTY, modeFile:
		default:
			return unsupported("console mode " + console.Mode)
		}
	}
	return nil
}

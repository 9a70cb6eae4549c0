package vmm

// Config is the part of Cloud Hypervisor's VmConfig that Stillframe sets. The VMM fills in everything left out.
type Config struct {
	CPUs    CPUs           `json:"cpus"`
	Memory  Memory         `json:"memory"`
	Payload Payload        `json:"payload"`
	Disks   []Disk         `json:"disks,omitempty"`
	Net     []Net          `json:"net,omitempty"`
	RNG     *RNG           `json:"rng,omitempty"`
	Vsock   *Vsock         `json:"vsock,omitempty"`
	Serial  *ConsoleDevice `json:"serial,omitempty"`
	// Console is the virtio console. The VMM's default is Tty, which a detached process does not have: NewConfig
	// switches it off.
	Console  *ConsoleDevice `json:"console,omitempty"`
	Platform *Platform      `json:"platform,omitempty"`
	// Landlock confines the VMM to the files named in its configuration (Cloud Hypervisor on a kernel with ABI 3).
	Landlock      bool           `json:"landlock_enable,omitempty"`
	LandlockRules []LandlockRule `json:"landlock_rules,omitempty"`
}

// NewConfig gives a configuration with what every VM here needs: equal boot and maximum CPUs, a kernel, no virtio
// console.
func NewConfig(vcpus int, payload Payload) Config {
	return Config{
		CPUs:    CPUs{Boot: vcpus, Max: vcpus},
		Payload: payload,
		Console: &ConsoleDevice{Mode: ConsoleOff},
	}
}

// CPUs is the number of virtual CPUs.
type CPUs struct {
	Boot int `json:"boot_vcpus"`
	Max  int `json:"max_vcpus"`
}

// Memory is the guest's RAM: Size bytes of anonymous memory, or Size 0 and Zones.
type Memory struct {
	Size   int64        `json:"size"`
	Shared bool         `json:"shared,omitempty"`
	Zones  []MemoryZone `json:"zones,omitempty"`
	// THP asks for huge pages in anonymous memory; nil is the VMM's default, which is true.
	THP *bool `json:"thp,omitempty"`
}

// MemoryZone is RAM with a backing of its own. With File and Shared set, the zone's content lives in that file, the VMM
// leaves it out of its snapshots, and the caller keeps it by cloning the file while the VM is paused. The file must
// exist at its full Size before the VM is booted or restored.
type MemoryZone struct {
	ID     string `json:"id"`
	Size   int64  `json:"size"` // bytes
	File   string `json:"file,omitempty"`
	Shared bool   `json:"shared"`
}

// Payload is what the VM boots. The initramfs is opened again at every restore.
type Payload struct {
	Kernel    string `json:"kernel,omitempty"`
	Initramfs string `json:"initramfs,omitempty"`
	Cmdline   string `json:"cmdline,omitempty"`
}

// ImageRaw is the disk format that must be named: left to find out, the VMM forbids the guest to write sector 0.
const ImageRaw = "Raw"

// Disk is a virtio block device. ID and Serial are given explicitly because the VMM derives them from the path
// otherwise, and the path changes from clone to clone.
type Disk struct {
	ID        string `json:"id,omitempty"`
	Path      string `json:"path"`
	Serial    string `json:"serial,omitempty"`
	ReadOnly  bool   `json:"readonly,omitempty"`
	Direct    bool   `json:"direct,omitempty"`
	ImageType string `json:"image_type,omitempty"`
}

// Net is a virtio network device on a tap that exists, is up, and is owned by the VMM's user.
type Net struct {
	ID  string `json:"id,omitempty"`
	Tap string `json:"tap,omitempty"`
	MAC string `json:"mac,omitempty"`
}

// RNG is the host's source of the virtio entropy device.
type RNG struct {
	Source string `json:"src"`
}

// Vsock is a virtio socket device; the socket must not exist and its folder must.
type Vsock struct {
	CID    uint32 `json:"cid"` // 3 or more
	Socket string `json:"socket"`
}

// ConsoleMode says where a console goes.
type ConsoleMode string

// Modes of a serial port or a virtio console.
const (
	ConsoleOff    ConsoleMode = "Off"
	ConsoleNull   ConsoleMode = "Null"
	ConsoleTTY    ConsoleMode = "Tty"
	ConsoleToFile ConsoleMode = "File"
)

// ConsoleDevice is a serial port or a virtio console. File is truncated when the VM boots or is restored.
type ConsoleDevice struct {
	Mode ConsoleMode `json:"mode"`
	File string      `json:"file,omitempty"`
}

// Platform is what the guest reads in its SMBIOS tables.
type Platform struct {
	SerialNumber string `json:"serial_number,omitempty"`
	UUID         string `json:"uuid,omitempty"`
}

// LandlockRule opens one path to a confined VMM; Access is "r", "w" or "rw".
type LandlockRule struct {
	Path   string `json:"path"`
	Access string `json:"access"`
}

// RestoreConfig says what to restore and how.
type RestoreConfig struct {
	SourceDir string // an absolute path with config.json and state.json
	Resume    bool   // run at once; else the VM ends Paused
}

package devvmm

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// emulationArgs are added to the guest kernel's command line where it does not already say something about them. They
// keep the kernel from measuring clocks against each other, which fails at random under emulation, and from work that
// costs only time here.
var emulationArgs = []string{"tsc=reliable", "no_timer_check", "nokaslr", "mitigations=off"}

func kernelArgs(cmdline string) string {
	words := strings.Fields(cmdline)
	given := map[string]bool{}
	for _, w := range words {
		key, _, _ := strings.Cut(w, "=")
		given[key] = true
	}
	for _, a := range emulationArgs {
		if key, _, _ := strings.Cut(a, "="); !given[key] {
			words = append(words, a)
		}
	}
	return strings.Join(words, " ")
}

// arguments is QEMU's command line. Devices get their ids and slots from their place in the configuration, so that a
// restored VM has the same ones.
func arguments(cfg *vmConfig, r *ram, incoming bool) []string {
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-S",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-accel", "tcg,thread=multi,tb-size=256",
		// vmdesc describes the saved state to people debugging QEMU; send-configuration must be off because the saved
		// state begins with the devices.
		"-machine", "q35,memory-backend=ram,suppress-vmdesc=on,vmport=off,smm=off,sata=off,smbus=off,usb=off," +
			"hpet=off,dump-guest-core=off",
		"-global", "migration.send-configuration=off",
		"-cpu", cpuModel,
		"-smp", fmt.Sprintf("%d,maxcpus=%d", cfg.CPUs.Boot, cfg.CPUs.Max),
		"-m", strconv.FormatInt(r.size, 10) + "B",
		"-object", object(map[string]any{
			"qom-type": "memory-backend-file", "id": "ram", "size": r.size, "share": r.mapShared,
			"mem-path": fmt.Sprintf("/proc/self/fd/%d", childRAM), "prealloc": r.prefault, "merge": false,
		}),
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", childQMP), "-mon", "chardev=qmp,mode=control",
		"-kernel", cfg.Payload.Kernel, "-append", kernelArgs(cfg.Payload.Cmdline),
	}
	if cfg.Payload.Initramfs != "" {
		args = append(args, "-initrd", cfg.Payload.Initramfs)
	}
	if incoming {
		args = append(args, "-incoming", fmt.Sprintf("fd:%d", childIncoming))
	}
	args = append(args, platformArgs(cfg.Platform)...)
	for i, d := range cfg.Disks {
		args = append(args, diskArgs(i, d)...)
	}
	for i, n := range cfg.Net {
		args = append(args, netArgs(i, n)...)
	}
	args = append(args,
		"-object", object(map[string]any{"qom-type": "rng-random", "id": "entropy", "filename": cfg.RNG.Source}),
		"-device", object(map[string]any{"driver": "virtio-rng-pci", "id": "rng", "rng": "entropy",
			"disable-legacy": "on"}),
	)
	return append(args, consoleArgs(cfg)...)
}

func platformArgs(p *platformConfig) []string {
	if p == nil {
		return nil
	}
	var args []string
	if p.UUID != "" {
		args = append(args, "-uuid", p.UUID)
	}
	if p.SerialNumber != "" {
		args = append(args, "-smbios", "type=1,serial="+escape(p.SerialNumber))
	}
	return args
}

func diskArgs(i int, d diskConfig) []string {
	node := fmt.Sprintf("disk%d", i)
	block := object(map[string]any{
		"driver": "raw", "node-name": node, "read-only": d.ReadOnly, "discard": "unmap",
		"file": map[string]any{
			"driver": "file", "node-name": node + "-file", "filename": d.Path, "read-only": d.ReadOnly,
			// QEMU flushes every disk when it stops the VM, which would put the host's fsync into each pause. A disk is
			// of no use after a crash of the host that took the VM's memory with it, and who keeps a copy syncs that
			// copy: so flushes end in the page cache, the guest's own too.
			"discard": "unmap", "cache": map[string]any{"direct": d.Direct, "no-flush": true},
			// A writable disk has one writer. Read-only ones are shared by all VMs of a template, and whoever replaces
			// a template's image must not be kept from it.
			"locking": map[bool]string{true: "off", false: "on"}[d.ReadOnly],
		},
	})
	device := map[string]any{
		"driver": "virtio-blk-pci", "id": diskDevice(i, d.ID), "drive": node, "disable-legacy": "on",
		// QEMU's own choice is to stop the VM where the host's disk is full. The guest gets an error, as elsewhere.
		"werror": "report", "rerror": "report",
		"num-queues": d.NumQueues, "queue-size": d.QueueSize,
	}
	if d.Serial != "" {
		device["serial"] = d.Serial
	}
	return []string{"-blockdev", block, "-device", object(device)}
}

func netArgs(i int, n netConfig) []string {
	backend := fmt.Sprintf("tap%d", i)
	device := map[string]any{
		"driver": "virtio-net-pci", "id": fmt.Sprintf("net%d", i), "netdev": backend, "disable-legacy": "on",
		// No boot from the network, so no ROM for it.
		"romfile": "",
	}
	if n.MAC != "" {
		device["mac"] = n.MAC
	}
	return []string{
		"-netdev", object(map[string]any{
			"type": "tap", "id": backend, "ifname": n.Tap, "script": "no", "downscript": "no", "vhost": false,
		}),
		"-device", object(device),
	}
}

func consoleArgs(cfg *vmConfig) []string {
	var args []string
	if cfg.Serial.Mode != modeOff {
		args = append(args, "-chardev", chardev("serial0", cfg.Serial), "-serial", "chardev:serial0")
	}
	if cfg.Console.Mode != modeOff {
		args = append(args, "-chardev", chardev("console0", cfg.Console),
			"-device", object(map[string]any{"driver": "virtio-serial-pci", "id": "console", "disable-legacy": "on"}),
			"-device", object(map[string]any{"driver": "virtconsole", "chardev": "console0"}))
	}
	return args
}

func chardev(id string, c consoleConfig) string {
	switch c.Mode {
	case modeFile:
		return "file,id=" + id + ",path=" + escape(c.File)
	case modeTTY:
		return "file,id=" + id + ",path=/dev/stdout,append=on"
	default:
		return "null,id=" + id
	}
}

// diskDevice makes QEMU's id of a disk: it must begin with a letter, which the API's ids need not.
func diskDevice(i int, id string) string { return fmt.Sprintf("d%d-%s", i, id) }

// deviceID finds the API's id in a path like /machine/peripheral/d0-base/virtio-backend.
func deviceID(qdev string) string {
	for _, part := range strings.Split(qdev, "/") {
		if n, id, ok := strings.Cut(part, "-"); ok && strings.HasPrefix(n, "d") {
			return id
		}
	}
	return qdev
}

// object writes an option as JSON, so that no path can be taken for another option.
func object(fields map[string]any) string {
	raw, err := json.Marshal(fields)
	if err != nil {
		panic(err) // strings, numbers and booleans can always be encoded
	}
	return string(raw)
}

// escape doubles commas for the options that take no JSON.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

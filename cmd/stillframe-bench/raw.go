package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"stillframe/hypervisor"
	"stillframe/hypervisor/guest"
	"stillframe/hypervisor/guest/clock"
	"stillframe/hypervisor/store"
	"stillframe/hypervisor/vmm"
	"stillframe/netpolicy"
)

// rawVM is a virtual machine driven by the VMM's API alone: the baseline. It boots the same images as a sandbox.
type rawVM struct {
	probe
	dir   string
	ns    *netpolicy.Namespace
	proc  *vmm.Process
	api   *vmm.Client
	stop  context.CancelFunc
	clock chan error
}

// rawHost is what raw VMs need of the machine.
type rawHost struct {
	dir    string
	choice vmm.Choice
	images *hypervisor.Images
	count  int
}

// start makes folder, namespace and VMM process; the VM is for the caller to boot or restore.
func (h *rawHost) start(ctx context.Context) (_ *rawVM, err error) {
	h.count++
	name := fmt.Sprintf("sfbench-%d-%d", os.Getpid(), h.count)
	v := &rawVM{dir: filepath.Join(h.dir, name)}
	if err := os.Mkdir(v.dir, 0o700); err != nil {
		return nil, err
	}
	if v.ns, err = netpolicy.Create(ctx, name); err != nil {
		return nil, err
	}
	v.proc, err = vmm.Start(ctx, vmm.StartOptions{
		Binary: h.choice.Binary, Dir: v.dir, SocketPath: filepath.Join(v.dir, "vmm.sock"),
		LogPath: filepath.Join(v.dir, "vmm.log"), NetNS: v.ns.Path(),
	})
	if err != nil {
		return nil, errors.Join(err, netpolicy.Destroy(ctx, name))
	}
	v.api, v.client = v.proc.Client(), guest.NewClient(v.ns.DialContext)
	return v, v.serveClock(ctx)
}

func (v *rawVM) serveClock(ctx context.Context) error {
	var conn net.PacketConn
	err := v.ns.Do(func() (err error) {
		conn, err = (&net.ListenConfig{}).ListenPacket(ctx, "udp4", net.JoinHostPort(guest.HostIP,
			strconv.Itoa(guest.ClockPort)))
		return err
	})
	if err != nil {
		return err
	}
	clockCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	v.stop, v.clock = cancel, make(chan error, 1)
	go func() { v.clock <- clock.Serve(clockCtx, conn) }()
	return nil
}

// config is a sandbox's configuration, with the RAM in a file of its own or anonymous.
func (h *rawHost) config(v *rawVM, mib int, ramFile string) (vmm.Config, error) {
	template := h.images.Templates[0]
	for _, t := range h.images.Templates {
		if t.Name == benchTemplate {
			template = t
		}
	}
	cfg := vmm.NewConfig(1, vmm.Payload{
		Kernel: h.images.Kernel, Initramfs: h.images.Initramfs, Cmdline: hypervisor.KernelCommandLine(""),
	})
	cfg.Memory.Size = int64(mib) << 20
	if ramFile != "" {
		cfg.Memory = vmm.Memory{Zones: []vmm.MemoryZone{{ID: "ram", Size: int64(mib) << 20, File: ramFile, Shared: true}}}
		if err := store.New().Allocate(ramFile, int64(mib)<<20, false); err != nil {
			return cfg, err
		}
	}
	disk := filepath.Join(v.dir, "disk")
	if _, err := store.New().Clone(context.Background(), h.images.Overlay, disk); err != nil {
		return cfg, err
	}
	cfg.Disks = []vmm.Disk{
		{ID: "base", Serial: "base", Path: template.Path, ReadOnly: true, ImageType: vmm.ImageRaw},
		{ID: "overlay", Serial: "overlay", Path: disk, ImageType: vmm.ImageRaw},
	}
	cfg.Net = []vmm.Net{{ID: "net0", Tap: "tap0", MAC: guest.GuestMAC}}
	cfg.RNG = &vmm.RNG{Source: "/dev/urandom"}
	cfg.Serial = &vmm.ConsoleDevice{Mode: vmm.ConsoleOff}
	return cfg, nil
}

// boot brings a VM up until its agent answers.
func (h *rawHost) boot(ctx context.Context, mib int, fileRAM bool) (*rawVM, error) {
	v, err := h.start(ctx)
	if err != nil {
		return nil, err
	}
	ramFile := ""
	if fileRAM {
		ramFile = filepath.Join(v.dir, "ram")
	}
	cfg, err := h.config(v, mib, ramFile)
	if err == nil {
		err = v.api.Create(ctx, cfg)
	}
	if err == nil {
		err = v.api.Boot(ctx)
	}
	if err == nil {
		_, err = v.client.WaitHealthy(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, v.end())
	}
	return v, nil
}

// dump is the VMM's own snapshot: pause, everything to files, resume.
func (v *rawVM) dump(ctx context.Context, dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := v.api.Pause(ctx); err != nil {
		return err
	}
	if err := v.api.Snapshot(ctx, dir); err != nil {
		return errors.Join(err, v.api.Resume(ctx))
	}
	return v.api.Resume(ctx)
}

// giveDisk puts a copy of the paused VM's disk beside its dump and makes the dump name it: the VM that is restored must
// not share a disk with its source, which still has it open. It is not part of what is timed.
func (v *rawVM) giveDisk(ctx context.Context, dump string) error {
	disk := filepath.Join(dump, "disk")
	if err := os.Remove(disk); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := store.New().Clone(ctx, filepath.Join(v.dir, "disk"), disk); err != nil {
		return err
	}
	return vmm.PatchSnapshotConfig(dump, vmm.ConfigEdits{DiskPaths: map[string]string{"overlay": disk}})
}

// restore is the VMM's own full restore in a fresh process, until a first command has answered.
func (h *rawHost) restore(ctx context.Context, from string) (time.Duration, error) {
	began := time.Now()
	v, err := h.start(ctx)
	if err != nil {
		return 0, err
	}
	if err = v.api.Restore(ctx, vmm.RestoreConfig{SourceDir: from}); err == nil {
		err = v.api.Resume(ctx)
	}
	if err == nil {
		_, err = v.client.WaitHealthy(ctx)
	}
	if err == nil {
		_, err = v.sh(ctx, "true")
	}
	took := time.Since(began)
	return took, errors.Join(err, v.end())
}

// end removes the VM and all that was made for it.
func (v *rawVM) end() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	err := errors.Join(v.proc.Kill(ctx), v.proc.Close())
	if v.stop != nil {
		v.stop()
		err = errors.Join(err, <-v.clock)
	}
	return errors.Join(err, netpolicy.Destroy(ctx, v.ns.Name()), os.RemoveAll(v.dir))
}

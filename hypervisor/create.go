package hypervisor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"

	"stillframe/fsm"
	"stillframe/hypervisor/guest"
	"stillframe/hypervisor/vmm"
	"stillframe/netpolicy"
)

// birth is a sandbox on its way to running, by boot or by restore. Its steps share what they have made.
type birth struct {
	o     *Owner
	sb    fsm.Sandbox
	files machineFiles
	in    fsm.Intent
	net   *netpolicy.Network
	m     *machine
}

// newBirth gives a birth that can be undone, also where it gives an error.
func (o *Owner) newBirth(in fsm.Intent) (*birth, error) {
	b := &birth{o: o, sb: fsm.Sandbox{ID: in.Sandbox}, in: in, files: machineFiles{o.sandboxDir(in.Sandbox)}}
	sb, ok := o.cfg.Log.State().Sandbox(in.Sandbox)
	if !ok {
		return b, fsm.Errorf(fsm.KindInternal, "intent %s is for sandbox %s, which is not there", in.ID, in.Sandbox)
	}
	b.sb = sb
	if o.cfg.Networks == nil {
		return b, o.noNetworks()
	}
	return b, nil
}

func (o *Owner) planCreate(in fsm.Intent) (plan, error) {
	b, err := o.newBirth(in)
	if err != nil {
		return plan{undo: b.undo}, err
	}
	image, err := o.cfg.Images.ByDigest(b.sb.TemplateDigest)
	if err != nil {
		return plan{undo: b.undo}, fsm.Wrap(fsm.KindUnavailable, err, "this node has no image of template %s",
			b.sb.TemplateName)
	}
	return plan{undo: b.undo, steps: []step{
		{StepReserve, b.reserve},
		{StepNetwork, b.network},
		{StepDisk, b.freshDisk},
		{StepMemory, b.freshMemory},
		{StepVMMStart, b.startVMM},
		{StepVMCreate, func(ctx context.Context) error { return b.createVM(ctx, image) }},
		{StepVMBoot, b.bootVM},
		{StepGuestReady, b.guestReady},
		{StepIdentity, b.identity},
		{StepCommit, nil},
	}}, nil
}

// undo removes all that the birth has made; a sandbox that failed to be born leaves nothing.
func (b *birth) undo(ctx context.Context, _ *fsm.Complete) {
	ctx, cancel := context.WithTimeout(ctx, b.o.cfg.Deadline)
	defer cancel()
	if err := b.o.destroy(ctx, b.sb.ID); err != nil {
		// The folder is still there, so that the next start tries again.
		b.o.log.Error("a failed sandbox could not be removed whole", "sandbox", b.sb.ID, "error", err)
	}
}

// reserve makes the sandbox's folder, after removing what an interrupted earlier attempt has left.
func (b *birth) reserve(ctx context.Context) error {
	if err := b.o.destroy(ctx, b.sb.ID); err != nil {
		return fmt.Errorf("remove an earlier attempt: %w", err)
	}
	if err := b.o.files.EnsureSpace(b.o.sandboxesDir(), minimumSpace); err != nil {
		return err
	}
	return os.Mkdir(b.files.dir, 0o700)
}

// minimumSpace is what must be free, in bytes, before a sandbox is made: RAM and disk files are sparse, so this is not
// what they may grow to, but enough for a guest to boot.
const minimumSpace = 512 << 20

// network comes before there is a VM: the policy is in force, and read back, before anything could send.
func (b *birth) network(ctx context.Context) error {
	spec, err := b.o.networkSpec(b.sb)
	if err != nil {
		return err
	}
	step, end := b.o.subSteps(b.in)
	b.net, err = b.o.cfg.Networks.Create(ctx, namespaceName(b.sb.ID), spec, step)
	end(err)
	return err
}

func (b *birth) freshDisk(ctx context.Context) error {
	_, err := b.o.files.Clone(ctx, b.o.cfg.Images.Overlay, b.files.disk())
	return err
}

func (b *birth) freshMemory(context.Context) error {
	return b.o.files.Allocate(b.files.ram(), b.sb.MemoryMiB<<20, false)
}

func (b *birth) startVMM(ctx context.Context) (err error) {
	b.m, err = b.o.startVMM(ctx, b.sb.ID, &egress{ns: b.net.Namespace(), net: b.net})
	return err
}

// KernelCommandLine is what every guest's kernel is started with; extra is the operator's addition.
func KernelCommandLine(extra string) string {
	return strings.TrimSpace("console=ttyS0 quiet panic=-1 reboot=t " + extra)
}

func (b *birth) createVM(ctx context.Context, image TemplateImage) error {
	cfg := vmm.NewConfig(b.sb.VCPU, vmm.Payload{
		Kernel:    b.o.cfg.Images.Kernel,
		Initramfs: b.o.cfg.Images.Initramfs,
		Cmdline:   KernelCommandLine(b.o.cfg.KernelArgs),
	})
	cfg.Memory.Zones = []vmm.MemoryZone{{ID: ramZone, Size: b.sb.MemoryMiB << 20, File: b.files.ram(), Shared: true}}
	cfg.Disks = []vmm.Disk{
		{ID: baseDisk, Serial: baseDisk, Path: image.Path, ReadOnly: true, ImageType: vmm.ImageRaw},
		{ID: overlayDisk, Serial: overlayDisk, Path: b.files.disk(), ImageType: vmm.ImageRaw},
	}
	cfg.Net = []vmm.Net{{ID: netDevice, Tap: tapName, MAC: guest.GuestMAC}}
	cfg.RNG = &vmm.RNG{Source: "/dev/urandom"}
	cfg.Serial = &vmm.ConsoleDevice{Mode: vmm.ConsoleToFile, File: b.files.serial()}
	return b.o.metrics.vmmCall("vm.create", func() error { return b.m.api.Create(ctx, cfg) })
}

func (b *birth) bootVM(ctx context.Context) error {
	return b.o.metrics.vmmCall("vm.boot", func() error { return b.m.api.Boot(ctx) })
}

func (b *birth) guestReady(ctx context.Context) error {
	ctx, cancel := b.m.untilExit(ctx)
	defer cancel()
	_, err := b.m.guest.WaitHealthy(ctx)
	return err
}

// identity makes the guest this sandbox: without it clones would share id, clock and random numbers. It also has the
// guest's programs trust the authority by which transforms are made.
func (b *birth) identity(ctx context.Context) error {
	ctx, cancel := b.m.untilExit(ctx)
	defer cancel()
	env := b.sb.EnvVars
	if env == nil {
		env = map[string]string{}
	}
	ca := b.net.CACertPEM()
	got, err := b.m.guest.SetIdentity(ctx, guest.Identity{SandboxID: string(b.sb.ID), Env: env, CAPEM: string(ca)})
	if err != nil {
		return err
	}
	if sum := sha256.Sum256(ca); got.CA != hex.EncodeToString(sum[:]) {
		return errors.New("the agent has not installed the sandbox's certificate authority")
	}
	if !got.Reseeded || got.SandboxID != string(b.sb.ID) {
		return fmt.Errorf("the agent took identity %q (reseeded %t)", got.SandboxID, got.Reseeded)
	}
	return os.WriteFile(b.files.born(), nil, 0o600)
}

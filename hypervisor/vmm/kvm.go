package vmm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// KVM's ioctl numbers and exit reasons, from linux/kvm.h for x86-64.
const (
	kvmGetAPIVersion       = 0xae00
	kvmCreateVM            = 0xae01
	kvmGetVCPUMmapSize     = 0xae04
	kvmCreateVCPU          = 0xae41
	kvmSetUserMemoryRegion = 0x4020ae46
	kvmRun                 = 0xae80
	kvmSetRegs             = 0x4090ae82
	kvmGetSregs            = 0x8138ae83
	kvmSetSregs            = 0x4138ae84

	kvmAPIVersion = 12
	kvmExitIO     = 2
	sregsSize     = 0x138
)

// ProbeKVM tells whether KVM on this machine can run an ordinary guest: nil if so, else why not, for people.
//
// A device that opens is not enough. There are kernels whose KVM works without the CPU's virtualization extensions
// ("pagetable virtual machines", for nesting in clouds): they answer every capability, create VMs, and even run
// real-mode code, by emulating it, but only kernels built for them can boot. They cannot be told apart by asking KVM;
// they can by the CPU, which shows neither vmx nor svm there. Conversely, flags alone prove nothing about the device,
// so a few instructions of guest code are run too. Both together take about 3 ms.
func ProbeKVM() error {
	flags, err := cpuFlags()
	if err != nil {
		return err
	}
	if !slices.Contains(flags, "vmx") && !slices.Contains(flags, "svm") {
		return errors.New("the CPU shows neither vmx nor svm, so a KVM here could not boot ordinary kernels")
	}
	return runGuestCode()
}

// kvmGuest writes one byte to an I/O port and halts: mov al, 0x42; out 0x10, al; hlt.
var kvmGuest = []byte{0xb0, probeByte, 0xe6, probePort, 0xf4}

const (
	probeByte = 0x42
	probePort = 0x10
)

func runGuestCode() error {
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = kvm.Close() }()
	version, err := ioctl(kvm.Fd(), kvmGetAPIVersion, nil)
	if err != nil || version != kvmAPIVersion {
		return fmt.Errorf("KVM API version %d (%w)", version, err)
	}
	vm, err := ioctl(kvm.Fd(), kvmCreateVM, nil)
	if err != nil {
		return fmt.Errorf("create a VM: %w", err)
	}
	defer func() { _ = unix.Close(int(vm)) }()
	mem, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANON)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(mem) }()
	copy(mem, kvmGuest)
	region := struct {
		slot, flags     uint32
		addr, size, src uint64
	}{size: uint64(len(mem)), src: uint64(uintptr(unsafe.Pointer(&mem[0])))}
	if _, err := ioctl(vm, kvmSetUserMemoryRegion, unsafe.Pointer(&region)); err != nil {
		return fmt.Errorf("give the VM memory: %w", err)
	}
	vcpu, err := ioctl(vm, kvmCreateVCPU, nil)
	if err != nil {
		return fmt.Errorf("create a virtual CPU: %w", err)
	}
	defer func() { _ = unix.Close(int(vcpu)) }()
	return runVCPU(kvm.Fd(), vcpu)
}

// runVCPU starts the code at address 0 in real mode and looks for its byte on the port.
func runVCPU(kvm, vcpu uintptr) error {
	size, err := ioctl(kvm, kvmGetVCPUMmapSize, nil)
	if err != nil {
		return err
	}
	run, err := unix.Mmap(int(vcpu), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(run) }()
	var sregs [sregsSize]byte
	if _, err := ioctl(vcpu, kvmGetSregs, unsafe.Pointer(&sregs)); err != nil {
		return fmt.Errorf("read the CPU's registers: %w", err)
	}
	clear(sregs[0:8])   // cs.base
	clear(sregs[12:14]) // cs.selector
	if _, err := ioctl(vcpu, kvmSetSregs, unsafe.Pointer(&sregs)); err != nil {
		return fmt.Errorf("set the CPU's segments: %w", err)
	}
	regs := [18]uint64{17: 2} // rip 0; bit 1 of rflags is always set
	if _, err := ioctl(vcpu, kvmSetRegs, unsafe.Pointer(&regs)); err != nil {
		return fmt.Errorf("set the CPU's registers: %w", err)
	}
	if _, err := ioctl(vcpu, kvmRun, nil); err != nil {
		return fmt.Errorf("run guest code: %w", err)
	}
	// struct kvm_run: exit_reason at 8; for I/O from 32: direction, size, port (2), count (4), data_offset (8).
	reason, port := binary.NativeEndian.Uint32(run[8:]), binary.NativeEndian.Uint16(run[34:])
	if reason != kvmExitIO || port != probePort {
		return fmt.Errorf("guest code ended with exit reason %d, not with its I/O", reason)
	}
	if at := binary.NativeEndian.Uint64(run[40:]); at >= uint64(len(run)) || run[at] != probeByte {
		return errors.New("guest code wrote another value than it holds")
	}
	return nil
}

// ioctl takes a pointer, not its number, so that the argument cannot move before the kernel has read it.
func ioctl(fd, request uintptr, arg unsafe.Pointer) (uintptr, error) {
	for {
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(arg))
		switch errno {
		case 0:
			return r, nil
		case unix.EINTR: // a signal of the Go runtime
		default:
			return r, errno
		}
	}
}

func cpuFlags() ([]string, error) {
	raw, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return nil, fmt.Errorf("read the CPU's flags: %w", err)
	}
	var flags []string
	for _, f := range bytes.Fields([]byte(cpuField(raw, "flags"))) {
		flags = append(flags, string(f))
	}
	return flags, nil
}

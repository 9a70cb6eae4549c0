// Package devvmm is the development VMM: it serves the REST API of Cloud Hypervisor on a Unix socket and runs the VM in
// QEMU with software emulation, so that every machine can run real VMs and the driver has one way to do things. It
// imports nothing of ours; cmd/stillframe-devvmm is its main.
//
// # What is the same as Cloud Hypervisor
//
// The command line's API, event and log options; paths, methods, status codes and bodies of the requests it serves; the
// states and what each request does in each of them; one request at a time; the files of a snapshot folder and when
// memory is left out of it; a restore ends Paused unless asked otherwise, and may follow a failed one; a guest that
// powers off ends the process, one that resets is booted again. A configuration may hold keys that nobody knows. One
// that Cloud Hypervisor knows and this program cannot do is refused when the VM is booted, never ignored.
//
// # What is not
//
// No vsock, no hotplug, no migration, no passthrough, one memory zone at most. Snapshots are restored by the same
// program with the same QEMU only. Emulation is ten to thirty times slower than hardware.
//
// # How it is done
//
//   - QEMU is a child that talks QMP over a socket pair, confined by seccomp, and dies with this process.
//   - Guest memory is always a file mapped by QEMU: the configured one, or a memfd of ours. So the device state never
//     contains it: device state is some 100 KiB and saved in about 2 ms.
//   - The device state goes from QEMU into a memfd and from there, with its size and digest, into state.json; a restore
//     hands it to a new QEMU as an incoming migration. QMP's xen-save-devices-state does exactly this (nothing in it
//     needs Xen), while QMP's migrate would start threads, take the disks away and have to be undone.
//
// # Guarantees
//
// Between pause and resume the guest does not run and its disk writes are in the host's page cache. A truncated or
// altered state.json is noticed.
//
// # Not guaranteed
//
// Nothing is synced, neither snapshots, which is the caller's part as with Cloud Hypervisor, nor disks: a guest's flush
// ends in the host's page cache, so that a pause never waits for the host's disk. A crash of the host loses the VM
// anyway.
package devvmm

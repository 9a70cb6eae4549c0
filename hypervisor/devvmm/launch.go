package devvmm

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// launchArg makes the program become QEMU instead of a VMM. It is not for people.
const launchArg = "launch-qemu"

// MaybeLaunch becomes QEMU if the arguments ask for it, and returns only if they do not or if that failed. The detour
// exists to run a few lines between fork and exec.
func MaybeLaunch(args []string) error {
	if len(args) < 3 || args[1] != launchArg {
		return nil
	}
	// The filter is the thread's until exec makes it the process's.
	runtime.LockOSThread()
	if err := refuseHugePages(); err != nil {
		return fmt.Errorf("launch QEMU: %w", err)
	}
	return fmt.Errorf("launch QEMU: %w", unix.Exec(args[2], args[2:], os.Environ()))
}

// refuseHugePages makes madvise(MADV_HUGEPAGE) fail in this process for good. QEMU asks for huge pages on all guest
// memory and has no switch for it; on a file system with large folios one written byte then dirties 2 MiB of the memory
// file, which a snapshot must write back while the guest waits. QEMU goes on without them.
func refuseHugePages() error {
	const (
		loadArch = 4  // offsets in struct seccomp_data
		loadArg2 = 32 // low half of the third argument, the advice
		retAllow = 0x7fff0000
		retErrno = 0x00050000
		archX64  = 0xc000003e
		load     = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		jumpEq   = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		ret      = unix.BPF_RET | unix.BPF_K
	)
	program := []unix.SockFilter{
		{Code: load, K: loadArch},
		{Code: jumpEq, K: archX64, Jf: 5},
		{Code: load, K: 0},
		{Code: jumpEq, K: unix.SYS_MADVISE, Jf: 3},
		{Code: load, K: loadArg2},
		{Code: jumpEq, K: unix.MADV_HUGEPAGE, Jf: 1},
		{Code: ret, K: retErrno | uint32(unix.EINVAL)},
		{Code: ret, K: retAllow},
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	const setModeFilter = 1
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, setModeFilter, 0, uintptr(unsafe.Pointer(&filter))); errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	return nil
}

package vmm

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Codes of a SIGCHLD siginfo, from the kernel's asm-generic/siginfo.h.
const (
	cldExited = 1
	cldKilled = 2
	cldDumped = 3
)

// childStatus reads si_status, which the Siginfo type does not name. On 64-bit Linux the union begins at byte 16 with
// si_pid, si_uid and si_status, four bytes each.
func childStatus(info *unix.Siginfo) int {
	const statusOffset = 24
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(info), statusOffset))) // fixed kernel layout
}

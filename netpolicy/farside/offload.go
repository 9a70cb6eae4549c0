package farside

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// writeChecksums has checksums of what leaves by a link of the calling thread's namespace written before, as where a
// network card does not do it.
func writeChecksums(name string) error {
	const setTxChecksum = 0x17 // ETHTOOL_STXCSUM
	value := struct{ command, data uint32 }{command: setTxChecksum}
	request := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(request.name[:], name)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	if errno != 0 {
		return fmt.Errorf("have checksums of %s written: %w", name, errno)
	}
	return nil
}

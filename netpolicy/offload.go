package netpolicy

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// finishPackets has whatever leaves by a link of the calling thread's namespace made complete before: checksums
// written, large packets cut. A guest's network device may leave both to be done later, and says itself where the
// checksum goes: done behind the rules, that is a way to change what they have seen.
func finishPackets(link string) error {
	const setTxChecksum = 0x17 // ETHTOOL_STXCSUM, which takes cutting with it
	value := struct{ command, data uint32 }{command: setTxChecksum}
	request := struct { // struct ifreq
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(request.name[:], link)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	if errno != 0 {
		return fmt.Errorf("have packets of %s made complete: %w", link, errno)
	}
	return nil
}

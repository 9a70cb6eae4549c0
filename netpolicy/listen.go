package netpolicy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"stillframe/netpolicy/gate"
)

// listen opens the sockets that the rules lead the guest's connections to. On an error none is left open.
func listen(ctx context.Context, ns *Namespace) (sb gate.Sandbox, err error) {
	var open []interface{ Close() error }
	defer func() {
		if err == nil {
			return
		}
		for _, s := range open {
			err = errors.Join(err, s.Close())
		}
	}()
	proxy, dns := net.JoinHostPort(HostIP, strconv.Itoa(ProxyPort)), net.JoinHostPort(HostIP, strconv.Itoa(DNSPort))
	var lc net.ListenConfig
	err = ns.Do(func() (err error) {
		if sb.TCP, err = lc.Listen(ctx, "tcp4", proxy); err != nil {
			return err
		}
		open = append(open, sb.TCP)
		if sb.DNSTCP, err = lc.Listen(ctx, "tcp4", dns); err != nil {
			return err
		}
		open = append(open, sb.DNSTCP)
		if sb.UDP, err = lc.ListenPacket(ctx, "udp4", dns); err != nil {
			return err
		}
		open = append(open, sb.UDP)
		return nil
	})
	if err != nil {
		return gate.Sandbox{}, fmt.Errorf("listen in %s: %w", ns.name, err)
	}
	sb.OriginalDst = originalDst
	return sb, nil
}

// originalDst asks the connection table where a connection was opened to before it was led here.
func originalDst(c net.Conn) (netip.AddrPort, error) {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("original destination of a %T", c)
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	var addr unix.RawSockaddrInet4
	size := uint32(unsafe.Sizeof(addr))
	var errno unix.Errno
	err = raw.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_IP, soOriginalDst,
			uintptr(unsafe.Pointer(&addr)), uintptr(unsafe.Pointer(&size)), 0)
	})
	if err == nil && errno != 0 {
		err = errno
	}
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", err)
	}
	port := (*[2]byte)(unsafe.Pointer(&addr.Port))
	return netip.AddrPortFrom(netip.AddrFrom4(addr.Addr), uint16(port[0])<<8|uint16(port[1])), nil
}

// soOriginalDst is SO_ORIGINAL_DST of linux/netfilter_ipv4.h.
const soOriginalDst = 80

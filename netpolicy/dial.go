package netpolicy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// DialContext connects from inside the namespace. network is tcp, tcp4, udp or udp4, addr an IPv4 address and port.
//
// Only making the socket needs a thread in the namespace, for some microseconds; waiting for the peer takes none, so
// that many attempts can be under way at once.
func (ns *Namespace) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := ns.dial(ctx, network, addr)
	if err != nil {
		return nil, fmt.Errorf("dial %s %s in %s: %w", network, addr, ns.name, err)
	}
	return conn, nil
}

func (ns *Namespace) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	if !ap.Addr().Is4() {
		return nil, errors.New("not an IPv4 address")
	}
	var kind int
	switch network {
	case "tcp", "tcp4":
		kind = unix.SOCK_STREAM
	case "udp", "udp4":
		kind = unix.SOCK_DGRAM
	default:
		return nil, net.UnknownNetworkError(network)
	}
	fd := -1
	err = ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	sock := os.NewFile(uintptr(fd), addr)
	defer sock.Close() //nolint:errcheck // net.FileConn works on its own copy
	if err := connect(ctx, sock, fd, ap); err != nil {
		return nil, err
	}
	return net.FileConn(sock)
}

// connect connects a non-blocking socket, waiting in Go's poller.
func connect(ctx context.Context, sock *os.File, fd int, to netip.AddrPort) error {
	err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EINPROGRESS) {
		return os.NewSyscallError("connect", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = sock.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := sock.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = raw.Write(func(fd uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}} // a descriptor fits
		if n, _ := unix.Poll(poll, 0); n == 0 {
			return false
		}
		errno, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && errno != 0 {
			err = unix.Errno(errno)
		}
		result = os.NewSyscallError("connect", err)
		return true
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.Join(err, result)
}

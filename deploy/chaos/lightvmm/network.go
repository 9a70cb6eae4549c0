package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"stillframe/hypervisor/guest"
)

// network is the guest's side of the tap: a network namespace without a name that this process alone holds, with a tap
// of its own for a network card. Frames are carried between the two taps, so that what reaches the agent has come
// through the sandbox's tap, and nothing of the sandbox's namespace is touched.
type network struct {
	host, card *os.File
	listener   net.Listener
	server     *http.Server
	work       sync.WaitGroup
}

// maxFrame is more than any frame of these taps: they offload nothing, so that none is larger than the MTU.
const maxFrame = 64 << 10

func openNetwork(tap string) (*network, error) {
	host, err := openTap(tap)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", tap, err)
	}
	n := &network{host: host}
	made := make(chan error, 1)
	go func() {
		// The thread is in the other namespace from here on and is never used again: it ends with this goroutine.
		runtime.LockOSThread()
		made <- n.makeInside()
	}()
	if err := <-made; err != nil {
		return nil, errors.Join(fmt.Errorf("make the guest's network: %w", err), host.Close())
	}
	return n, nil
}

// openTap opens a tap that is there, or makes it.
func openTap(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (n *network) makeInside() (err error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	if n.card, err = openTap("eth0"); err != nil {
		return err
	}
	if err := addressCard(); err != nil {
		return errors.Join(err, n.card.Close())
	}
	n.listener, err = (&net.ListenConfig{KeepAlive: -1}).Listen(context.Background(), "tcp4", guest.Addr)
	if err != nil {
		return errors.Join(err, n.card.Close())
	}
	return nil
}

// addressCard gives the card what a real guest's agent gives it.
func addressCard() error {
	card, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	mac, err := net.ParseMAC(guest.GuestMAC)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetHardwareAddr(card, mac); err != nil {
		return err
	}
	own := &net.IPNet{IP: net.ParseIP(guest.GuestIP).To4(), Mask: net.CIDRMask(30, 32)}
	if err := netlink.AddrAdd(card, &netlink.Addr{IPNet: own}); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(card); err != nil {
		return err
	}
	if mac, err = net.ParseMAC(guest.HostMAC); err != nil {
		return err
	}
	return netlink.NeighSet(&netlink.Neigh{
		LinkIndex: card.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.ParseIP(guest.HostIP), HardwareAddr: mac,
	})
}

// serve carries frames and answers; gate is passed before each frame.
func (n *network) serve(agent http.Handler, gate func()) {
	carry := func(from, to *os.File) {
		frame := make([]byte, maxFrame)
		for {
			size, err := from.Read(frame)
			if err != nil {
				return // closed
			}
			gate()
			// A frame that does not fit is lost, as on any network.
			_, _ = to.Write(frame[:size])
		}
	}
	n.work.Go(func() { carry(n.host, n.card) })
	n.work.Go(func() { carry(n.card, n.host) })
	n.server = &http.Server{Handler: agent, ReadHeaderTimeout: 10 * time.Second}
	n.work.Go(func() { _ = n.server.Serve(n.listener) }) // ends when it is closed
}

func (n *network) close() error {
	var err error
	if n.server != nil {
		err = n.server.Close()
	} else {
		err = n.listener.Close()
	}
	err = errors.Join(err, n.host.Close(), n.card.Close())
	n.work.Wait()
	return err
}

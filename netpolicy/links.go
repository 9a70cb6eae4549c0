package netpolicy

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// configure sets up the network namespace of the calling thread.
func configure() error {
	if err := applySysctls(plainSysctls); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	if err := createTap(); err != nil {
		return fmt.Errorf("make %s: %w", TapName, err)
	}
	return addressTap()
}

// createTap makes a tap that stays when its file is closed, with one queue and the header that virtio devices expect.
func createTap() error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/net/tun: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // the tap is persistent
	ifr, err := unix.NewIfreq(TapName)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return err
	}
	return unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1)
}

// plainSysctls turn off what could carry a packet elsewhere, before there is a link.
var plainSysctls = []sysctl{
	{"ipv6/conf/all/disable_ipv6", "1"},
	{"ipv6/conf/default/disable_ipv6", "1"},
	{"ipv4/ip_forward", "0"},
}

// addressTap gives tap0 its addresses and brings it up.
func addressTap() error {
	if err := nameTap(); err != nil {
		return err
	}
	return raiseTap()
}

// nameTap gives tap0 its addresses. It can be repeated.
func nameTap() error {
	tap, err := netlink.LinkByName(TapName)
	if err != nil {
		return err
	}
	if tap.Attrs().HardwareAddr.String() != HostMAC {
		if err := netlink.LinkSetHardwareAddr(tap, mustMAC(HostMAC)); err != nil {
			return fmt.Errorf("hardware address: %w", err)
		}
	}
	err = netlink.AddrAdd(tap, &netlink.Addr{IPNet: hostNet()})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("address: %w", err)
	}
	return nil
}

// raiseTap brings tap0 up, and tells it the guest's hardware address.
func raiseTap() error {
	tap, err := netlink.LinkByName(TapName)
	if err != nil {
		return err
	}
	return raiseLink(tap, netip.MustParseAddr(GuestIP), mustMAC(GuestMAC))
}

// removeLinks cuts the namespace off: from its guest, and from the host.
func removeLinks() error {
	for _, name := range []string{TapName, UplinkName} {
		link, err := netlink.LinkByName(name)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			continue
		}
		if err != nil {
			return err
		}
		if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("remove %s: %w", name, err)
		}
	}
	return nil
}

// inUse tells whether a process is in the namespace or somebody has its tap open (which shows as its carrier).
func (ns *Namespace) inUse() (bool, error) {
	h, err := ns.open()
	if err != nil {
		return false, err
	}
	defer h.Close() //nolint:errcheck // only looked at
	st, err := h.Stat()
	if err != nil {
		return false, err
	}
	if populated, err := hasProcess(st); populated || err != nil {
		return populated, err
	}
	var open bool
	err = ns.Do(func() error {
		tap, err := netlink.LinkByName(TapName)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		if err != nil {
			return err
		}
		open = tap.Attrs().RawFlags&unix.IFF_LOWER_UP != 0
		return nil
	})
	return open, err
}

func hasProcess(ns fs.FileInfo) (bool, error) {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return false, err
	}
	for _, p := range procs {
		if _, err := strconv.Atoi(p.Name()); err != nil || p.Name() == strconv.Itoa(os.Getpid()) {
			continue // this process is only ever in it for an instant, on a thread of Do
		}
		st, err := os.Stat(filepath.Join("/proc", p.Name(), "ns/net"))
		if err == nil && os.SameFile(st, ns) {
			return true, nil
		}
	}
	return false, nil
}

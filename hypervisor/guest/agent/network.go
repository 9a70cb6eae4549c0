package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/vishvananda/netlink"

	"stillframe/hypervisor/guest"
)

const (
	nicName  = "eth0"
	nicWait  = 10 * time.Second
	hostMask = 30
)

// configureNetwork brings up lo and eth0 with the fixed addresses, IPv4 only. The node's hardware address is entered
// for good: in a restored guest the first answer must not wait for a neighbour lookup.
func configureNetwork() error {
	for _, scope := range []string{"all", "default"} {
		err := os.WriteFile("/proc/sys/net/ipv6/conf/"+scope+"/disable_ipv6", []byte("1"), 0o600)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel without IPv6 has nothing to turn off
			return err
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	nic, err := findNIC()
	if err != nil {
		return err
	}
	if err := addressNIC(nic); err != nil {
		return err
	}
	return writeResolvConf("/etc/resolv.conf")
}

func findNIC() (netlink.Link, error) {
	for deadline := time.Now().Add(nicWait); ; time.Sleep(2 * time.Millisecond) {
		nic, err := netlink.LinkByName(nicName)
		if err == nil {
			return nic, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("find %s: %w", nicName, err)
		}
	}
}

func addressNIC(nic netlink.Link) error {
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(guest.GuestIP).To4(), Mask: net.CIDRMask(hostMask, 32)}}
	if err := netlink.AddrReplace(nic, addr); err != nil {
		return fmt.Errorf("address %s: %w", nicName, err)
	}
	if err := netlink.LinkSetUp(nic); err != nil {
		return fmt.Errorf("bring up %s: %w", nicName, err)
	}
	host := net.ParseIP(guest.HostIP).To4()
	mac, err := net.ParseMAC(guest.HostMAC)
	if err != nil {
		return err
	}
	index := nic.Attrs().Index
	neigh := &netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: host, HardwareAddr: mac}
	if err := netlink.NeighSet(neigh); err != nil {
		return fmt.Errorf("neighbour %s: %w", host, err)
	}
	if err := netlink.RouteReplace(&netlink.Route{LinkIndex: index, Gw: host}); err != nil {
		return fmt.Errorf("default route: %w", err)
	}
	return nil
}

// writeResolvConf names the node as resolver, writing only when that is not what the template says already.
func writeResolvConf(path string) error {
	want := "nameserver " + guest.HostIP + "\n"
	if have, err := os.ReadFile(path); err == nil && string(have) == want { // a fixed path
		return nil
	}
	return replaceFile(path, []byte(want), 0o644)
}

// replaceFile writes a small file in one step.
func replaceFile(path string, contents []byte, perm fs.FileMode) error {
	tmp := path + "." + strconv.Itoa(os.Getpid()) + ".tmp"
	if err := os.WriteFile(tmp, contents, perm); err != nil { // fixed paths of the guest
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return nil
}

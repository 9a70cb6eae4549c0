package netpolicy

import (
	"fmt"
	"net"
	"net/netip"
)

// What every sandbox's network looks like from inside its namespace.
const (
	TapName  = "tap0"
	HostIP   = "10.111.0.1"
	GuestIP  = "10.111.0.2"
	HostMAC  = "02:5f:00:00:00:01"
	GuestMAC = "02:5f:00:00:00:02"

	// UplinkName is the end of the veth pair that is inside, and HostLinkPrefix what the names of the ends on the host
	// begin with.
	UplinkName     = "up0"
	HostLinkPrefix = "sfv"

	// Ports of HostIP that the rules lead connections of the guest to. They cannot be dialled directly.
	ProxyPort = 15001
	DNSPort   = 15053

	// Ports that are reached without the gate: the agent in the guest (TCP, only the node opens connections), the node's
	// clock (UDP on HostIP). They are those of hypervisor/guest, which nothing here may import; a test compares them.
	AgentPort = 1031
	ClockPort = 123

	prefixLength = 30
)

// DefaultPool is what the addresses of veth pairs are taken from when a node is not told otherwise: a part of the
// range for shared address space (RFC 6598) that carriers hardly use.
var DefaultPool = netip.MustParsePrefix("100.126.0.0/16")

// Reserved gives the ranges that sandboxes' own addresses are in, for the floor: no policy opens them.
func Reserved(pool netip.Prefix) []netip.Prefix {
	return []netip.Prefix{pool.Masked(), netip.PrefixFrom(netip.MustParseAddr(HostIP), prefixLength).Masked()}
}

func hostNet() *net.IPNet {
	return &net.IPNet{IP: net.ParseIP(HostIP).To4(), Mask: net.CIDRMask(prefixLength, 32)}
}

func mustMAC(s string) net.HardwareAddr {
	mac, err := net.ParseMAC(s)
	if err != nil {
		panic(fmt.Sprintf("netpolicy: constant %q: %v", s, err))
	}
	return mac
}

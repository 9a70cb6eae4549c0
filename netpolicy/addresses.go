package netpolicy

import (
	"fmt"
	"net"
)

// What every sandbox's network looks like from inside its namespace.
const (
	TapName  = "tap0"
	HostIP   = "10.111.0.1"
	GuestIP  = "10.111.0.2"
	HostMAC  = "02:5f:00:00:00:01"
	GuestMAC = "02:5f:00:00:00:02"

	prefixLength = 30
)

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

package netpolicy_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"stillframe/netpolicy"
	"stillframe/netpolicy/farside"
	"stillframe/netpolicy/policy"
)

// fence returns when everything that the guest has sent before has been dealt with.
func fence(t *testing.T, g *farside.Guest) {
	t.Helper()
	answer, err := g.Ask("192.0.2.53:53", []byte("question"))
	require.NoError(t, err, "the guest is not connected, so that nothing is proved")
	require.Equal(t, "dns", string(answer))
}

// silent fails the test unless not one packet of what the guest sends leaves the host.
func silent(t *testing.T, w *farside.World, g *farside.Guest, frames ...farside.Frame) {
	t.Helper()
	w.Reset()
	for range 3 {
		for _, f := range frames {
			require.NoError(t, g.Send(f.Bytes()))
		}
	}
	fence(t, g)
	require.Empty(t, w.Packets())
}

// passes fails the test unless each of the frames leaves the host: else silence would prove nothing.
func passes(t *testing.T, w *farside.World, g *farside.Guest, frames ...farside.Frame) {
	t.Helper()
	w.Reset()
	for _, f := range frames {
		require.NoError(t, g.Send(f.Bytes()))
	}
	fence(t, g)
	require.Len(t, w.Packets(), len(frames))
}

const (
	allowed = "203.0.113.5"  // in a range that the policies here allow
	denied  = "198.51.100.5" // in none
)

// rig is a network with a guest and a world.
type rig struct {
	m *netpolicy.Manager
	n *netpolicy.Network
	w *farside.World
	g *farside.Guest
}

func newRig(t *testing.T, p policy.Policy, change ...func(*netpolicy.Config)) rig {
	t.Helper()
	r := rig{m: newManager(t, change...), w: farside.New(t)}
	r.n = networkOf(t, r.m, p)
	r.g = guestOf(t, r.n)
	fence(t, r.g)
	return r
}

func hello() []byte { return farside.UDP(5000, 4000, "hello") }

func TestAttackProtocolsWithoutAName(t *testing.T) {
	r := newRig(t, cidrs("203.0.113.0/24"))
	protocols := []farside.Frame{
		{Payload: hello()},
		{Payload: farside.UDP(5000, 443, "QUIC")},
		{Protocol: unix.IPPROTO_ICMP, Payload: farside.Echo("a tunnel")},
		{Protocol: unix.IPPROTO_GRE, Payload: make([]byte, 32)},
		{Protocol: unix.IPPROTO_SCTP, Payload: make([]byte, 32)},
		{Protocol: unix.IPPROTO_ESP, Payload: make([]byte, 32)},
		{Protocol: unix.IPPROTO_IPIP, Payload: farside.Frame{Dst: denied, Payload: hello()}.Bytes()[14:]},
		{Protocol: unix.IPPROTO_IPV6, Payload: make([]byte, 60)},
		{Protocol: 253, Payload: make([]byte, 32)},
	}
	for _, f := range protocols {
		t.Run(fmt.Sprintf("protocol %d", f.Protocol), func(t *testing.T) {
			f.Dst = denied
			silent(t, r.w, r.g, f)
			if f.Protocol == unix.IPPROTO_SCTP {
				return // one without a right checksum is not carried at all
			}
			f.Dst = allowed
			passes(t, r.w, r.g, f)
		})
	}
	t.Run("TCP beside the gate", func(t *testing.T) {
		// In the middle of a connection that nobody knows: not led to the gate, nor carried.
		for _, to := range []string{allowed, denied} {
			for _, flags := range []byte{0x10, 0x12, 0x04, 0x01, 0x00, 0x3f} {
				silent(t, r.w, r.g, farside.Frame{Dst: to, Protocol: unix.IPPROTO_TCP,
					Payload: farside.TCP(netpolicy.GuestIP, to, 5000, 443, flags)})
			}
		}
	})
	t.Run("fragments", func(t *testing.T) {
		whole := farside.UDP(5000, 4000, "a datagram in two parts, of which only the first has ports")
		parts := func(to string, id uint16) []farside.Frame {
			return []farside.Frame{
				{Dst: to, ID: id, Fragment: 0x2000, Payload: whole[:8]},
				{Dst: to, ID: id, Fragment: 1, Payload: whole[8:]},
			}
		}
		silent(t, r.w, r.g, parts(denied, 7)...)
		silent(t, r.w, r.g, farside.Frame{Dst: denied, ID: 8, Fragment: 1, Payload: whole[8:]})
		r.w.Reset()
		for _, f := range parts(allowed, 9) {
			require.NoError(t, r.g.Send(f.Bytes()))
		}
		fence(t, r.g)
		require.NotEmpty(t, r.w.Packets())
	})
	t.Run("source routes", func(t *testing.T) {
		to := netip.MustParseAddr(denied).As4()
		for _, kind := range []byte{131, 137} { // loose, strict
			silent(t, r.w, r.g, farside.Frame{Dst: allowed, Payload: hello(),
				Options: append([]byte{kind, 7, 4}, append(to[:], 0)...)})
		}
	})
}

func TestAttackForgedSender(t *testing.T) {
	r := newRig(t, allowAll)
	passes(t, r.w, r.g, farside.Frame{Dst: allowed, Payload: hello()})
	for _, src := range []string{
		"10.111.0.3", "10.111.0.1", "10.111.0.0", "10.111.1.2", "100.126.0.1", "100.126.0.0", "127.0.0.1", "0.0.0.0",
		"255.255.255.255", "192.0.2.1", "203.0.113.5", "224.0.0.1",
	} {
		silent(t, r.w, r.g, farside.Frame{Src: src, Dst: allowed, Payload: hello()},
			farside.Frame{Src: src, Dst: allowed, Protocol: unix.IPPROTO_ICMP, Payload: farside.Echo("x")})
	}
	for _, mac := range []string{"02:5f:00:00:00:03", netpolicy.HostMAC, "02:5f:02:00:00:00"} {
		silent(t, r.w, r.g, farside.Frame{SrcMAC: mac, Dst: allowed, Payload: hello()})
	}
}

func TestAttackOtherKindsOfFrames(t *testing.T) {
	r := newRig(t, allowAll)
	ip := farside.Frame{Dst: allowed, Payload: hello()}.Bytes()[14:]
	for name, f := range map[string]farside.Frame{
		"VLAN":            {Tags: []uint16{5}, Dst: allowed, Payload: hello()},
		"VLAN of zero":    {Tags: []uint16{5, 6}, Dst: allowed, Payload: hello()},
		"MPLS":            {EtherType: unix.ETH_P_MPLS_UC, Payload: append([]byte{0, 0, 1, 64}, ip...)},
		"PPPoE":           {EtherType: unix.ETH_P_PPP_SES, Payload: append([]byte{0x11, 0, 0, 1, 0, 0, 0, 0x21}, ip...)},
		"unknown":         {EtherType: 0x88b5, Payload: ip},
		"802.2":           {EtherType: 60, Payload: ip},
		"broadcast":       {DstMAC: "ff:ff:ff:ff:ff:ff", Dst: "255.255.255.255", Payload: hello()},
		"directed":        {DstMAC: "ff:ff:ff:ff:ff:ff", Dst: "10.111.0.3", Payload: hello()},
		"multicast":       {DstMAC: "01:00:5e:00:00:fb", Dst: "224.0.0.251", Payload: hello()},
		"broadcast frame": {DstMAC: "ff:ff:ff:ff:ff:ff", Dst: allowed, Payload: hello()},
		"another's frame": {DstMAC: "02:5f:00:00:00:09", Dst: allowed, Payload: hello()},
		"DHCP": {DstMAC: "ff:ff:ff:ff:ff:ff", Src: "0.0.0.0", Dst: "255.255.255.255",
			Payload: farside.UDP(68, 67, "discover")},
	} {
		t.Run(name, func(t *testing.T) { silent(t, r.w, r.g, f) })
	}
}

// What the guest says of its neighbours changes nothing, and does not fill the table of neighbours, which all network
// namespaces of a host share.
func TestAttackARP(t *testing.T) {
	r := newRig(t, denyAll)
	const arp = unix.ETH_P_ARP
	zero, all := "00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff"
	for i := range 2000 {
		claimed := fmt.Sprintf("10.111.%d.%d", i/250, i%250)
		for _, f := range []farside.Frame{
			{EtherType: arp, DstMAC: all, Payload: farside.ARP(1, netpolicy.GuestMAC, claimed, zero, netpolicy.HostIP)},
			{EtherType: arp, Payload: farside.ARP(2, "02:5f:00:00:00:66", claimed, netpolicy.HostMAC, netpolicy.HostIP)},
		} {
			require.NoError(t, r.g.Send(f.Bytes()))
		}
	}
	const other = "02:5f:00:00:00:66"
	for _, says := range [][]byte{
		farside.ARP(2, other, netpolicy.GuestIP, netpolicy.HostMAC, netpolicy.HostIP),
		farside.ARP(1, other, netpolicy.GuestIP, zero, netpolicy.HostIP),
		farside.ARP(1, netpolicy.GuestMAC, netpolicy.HostIP, zero, netpolicy.HostIP),
		farside.ARP(1, netpolicy.GuestMAC, netpolicy.GuestIP, zero, "100.126.0.1"),
	} {
		require.NoError(t, r.g.Send(farside.Frame{EtherType: arp, DstMAC: all, Payload: says}.Bytes()))
	}
	fence(t, r.g)
	require.NoError(t, r.n.Namespace().Do(func() error {
		neighbours, err := netlink.NeighList(0, netlink.FAMILY_ALL)
		require.NoError(t, err)
		for _, n := range neighbours {
			require.Equal(t, netlink.NUD_PERMANENT, n.State, n)
		}
		require.Len(t, neighbours, 2, "the guest and the host's end")
		return nil
	}))
	for _, f := range r.g.Frames() {
		if binary.BigEndian.Uint16(f[12:]) == arp {
			require.NotContains(t, string(f), string([]byte{100, 126}), "answered for an address of the pool")
		}
	}
}

// ipv6 gives an IPv6 packet.
func ipv6(next byte, src, dst string, payload []byte) []byte {
	b := append([]byte{0x60, 0, 0, 0}, byte(len(payload)>>8), byte(len(payload)), next, 255)
	from, to := netip.MustParseAddr(src).As16(), netip.MustParseAddr(dst).As16()
	return bytes.Join([][]byte{b, from[:], to[:], payload}, nil)
}

// icmp6 gives an ICMPv6 message with its checksum.
func icmp6(src, dst string, message []byte) []byte {
	packet := ipv6(unix.IPPROTO_ICMPV6, src, dst, message)
	sum := uint32(len(message)) + unix.IPPROTO_ICMPV6
	for i := 8; i+1 < len(packet); i += 2 {
		sum += uint32(packet[i])<<8 | uint32(packet[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(packet[42:], ^uint16(sum))
	return packet
}

// routerAdvertisement offers a prefix, a route and a resolver.
func routerAdvertisement(src, dst string) []byte {
	prefix := netip.MustParseAddr("2001:db8:1::").As16()
	m := []byte{134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0}
	m = append(m, 3, 4, 64, 0xc0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0)
	m = append(m, prefix[:]...)
	m = append(m, 1, 1, 0x02, 0x5f, 0, 0, 0, 2)
	return icmp6(src, dst, m)
}

func TestAttackIPv6(t *testing.T) {
	r := newRig(t, allowAll)
	const me, host = "fe80::5f:ff:fe00:2", "fe80::5f:ff:fe00:1"
	solicitation := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, ipv6(0, me, host, nil)[24:40]...)
	packets := map[string][]byte{
		"UDP to the world":     ipv6(unix.IPPROTO_UDP, "2001:db8::2", "2001:db8:ffff::1", farside.UDP(5, 6, "x")),
		"UDP to the host":      ipv6(unix.IPPROTO_UDP, me, host, farside.UDP(5, 53, "x")),
		"UDP to all nodes":     ipv6(unix.IPPROTO_UDP, me, "ff02::1", farside.UDP(5, 6, "x")),
		"TCP to the world":     ipv6(unix.IPPROTO_TCP, "2001:db8::2", "2606:4700::1111", make([]byte, 20)),
		"mapped":               ipv6(unix.IPPROTO_UDP, "::ffff:10.111.0.2", "::ffff:203.0.113.5", farside.UDP(5, 6, "x")),
		"metadata":             ipv6(unix.IPPROTO_UDP, me, "fd00:ec2::254", farside.UDP(5, 6, "x")),
		"router advertisement": routerAdvertisement(me, "ff02::1"),
		"router solicitation":  icmp6(me, "ff02::2", []byte{133, 0, 0, 0, 0, 0, 0, 0}),
		"neighbour":            icmp6(me, "ff02::1:ff00:1", solicitation),
		"echo":                 icmp6(me, "ff02::1", []byte{128, 0, 0, 0, 0, 1, 0, 1}),
		"routing header":       ipv6(43, me, host, append([]byte{17, 2, 0, 1, 0, 0, 0, 0}, make([]byte, 24)...)),
	}
	r.g.Reset()
	for name, p := range packets {
		t.Run(name, func(t *testing.T) {
			for _, mac := range []string{netpolicy.HostMAC, "33:33:00:00:00:01", "ff:ff:ff:ff:ff:ff"} {
				silent(t, r.w, r.g, farside.Frame{EtherType: unix.ETH_P_IPV6, DstMAC: mac, Payload: p})
			}
		})
	}
	for _, f := range r.g.Frames() {
		require.NotEqual(t, unix.ETH_P_IPV6, int(binary.BigEndian.Uint16(f[12:])), "IPv6 is answered")
	}
	require.NoError(t, r.n.Namespace().Do(func() error {
		addrs, err := netlink.AddrList(nil, netlink.FAMILY_V6)
		require.NoError(t, err)
		require.Empty(t, addrs)
		routes, err := netlink.RouteList(nil, netlink.FAMILY_V6)
		require.NoError(t, err)
		require.Empty(t, routes)
		return nil
	}))
	t.Run("switched on by hand", func(t *testing.T) {
		// The second bolt holds by itself.
		for _, name := range []string{"all", "default", "tap0", "up0"} {
			require.NoError(t, r.n.Namespace().Do(func() error {
				err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("0"), 0)
				if errors.Is(err, os.ErrNotExist) {
					return nil
				}
				return err
			}))
		}
		r.g.Reset()
		for _, p := range packets {
			silent(t, r.w, r.g, farside.Frame{EtherType: unix.ETH_P_IPV6, DstMAC: "33:33:00:00:00:01", Payload: p})
		}
		for _, f := range r.g.Frames() {
			require.NotEqual(t, unix.ETH_P_IPV6, int(binary.BigEndian.Uint16(f[12:])), "IPv6 is answered")
		}
	})
}

// The floor holds below a policy that allows everything.
func TestAttackTheFloor(t *testing.T) {
	everything := cidrs("0.0.0.0/0")
	for name, p := range map[string]policy.Policy{"allow-all": allowAll, "everything": everything} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, p)
			passes(t, r.w, r.g, farside.Frame{Dst: allowed, Payload: hello()})
			for _, to := range []string{
				"169.254.169.254", "169.254.0.1", "100.100.100.200", "127.0.0.1", "0.0.0.0", "224.0.0.5", "240.0.0.1",
				farside.HostAddr.String(), "198.51.100.77", "100.126.0.0", "100.126.0.1", "100.126.255.254", "10.111.0.1",
			} {
				silent(t, r.w, r.g, farside.Frame{Dst: to, Payload: hello()},
					farside.Frame{Dst: to, Protocol: unix.IPPROTO_ICMP, Payload: farside.Echo("x")},
					farside.Frame{Dst: to, Protocol: unix.IPPROTO_GRE, Payload: make([]byte, 20)})
			}
			private := []farside.Frame{
				{Dst: "10.1.2.3", Payload: hello()}, {Dst: "172.16.0.1", Payload: hello()},
				{Dst: "192.168.1.1", Payload: hello()}, {Dst: "100.64.0.1", Payload: hello()},
			}
			if name == "everything" { // which names private ranges too
				passes(t, r.w, r.g, private...)
			} else {
				silent(t, r.w, r.g, private...)
			}
		})
	}
}

// Not the node's own sockets, on any address that it has, nor those of the namespace that are not for the guest.
func TestAttackTheNode(t *testing.T) {
	r := newRig(t, allowAll)
	api, err := net.ListenPacket("udp4", "0.0.0.0:7070")
	require.NoError(t, err)
	defer api.Close()
	heard := make(chan []byte, 100)
	go func() {
		b := make([]byte, 2000)
		for {
			n, _, err := api.ReadFrom(b)
			if err != nil {
				close(heard)
				return
			}
			heard <- bytes.Clone(b[:n])
		}
	}()
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(addrs), 3, "lo, the world, the sandbox's pair")
	for _, a := range addrs {
		to := a.IP.String()
		silent(t, r.w, r.g, farside.Frame{Dst: to, Payload: farside.UDP(5000, 7070, "from the guest")},
			farside.Frame{Dst: to, Protocol: unix.IPPROTO_TCP,
				Payload: farside.TCP(netpolicy.GuestIP, to, 5000, 7070, 0x10)})
	}
	c, err := net.Dial("udp4", "127.0.0.1:7070")
	require.NoError(t, err)
	_, err = c.Write([]byte("from the node"))
	require.NoError(t, err)
	require.Equal(t, "from the node", string(<-heard), "the first that was heard")
	require.NoError(t, c.Close())

	for _, port := range []int{netpolicy.ProxyPort, netpolicy.DNSPort} {
		_, err := r.g.Dial("tcp4", fmt.Sprintf("%s:%d", netpolicy.HostIP, port))
		if port == netpolicy.ProxyPort {
			require.ErrorIs(t, err, unix.ECONNREFUSED, "the proxy's own port")
		}
		_, err = r.g.Ask(fmt.Sprintf("%s:%d", netpolicy.HostIP, port), []byte("question"))
		require.True(t, farside.Refused(err), "%d: %v", port, err)
	}
	// The agent's port opens nothing when the guest connects from it.
	r.g.Reset()
	for _, port := range []uint16{netpolicy.ProxyPort, netpolicy.DNSPort, 80} {
		f := farside.Frame{Dst: netpolicy.HostIP, Protocol: unix.IPPROTO_TCP,
			Payload: farside.TCP(netpolicy.GuestIP, netpolicy.HostIP, netpolicy.AgentPort, port, 0x02)}
		require.NoError(t, r.g.Send(f.Bytes()))
	}
	fence(t, r.g)
	for _, f := range r.g.Frames() {
		if len(f) >= 14+20+14 && f[14+9] == unix.IPPROTO_TCP {
			require.NotEqual(t, byte(0x12), f[14+20+13]&0x12, "a connection was accepted")
		}
	}
}

func TestAttackAnotherSandbox(t *testing.T) {
	r := newRig(t, cidrs("0.0.0.0/0"))
	other := networkOf(t, r.m, cidrs("0.0.0.0/0"))
	otherGuest := guestOf(t, other)
	fence(t, otherGuest)
	otherGuest.Reset()
	for i := range 8 {
		to := fmt.Sprintf("100.126.0.%d", i)
		silent(t, r.w, r.g, farside.Frame{Dst: to, Payload: hello()},
			farside.Frame{Dst: to, Protocol: unix.IPPROTO_ICMP, Payload: farside.Echo("x")},
			farside.Frame{Dst: to, Protocol: unix.IPPROTO_GRE, Payload: make([]byte, 20)})
	}
	require.Empty(t, otherGuest.Frames())
	// Nor if the rules inside have all been lost: the host's hold by themselves.
	require.NoError(t, r.n.Namespace().Do(func() error { return flushAll(t) }))
	for i := range 8 {
		require.NoError(t, r.g.Send(farside.Frame{Dst: fmt.Sprintf("100.126.0.%d", i), Payload: hello()}.Bytes()))
	}
	time.Sleep(50 * time.Millisecond) // nothing can be waited for here
	require.Empty(t, otherGuest.Frames())
}

// A virtio device may leave a checksum to be written later, wherever it says: over the destination, once the rules have
// seen it. It is never zero, so that zeros become ones and the header's own checksum stays right.
func TestAttackOffloadedChecksum(t *testing.T) {
	const zeros = "198.0.0.9" // to 198.255.255.9
	r := newRig(t, cidrs("203.0.113.0/24", "198.0.0.0/24"),
		bounded(netpolicy.Bounds{Connections: 5000, NewPerSecond: 5000}))
	for _, to := range []string{allowed, zeros} {
		passes(t, r.w, r.g, farside.Frame{Dst: to, Payload: hello()})
		r.w.Reset()
		// Data that sums up to zero together with the rest is found by trying.
		for start := range uint16(44) {
			for at := start; at < 60; at++ {
				frame := farside.Frame{Dst: to, Payload: farside.UDP(5000, 4000, "some more bytes!")}.Bytes()
				writeZeroSum(frame, int(start))
				// The kernel may refuse, which is as well.
				_ = r.g.SendOffloaded(farside.Offload{Flags: 1, CsumStart: start, CsumOffset: at - start}, frame)
			}
		}
		fence(t, r.g)
		for _, p := range r.w.Packets() {
			require.Equal(t, to, p.Dst.Addr().String(), "%s", p)
			require.Equal(t, farside.HostAddr, p.Src.Addr(), "%s", p)
		}
	}
	// Nor what is to be cut into pieces later.
	r.w.Reset()
	for _, to := range []string{denied, zeros} {
		large := farside.Frame{Dst: to, Payload: farside.UDP(5000, 4000, string(make([]byte, 20000)))}.Bytes()
		for gso := range byte(7) {
			for start := range uint16(44) {
				_ = r.g.SendOffloaded(farside.Offload{Flags: 1, GSO: gso, HeaderLen: 42, GSOSize: 1000,
					CsumStart: start, CsumOffset: 6}, large)
			}
			_ = r.g.SendOffloaded(farside.Offload{GSO: gso, HeaderLen: 42, GSOSize: 1000}, large)
		}
	}
	fence(t, r.g)
	for _, p := range r.w.Packets() { // the guest may say one that it is allowed in a roundabout way
		require.True(t, mustPrefix("198.0.0.0/24").Contains(p.Dst.Addr()), "%s", p)
		require.Equal(t, farside.HostAddr, p.Src.Addr(), "%s", p)
	}
}

// writeZeroSum changes the last two bytes so that the checksum from start on would be zero, and is written as ones.
func writeZeroSum(frame []byte, start int) {
	last := len(frame) - 2
	binary.BigEndian.PutUint16(frame[last:], 0)
	odd := (last-start)%2 == 1
	var sum uint32
	for i := start; i < len(frame); i++ {
		if (i-start)%2 == 0 {
			sum += uint32(frame[i]) << 8
		} else {
			sum += uint32(frame[i])
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	rest := 0xffff - uint16(sum)
	if odd {
		rest = rest<<8 | rest>>8
	}
	binary.BigEndian.PutUint16(frame[last:], rest)
}

package farside

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Frame is an Ethernet frame to be put on the wire by a guest. The zero value of a field means what an honest guest
// would write.
type Frame struct {
	SrcMAC, DstMAC string
	EtherType      uint16 // IPv4 if zero
	Tags           []uint16
	Src, Dst       string // IPv4 addresses
	Protocol       byte   // of IP; UDP if zero
	Options        []byte // of IP, a multiple of four bytes
	Fragment       uint16 // flags and offset, as in the header
	ID             uint16
	TTL            byte
	Payload        []byte // after the IP header, or after the ethertype if that is not IPv4
}

// Bytes gives the frame, with right checksums of IP.
func (f Frame) Bytes() []byte {
	b := slices.Concat(hardware(or(f.DstMAC, gatewayMAC)), hardware(or(f.SrcMAC, guestMAC)))
	for _, tag := range f.Tags {
		b = binary.BigEndian.AppendUint16(b, unix.ETH_P_8021Q)
		b = binary.BigEndian.AppendUint16(b, tag)
	}
	if f.EtherType != 0 && f.EtherType != unix.ETH_P_IP {
		return append(binary.BigEndian.AppendUint16(b, f.EtherType), f.Payload...)
	}
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IP)
	ip := make([]byte, 20, 20+len(f.Options))
	ip = append(ip, f.Options...)
	ip[0] = 4<<4 | byte(len(ip)/4)
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(f.Payload)))
	binary.BigEndian.PutUint16(ip[4:], f.ID)
	binary.BigEndian.PutUint16(ip[6:], f.Fragment)
	ip[8], ip[9] = 64, unix.IPPROTO_UDP
	if f.TTL != 0 {
		ip[8] = f.TTL
	}
	if f.Protocol != 0 {
		ip[9] = f.Protocol
	}
	src, dst := netip.MustParseAddr(or(f.Src, guestAddr)).As4(), netip.MustParseAddr(f.Dst).As4()
	copy(ip[12:], src[:])
	copy(ip[16:], dst[:])
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	return slices.Concat(b, ip, f.Payload)
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func hardware(s string) net.HardwareAddr {
	mac, err := net.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return mac
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// UDP gives a datagram for a Frame's payload, without a checksum, which UDP allows.
func UDP(srcPort, dstPort uint16, data string) []byte {
	b := binary.BigEndian.AppendUint16(nil, srcPort)
	b = binary.BigEndian.AppendUint16(b, dstPort)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(data)))
	return append(append(b, 0, 0), data...)
}

// TCP gives a segment for the payload of a Frame between two addresses.
func TCP(src, dst string, srcPort, dstPort uint16, flags byte) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, srcPort)
	binary.BigEndian.PutUint16(b[2:], dstPort)
	b[12], b[13] = 5<<4, flags
	binary.BigEndian.PutUint16(b[14:], 65535)
	from, to := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	binary.BigEndian.PutUint16(b[16:], checksum(slices.Concat(from[:], to[:], []byte{0, unix.IPPROTO_TCP, 0, 20}, b)))
	return b
}

// Echo gives an ICMP echo request for a Frame's payload.
func Echo(data string) []byte {
	b := append([]byte{8, 0, 0, 0, 0, 1, 0, 1}, data...)
	if len(b)%2 == 1 {
		b = append(b, 0)
	}
	binary.BigEndian.PutUint16(b[2:], checksum(b))
	return b
}

// ARP gives what a Frame of that ethertype says: operation 1 asks, 2 answers.
func ARP(operation uint16, senderMAC, sender, targetMAC, target string) []byte {
	b := []byte{0, 1, 8, 0, 6, 4}
	b = binary.BigEndian.AppendUint16(b, operation)
	from, to := netip.MustParseAddr(sender).As4(), netip.MustParseAddr(target).As4()
	return slices.Concat(b, hardware(senderMAC), from[:], hardware(targetMAC), to[:])
}

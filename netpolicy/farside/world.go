package farside

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// HostAddr is the host's address on the link to the world, WorldAddr the world's own.
var (
	HostAddr  = netip.MustParseAddr("192.0.2.1")
	WorldAddr = netip.MustParseAddr("192.0.2.2")
)

// World is everything beyond the host.
type World struct {
	t  testing.TB
	ns netns.NsHandle

	mu      sync.Mutex
	packets []Packet
	wire    *os.File
	done    chan struct{}
}

// Packet is what was seen of one on the wire, on its way into the world.
type Packet struct {
	EtherType uint16
	Protocol  byte // of IP
	Src, Dst  netip.AddrPort
	Size      int
}

func (p Packet) String() string {
	return fmt.Sprintf("ethertype %#04x protocol %d %s > %s, %d bytes", p.EtherType, p.Protocol, p.Src, p.Dst, p.Size)
}

// New makes a world and leads the host's default route there, until the test ends. One at a time.
func New(t testing.TB) *World {
	t.Helper()
	ns, err := newNamespace()
	require.NoError(t, err)
	w := &World{t: t, ns: ns, done: make(chan struct{})}
	t.Cleanup(w.close)
	require.NoError(t, w.connect())
	require.NoError(t, w.listen())
	go w.count()
	return w
}

// connect makes the link to the host. It has no IPv6 of its own, so that all IPv6 that is ever seen is a sandbox's.
func (w *World) connect() error {
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0o600) // there may be none
	err := netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "world"}, PeerName: "host", PeerNamespace: netlink.NsFd(int(w.ns)),
	})
	if err != nil {
		return fmt.Errorf("link to the world: %w", err)
	}
	link, err := setUp("world", netip.PrefixFrom(HostAddr, 30))
	if err != nil {
		return err
	}
	// What the world sees is what is on a wire, not what a network card would be told to make of it.
	if err := writeChecksums("world"); err != nil {
		return err
	}
	err = w.Do(func() error {
		if _, err := setUp("lo", netip.Prefix{}); err != nil {
			return err
		}
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0o600); err != nil &&
			!errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, name := range []string{"all", "default", "host"} { // what is for any address is taken
			file := filepath.Join("/proc/sys/net/ipv4/conf", name, "rp_filter")
			if err := os.WriteFile(file, []byte("0"), 0o600); err != nil {
				return err
			}
		}
		if _, err := setUp("host", netip.PrefixFrom(WorldAddr, 30)); err != nil {
			return err
		}
		return anyAddress()
	})
	if err != nil {
		return err
	}
	return netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: WorldAddr.AsSlice()})
}

// anyAddress makes every address that is not on the link one of the namespace's own.
func anyAddress() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	all := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: all,
		Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Table: unix.RT_TABLE_MAIN})
}

func setUp(name string, addr netip.Prefix) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, err
	}
	if addr.IsValid() {
		ip := &net.IPNet{IP: addr.Addr().AsSlice(), Mask: net.CIDRMask(addr.Bits(), 32)}
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ip}); err != nil {
			return nil, err
		}
	}
	return link, netlink.LinkSetUp(link)
}

// Do calls f on a thread in the world. Sockets that f opens stay there.
func (w *World) Do(f func() error) error { return do(w.ns, f) }

// listen opens a socket that sees every frame that arrives.
func (w *World) listen() error {
	return w.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		w.wire = os.NewFile(uintptr(fd), "wire")
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
			return err
		}
		link, err := netlink.LinkByName("host")
		if err != nil {
			return err
		}
		all := uint16(unix.ETH_P_ALL)
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8, Ifindex: link.Attrs().Index})
	})
}

// count notes what arrives until the socket is closed. What the world sends itself is not noted.
func (w *World) count() {
	defer close(w.done)
	frame := make([]byte, 65536)
	raw, err := w.wire.SyscallConn()
	if err != nil {
		return
	}
	for {
		n, outgoing := 0, false
		var readErr error
		err := raw.Read(func(fd uintptr) bool {
			var from unix.Sockaddr
			n, from, readErr = unix.Recvfrom(int(fd), frame, 0)
			if ll, ok := from.(*unix.SockaddrLinklayer); ok {
				outgoing = ll.Pkttype == unix.PACKET_OUTGOING
			}
			return !errors.Is(readErr, unix.EAGAIN)
		})
		if err != nil || readErr != nil {
			return
		}
		if p, ok := parse(frame[:n]); ok && !outgoing {
			w.mu.Lock()
			w.packets = append(w.packets, p)
			w.mu.Unlock()
		}
	}
}

// parse reads a frame. ARP is none of anybody's business: it is between the host and the world.
func parse(frame []byte) (Packet, bool) {
	if len(frame) < 14 {
		return Packet{}, false
	}
	p := Packet{EtherType: binary.BigEndian.Uint16(frame[12:]), Size: len(frame) - 14}
	ip := frame[14:]
	if p.EtherType == unix.ETH_P_ARP {
		return Packet{}, false
	}
	if p.EtherType != unix.ETH_P_IP || len(ip) < 20 {
		return p, true
	}
	p.Protocol = ip[9]
	var srcPort, dstPort uint16
	if hl := int(ip[0]&15) * 4; (p.Protocol == unix.IPPROTO_TCP || p.Protocol == unix.IPPROTO_UDP) && len(ip) >= hl+4 {
		srcPort, dstPort = binary.BigEndian.Uint16(ip[hl:]), binary.BigEndian.Uint16(ip[hl+2:])
	}
	p.Src = netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[12:16])), srcPort)
	p.Dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[16:20])), dstPort)
	return p, true
}

// Packets gives what has arrived since the beginning or the last Reset, after all that was under way has been noted.
func (w *World) Packets() []Packet {
	w.t.Helper()
	w.settle()
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []Packet
	for _, p := range w.packets {
		if p.Dst != mark {
			out = append(out, p)
		}
	}
	return out
}

// Reset forgets what has arrived.
func (w *World) Reset() {
	w.settle()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.packets = nil
}

// mark is where the counter's own packets go.
var mark = netip.AddrPortFrom(WorldAddr, 4)

// settle sends a packet from the host and waits until it has been noted: so has everything that was sent before.
func (w *World) settle() {
	w.t.Helper()
	marks := func() (n int) {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, p := range w.packets {
			if p.Dst == mark {
				n++
			}
		}
		return n
	}
	before := marks()
	c, err := net.Dial("udp4", mark.String())
	require.NoError(w.t, err)
	defer c.Close()
	_, err = c.Write([]byte("mark"))
	require.NoError(w.t, err)
	require.Eventually(w.t, func() bool { return marks() > before }, 30*time.Second, time.Millisecond,
		"the counter on the wire does not count")
}

func (w *World) close() {
	if w.wire != nil {
		_ = w.wire.Close()
		<-w.done
	}
	if link, err := netlink.LinkByName("world"); err == nil {
		_ = netlink.LinkDel(link)
	}
	_ = w.ns.Close()
}

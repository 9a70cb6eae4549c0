package farside

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Addresses of a guest, as its kernel has them.
const (
	guestAddr   = "10.111.0.2"
	gatewayAddr = "10.111.0.1"
	guestMAC    = "02:5f:00:00:00:02"
	gatewayMAC  = "02:5f:00:00:00:01"
	vnetHeader  = 10
)

// Guest stands where a VM would.
type Guest struct {
	t     testing.TB
	ns    netns.NsHandle
	tap   *os.File // of the sandbox
	own   *os.File // of the namespace that is the guest
	pumps sync.WaitGroup

	mu   sync.Mutex
	sent [][]byte // frames that came out of the sandbox's tap, since the last Reset
}

// NewGuest opens the tap of a sandbox, whose namespace in enters, and is its guest until the test ends.
func NewGuest(t testing.TB, in func(func() error) error, tap string) *Guest {
	t.Helper()
	ns, err := newNamespace()
	require.NoError(t, err)
	g := &Guest{t: t, ns: ns}
	t.Cleanup(g.Close)
	require.NoError(t, in(func() (err error) { g.tap, err = openTap(tap); return err }))
	require.NoError(t, g.Do(func() (err error) {
		if g.own, err = openTap("eth0"); err != nil {
			return err
		}
		return configureGuest()
	}))
	g.pumps.Go(func() { g.pump(g.own, g.tap, false) })
	g.pumps.Go(func() { g.pump(g.tap, g.own, true) })
	return g
}

func openTap(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", name, err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil // only now: before, there is nothing that could wake a poller
}

func configureGuest() error {
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0o600); err != nil &&
		!os.IsNotExist(err) {
		return err
	}
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	mac, err := net.ParseMAC(guestMAC)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetHardwareAddr(link, mac); err != nil {
		return err
	}
	if _, err := setUp("lo", netip.Prefix{}); err != nil {
		return err
	}
	if _, err := setUp("eth0", netip.MustParsePrefix(guestAddr+"/30")); err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(gatewayAddr)})
}

// pump carries frames until one side is closed. noted says that they are kept to be looked at.
func (g *Guest) pump(from, to *os.File, noted bool) {
	b := make([]byte, vnetHeader+65536)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		if noted && n > vnetHeader {
			g.mu.Lock()
			g.sent = append(g.sent, bytes.Clone(b[vnetHeader:n]))
			g.mu.Unlock()
		}
		_, _ = to.Write(b[:n]) // a link that is down loses it, as a wire would
	}
}

// Do calls f on a thread in the guest. Sockets that f opens stay there.
func (g *Guest) Do(f func() error) error { return do(g.ns, f) }

// Send puts a frame on the wire to the sandbox's tap, whatever is in it.
func (g *Guest) Send(frame []byte) error { return g.SendOffloaded(Offload{}, frame) }

// Offload is what a virtio device says of a frame, and leaves to whoever sends it on: VIRTIO_NET_HDR of the kernel.
type Offload struct {
	Flags, GSO                                byte
	HeaderLen, GSOSize, CsumStart, CsumOffset uint16
}

// SendOffloaded is Send with work left over.
func (g *Guest) SendOffloaded(o Offload, frame []byte) error {
	b := []byte{o.Flags, o.GSO}
	for _, v := range []uint16{o.HeaderLen, o.GSOSize, o.CsumStart, o.CsumOffset} {
		b = binary.LittleEndian.AppendUint16(b, v)
	}
	_, err := g.tap.Write(append(b, frame...))
	return err
}

// Frames gives what came to the guest since it was made or Reset.
func (g *Guest) Frames() [][]byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.sent)
}

// Reset forgets what came.
func (g *Guest) Reset() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sent = nil
}

// Close lets go of the tap, as a VM that ends does.
func (g *Guest) Close() {
	for _, f := range []*os.File{g.tap, g.own} {
		if f != nil {
			_ = f.Close()
		}
	}
	g.pumps.Wait()
	_ = g.ns.Close()
}

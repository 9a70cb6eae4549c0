package netpolicy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A pair is the veth pair of one sandbox: two addresses of the pool, next to each other (RFC 3021), and the name of the
// end on the host, all told by its number.
type pair struct {
	number int
	host   netip.Addr
	inside netip.Addr
}

// name is that of the end on the host. The kernel lets a name exist once in a network namespace, which is what keeps
// two sandboxes, and two nodes on one machine, from taking the same number.
func (p pair) name() string { return HostLinkPrefix + strconv.FormatInt(int64(p.number), 16) }

func (p pair) hostMAC() net.HardwareAddr   { return pairMAC(1, p.number) }
func (p pair) insideMAC() net.HardwareAddr { return pairMAC(2, p.number) }

// pairMAC puts the number into a hardware address, so that a pair that a kill left without its addresses is known.
func pairMAC(end byte, number int) net.HardwareAddr {
	return net.HardwareAddr{0x02, 0x5f, end, byte(number >> 16), byte(number >> 8), byte(number)}
}

// pairs gives out numbers. What is taken is known to the kernel alone; this only remembers where to look first.
type pairs struct {
	pool netip.Prefix
	mu   sync.Mutex
	next int
}

func newPairs(pool netip.Prefix) (*pairs, error) {
	if !pool.Addr().Is4() || pool != pool.Masked() || pool.Bits() < 9 || pool.Bits() > 30 {
		return nil, fmt.Errorf("the pool %s must be an IPv4 range of /9 to /30 without host bits", pool)
	}
	return &pairs{pool: pool}, nil
}

// size is how many pairs the pool has.
func (p *pairs) size() int { return 1 << (31 - p.pool.Bits()) }

func (p *pairs) pair(number int) pair {
	base := p.pool.Addr().As4()
	first := binary.BigEndian.Uint32(base[:]) + uint32(2*number)
	var host, inside [4]byte
	binary.BigEndian.PutUint32(host[:], first)
	binary.BigEndian.PutUint32(inside[:], first+1)
	return pair{number: number, host: netip.AddrFrom4(host), inside: netip.AddrFrom4(inside)}
}

// candidate gives the next number to try.
func (p *pairs) candidate() pair {
	p.mu.Lock()
	defer p.mu.Unlock()
	number := p.next
	p.next = (p.next + 1) % p.size()
	return p.pair(number)
}

// learn moves on past the numbers that links on the host have, so that not each has to be tried.
func (p *pairs) learn() error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range links {
		number, err := strconv.ParseInt(strings.TrimPrefix(l.Attrs().Name, HostLinkPrefix), 16, 32)
		if err == nil && strings.HasPrefix(l.Attrs().Name, HostLinkPrefix) && int(number) >= p.next {
			p.next = (int(number) + 1) % p.size()
		}
	}
	return nil
}

// inside finds the pair of the calling thread's namespace. One that is not of this pool is an error.
func (p *pairs) find() (pair, netlink.Link, error) {
	link, err := netlink.LinkByName(UplinkName)
	if err != nil {
		return pair{}, nil, err
	}
	mac := link.Attrs().HardwareAddr
	if len(mac) != 6 {
		return pair{}, nil, fmt.Errorf("%s has no hardware address", UplinkName)
	}
	number := int(mac[3])<<16 | int(mac[4])<<8 | int(mac[5])
	if mac.String() != pairMAC(2, number).String() || number >= p.size() {
		return pair{}, nil, fmt.Errorf("%s has the hardware address %s, which is none of ours", UplinkName, mac)
	}
	return p.pair(number), link, nil
}

// add makes a veth pair, one end in the calling thread's namespace and the other on the host, in one step. Both are
// down.
func (p *pairs) add(host *os.File) (pair, error) {
	for range p.size() {
		c := p.candidate()
		err := netlink.LinkAdd(&netlink.Veth{
			LinkAttrs:        netlink.LinkAttrs{Name: UplinkName, HardwareAddr: c.insideMAC()},
			PeerName:         c.name(),
			PeerHardwareAddr: c.hostMAC(),
			PeerNamespace:    netlink.NsFd(int(host.Fd())),
		})
		if err == nil {
			return c, nil
		}
		if !errors.Is(err, unix.EEXIST) {
			return pair{}, fmt.Errorf("make the pair %s: %w", c.name(), err)
		}
	}
	return pair{}, fmt.Errorf("the pool %s is used up", p.pool)
}

// ensure makes the pair of the calling thread's namespace unless there is one, and gives the inner end its address.
func (p *pairs) ensure(host *os.File) (pair, error) {
	c, link, err := p.find()
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		if c, err = p.add(host); err == nil {
			link, err = netlink.LinkByName(UplinkName)
		}
	}
	if err != nil {
		return pair{}, err
	}
	if err := finishPackets(UplinkName); err != nil {
		return pair{}, err
	}
	return c, ensureAddress(link, c.inside)
}

func ensureAddress(link netlink.Link, addr netip.Addr) error {
	err := netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(31, 32)}})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("address of %s: %w", link.Attrs().Name, err)
	}
	return nil
}

// raise brings the inner end up, with its neighbour and the one way out.
func (p pair) raise() error {
	link, err := netlink.LinkByName(UplinkName)
	if err != nil {
		return err
	}
	if err := raiseLink(link, p.host, p.hostMAC()); err != nil {
		return err
	}
	return netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: p.host.AsSlice()})
}

// raiseHost brings the end on the host up. The calling thread must be there. alias is for whoever looks at the links.
func (p pair) raiseHost(alias string) error {
	link, err := netlink.LinkByName(p.name())
	if err != nil {
		return err
	}
	if err := applySysctls(p.hostSysctls()); err != nil {
		return err
	}
	if link.Attrs().Alias != alias {
		if err := netlink.LinkSetAlias(link, alias); err != nil {
			return fmt.Errorf("alias of %s: %w", p.name(), err)
		}
	}
	if err := ensureAddress(link, p.host); err != nil {
		return err
	}
	return raiseLink(link, p.inside, p.insideMAC())
}

// hostSysctls are the settings of the end on the host.
func (p pair) hostSysctls() []sysctl {
	return []sysctl{
		{filepath.Join("ipv6/conf", p.name(), "disable_ipv6"), "1"},
		{filepath.Join("ipv4/conf", p.name(), "accept_source_route"), "0"},
		{filepath.Join("ipv4/conf", p.name(), "accept_redirects"), "0"},
		{filepath.Join("ipv4/conf", p.name(), "send_redirects"), "0"},
	}
}

// raiseLink brings a link up and tells it its only neighbour, so that neither side asks.
func raiseLink(link netlink.Link, neighbour netip.Addr, mac net.HardwareAddr) error {
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up %s: %w", link.Attrs().Name, err)
	}
	err := netlink.NeighSet(&netlink.Neigh{
		LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT,
		IP: neighbour.AsSlice(), HardwareAddr: mac,
	})
	if err != nil {
		return fmt.Errorf("neighbour of %s: %w", link.Attrs().Name, err)
	}
	return nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The addresses of the egress cases. The far side has three: one that is routed to, and two of which connections are
// led to the gate on the way, as a sandbox's are.
const (
	nearHost   = "10.0.1.1"
	nearGuest  = "10.0.1.2"
	farHost    = "10.0.2.1"
	farServer  = "10.0.2.2"
	farDirect  = "203.0.113.1"
	farByName  = "203.0.113.2"
	farByCIDR  = "203.0.113.3"
	gateTCP    = "10.0.1.1:9040"
	gateDNS    = "10.0.1.1:9053"
	soOriginal = 80 // SO_ORIGINAL_DST of linux/netfilter_ipv4.h
)

// room is a network namespace with a thread of its own in it. It ends with the process.
type room struct {
	work chan func()
	ns   netns.NsHandle
}

func newRoom() (*room, error) {
	r := &room{work: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocks: the thread is of no use elsewhere
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			r.ns, err = netns.Get()
		}
		ready <- err
		for f := range r.work {
			f()
		}
	}()
	return r, <-ready
}

// do runs f on the room's thread. What f dials and listens on is in the room.
func (r *room) do(f func() error) error {
	done := make(chan error)
	r.work <- func() { done <- f() }
	return <-done
}

// lay joins a room to this process's namespace by a pair of links.
func (r *room) lay(name, here, there string, more ...string) error {
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "p"}
	if err := netlink.LinkAdd(pair); err != nil {
		return err
	}
	peer, err := netlink.LinkByName(name + "p")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetNsFd(peer, int(r.ns)); err != nil {
		return err
	}
	if err := raise(name, here+"/24"); err != nil {
		return err
	}
	return r.do(func() error {
		addrs := []string{there + "/24"}
		for _, a := range more {
			addrs = append(addrs, a+"/32")
		}
		if err := errors.Join(raise("lo"), raise(name+"p", addrs...)); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(here)})
	})
}

func raise(name string, addrs ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}

// furnish makes the guest's room, the far side's, and the way between them through this process's own namespace, which
// must be a new one.
func furnish(ctx context.Context) (guest, far *room, err error) {
	if guest, err = newRoom(); err != nil {
		return nil, nil, err
	}
	if far, err = newRoom(); err != nil {
		return nil, nil, err
	}
	if err := errors.Join(raise("lo"), guest.lay("near", nearHost, nearGuest),
		far.lay("far", farHost, farServer, farDirect, farByName, farByCIDR)); err != nil {
		return nil, nil, err
	}
	_, public, _ := net.ParseCIDR("203.0.113.0/24")
	if err := netlink.RouteAdd(&netlink.Route{Dst: public, Gw: net.ParseIP(farServer)}); err != nil {
		return nil, nil, err
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return nil, nil, err
	}
	rules := "*nat\n"
	for _, to := range []string{farByName, farByCIDR} {
		rules += fmt.Sprintf("-A PREROUTING -i near -d %s -p tcp -j REDIRECT --to-ports 9040\n", to)
	}
	rules += fmt.Sprintf("-A PREROUTING -i near -d %s -p udp --dport 53 -j REDIRECT --to-ports 9053\nCOMMIT\n", farByName)
	cmd := exec.CommandContext(ctx, "iptables-restore")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, nil, fmt.Errorf("iptables-restore: %w: %s", err, out)
	}
	return guest, far, nil
}

// originalDst gives where a connection was opened to before it was led here.
func originalDst(conn net.Conn) (to netip.AddrPort, err error) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return to, errors.New("not a TCP connection")
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return to, err
	}
	err = raw.Control(func(fd uintptr) {
		// The call that happens to have a buffer of the right size.
		m, callErr := unix.GetsockoptIPv6Mreq(int(fd), unix.SOL_IP, soOriginal)
		if callErr != nil {
			to = netip.AddrPort{}
			return
		}
		b := m.Multiaddr
		to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), uint16(b[2])<<8|uint16(b[3]))
	})
	if err == nil && !to.IsValid() {
		err = errors.New("no original destination")
	}
	return to, err
}

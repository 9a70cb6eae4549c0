package netpolicy_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"stillframe/netpolicy"
)

var number atomic.Int32

// testName gives a free name whose namespace ends with the test.
func testName(t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("sfnettest-%d-%d", os.Getpid(), number.Add(1))
	t.Cleanup(func() { require.NoError(t, netpolicy.Destroy(context.Background(), name)) })
	return name
}

func create(t *testing.T) *netpolicy.Namespace {
	t.Helper()
	ns, err := netpolicy.Create(t.Context(), testName(t))
	require.NoError(t, err)
	return ns
}

// attach opens a namespace's tap as a VMM would.
func attach(t *testing.T, ns *netpolicy.Namespace) *os.File {
	t.Helper()
	var tap *os.File
	require.NoError(t, ns.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		ifr, err := unix.NewIfreq(netpolicy.TapName)
		if err != nil {
			return err
		}
		// The flags must be those it was made with, or the kernel refuses.
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
			return err
		}
		tap = os.NewFile(uintptr(fd), "tap")
		return nil
	}))
	t.Cleanup(func() { _ = tap.Close() })
	return tap
}

func TestNamespaceHasOnlyLoopbackAndTap(t *testing.T) {
	ns := create(t)
	require.NoError(t, ns.Do(func() error {
		links, err := netlink.LinkList()
		require.NoError(t, err)
		var names []string
		for _, l := range links {
			// Some kernels put fallback devices of their tunnels into every namespace; those are down.
			if l.Attrs().Flags&net.FlagUp != 0 {
				names = append(names, l.Attrs().Name)
			}
		}
		require.Equal(t, []string{"lo", "tap0"}, names)

		tap, err := netlink.LinkByName(netpolicy.TapName)
		require.NoError(t, err)
		require.Equal(t, netpolicy.HostMAC, tap.Attrs().HardwareAddr.String())
		addrs, err := netlink.AddrList(tap, netlink.FAMILY_ALL)
		require.NoError(t, err)
		require.Len(t, addrs, 1, "no IPv6 address either")
		require.Equal(t, "10.111.0.1/30", addrs[0].IPNet.String())
		neighs, err := netlink.NeighList(tap.Attrs().Index, netlink.FAMILY_V4)
		require.NoError(t, err)
		require.Len(t, neighs, 1)
		require.Equal(t, netpolicy.GuestMAC, neighs[0].HardwareAddr.String())
		require.Equal(t, netlink.NUD_PERMANENT, neighs[0].State)
		return nil
	}))
}

func TestNamespaceHasNoWayOut(t *testing.T) {
	ns := create(t)
	require.NoError(t, ns.Do(func() error {
		for name, want := range map[string]string{
			"ipv4/ip_forward": "0", "ipv6/conf/all/disable_ipv6": "1", "ipv6/conf/tap0/disable_ipv6": "1",
		} {
			b, err := os.ReadFile(filepath.Join("/proc/sys/net", name))
			require.NoError(t, err)
			require.Equal(t, want, strings.TrimSpace(string(b)), name)
		}
		routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
		require.NoError(t, err)
		require.Len(t, routes, 1)
		require.Equal(t, "10.111.0.0/30", routes[0].Dst.String())
		return nil
	}))
	_, err := ns.DialContext(t.Context(), "tcp", "192.0.2.1:80")
	require.ErrorIs(t, err, unix.ENETUNREACH)
}

// A listener of the host, on every address it has, is not there for the namespace.
func TestHostListenerIsNotReachable(t *testing.T) {
	ns := create(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	_, err = ns.DialContext(t.Context(), "tcp", l.Addr().String())
	require.ErrorIs(t, err, unix.ECONNREFUSED)
}

func TestFirstPacketNeedsNoNeighbourLookup(t *testing.T) {
	ns := create(t)
	tap := attach(t, ns)
	conn, err := ns.DialContext(t.Context(), "udp", netpolicy.GuestIP+":9")
	require.NoError(t, err)
	defer conn.Close()
	const vnetHeader = 10
	frame := make([]byte, 2048)
	for range 200 {
		// The kernel lets packets through some milliseconds after the tap was opened.
		_, err = conn.Write([]byte("hello"))
		require.NoError(t, err)
		require.NoError(t, tap.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
		n, err := tap.Read(frame)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		require.NoError(t, err)
		eth := frame[vnetHeader:n]
		if kind := binary.BigEndian.Uint16(eth[12:]); kind != unix.ETH_P_IP {
			require.NotEqual(t, unix.ETH_P_ARP, int(kind), "asked for a neighbour it was told")
			continue
		}
		require.Equal(t, netpolicy.GuestMAC, net.HardwareAddr(eth[:6]).String())
		require.Equal(t, netpolicy.HostMAC, net.HardwareAddr(eth[6:12]).String())
		require.Contains(t, string(eth), "hello")
		return
	}
	t.Fatal("no packet came out of the tap")
}

func TestSocketsOpenedInDoStayInTheNamespace(t *testing.T) {
	one, two := create(t), create(t)
	listen := func(ns *netpolicy.Namespace, says string) {
		var l net.Listener
		require.NoError(t, ns.Do(func() (err error) {
			l, err = net.Listen("tcp4", netpolicy.HostIP+":80")
			return err
		}))
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = c.Write([]byte(says))
				_ = c.Close()
			}
		}()
	}
	listen(one, "one")
	listen(two, "two")
	for ns, want := range map[*netpolicy.Namespace]string{one: "one", two: "two"} {
		c, err := ns.DialContext(t.Context(), "tcp", netpolicy.HostIP+":80")
		require.NoError(t, err)
		b := make([]byte, 16)
		n, err := c.Read(b)
		require.NoError(t, err)
		require.Equal(t, want, string(b[:n]))
		require.NoError(t, c.Close())
	}
}

func TestDialEndsWithItsContext(t *testing.T) {
	ns := create(t)
	attach(t, ns) // nobody answers behind it
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := ns.DialContext(ctx, "tcp", netpolicy.GuestIP+":1031")
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestDialRefusesWhatItCannotDo(t *testing.T) {
	ns := create(t)
	for _, c := range []struct{ network, addr string }{
		{"tcp", "localhost:1"}, {"tcp", "[::1]:1"}, {"unix", "10.111.0.1:1"}, {"tcp", "10.111.0.1"},
	} {
		_, err := ns.DialContext(t.Context(), c.network, c.addr)
		require.Error(t, err, c)
	}
}

func TestDoComesBack(t *testing.T) {
	ns := create(t)
	home, err := os.Readlink("/proc/self/ns/net") // of the first thread, which cannot be thrown away
	require.NoError(t, err)
	for range 100 {
		require.NoError(t, ns.Do(func() error {
			there, err := os.Readlink("/proc/thread-self/ns/net")
			require.NoError(t, err)
			require.NotEqual(t, home, there)
			return nil
		}))
	}
	require.Error(t, ns.Do(func() error { runtime.Goexit(); return nil }), "a function that does not return")
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	require.NoError(t, err)
	for _, task := range tasks {
		if at, err := os.Readlink(task); err == nil { // a thread may have ended
			require.Equal(t, home, at, task)
		}
	}
}

func TestCreateTakesUpWhatAKillLeft(t *testing.T) {
	name := testName(t)
	require.NoError(t, os.MkdirAll(netpolicy.Dir, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(netpolicy.Dir, name), nil, 0o400)) // named, not mounted
	_, err := netpolicy.Open(name)
	require.ErrorIs(t, err, netpolicy.ErrNotFound)
	ns, err := netpolicy.Create(t.Context(), name)
	require.NoError(t, err)
	first := inode(t, ns)

	// One that is complete and unused is made anew as well.
	ns, err = netpolicy.Create(t.Context(), name)
	require.NoError(t, err)
	require.NotEqual(t, first, inode(t, ns))
}

func inode(t *testing.T, ns *netpolicy.Namespace) uint64 {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Stat(ns.Path(), &st))
	return st.Ino
}

func TestCreateLeavesWhatIsInUse(t *testing.T) {
	t.Run("a process", func(t *testing.T) {
		ns := create(t)
		sleeper := exec.Command("sleep", "60")
		require.NoError(t, ns.Do(sleeper.Start))
		defer func() {
			_ = sleeper.Process.Kill()
			_ = sleeper.Wait()
		}()
		_, err := netpolicy.Create(t.Context(), ns.Name())
		require.ErrorIs(t, err, netpolicy.ErrInUse)
	})
	t.Run("an open tap", func(t *testing.T) {
		ns := create(t)
		tap := attach(t, ns)
		_, err := netpolicy.Create(t.Context(), ns.Name())
		require.ErrorIs(t, err, netpolicy.ErrInUse)
		require.NoError(t, tap.Close())
		_, err = netpolicy.Create(t.Context(), ns.Name())
		require.NoError(t, err)
	})
}

func TestDestroy(t *testing.T) {
	ns := create(t)
	tap := attach(t, ns) // still open: the guest must be cut off all the same
	require.NoError(t, netpolicy.Destroy(t.Context(), ns.Name()))
	require.NoError(t, netpolicy.Destroy(t.Context(), ns.Name()), "a second time")
	_, err := os.Lstat(ns.Path())
	require.ErrorIs(t, err, os.ErrNotExist)
	mounts, err := os.ReadFile("/proc/mounts")
	require.NoError(t, err)
	require.NotContains(t, string(mounts), ns.Name())
	_, err = tap.Write(make([]byte, 64))
	require.Error(t, err, "the tap is gone")
	_, err = netpolicy.Open(ns.Name())
	require.ErrorIs(t, err, netpolicy.ErrNotFound)
	require.ErrorIs(t, ns.Do(func() error { return nil }), netpolicy.ErrNotFound)
}

func TestListAndOpen(t *testing.T) {
	a, b := create(t), create(t)
	names, err := netpolicy.List(fmt.Sprintf("sfnettest-%d-", os.Getpid()))
	require.NoError(t, err)
	require.Subset(t, names, []string{a.Name(), b.Name()})
	opened, err := netpolicy.Open(a.Name())
	require.NoError(t, err)
	require.Equal(t, a.Path(), opened.Path())
}

func TestNamesThatAreNone(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a/b", "../x", "A", "-x", strings.Repeat("a", 200)} {
		_, err := netpolicy.Create(t.Context(), name)
		require.Error(t, err, name)
		_, err = netpolicy.Open(name)
		require.Error(t, err, name)
		require.Error(t, netpolicy.Destroy(t.Context(), name), name)
	}
}

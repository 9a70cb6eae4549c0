package vmmtest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"stillframe/hypervisor/vmm"
)

// network is a namespace with a tap in it, as a sandbox has one.
type network struct {
	t    *testing.T
	path string // of the namespace's file
	tap  string
}

func newNetwork(t *testing.T, tap string) *network {
	t.Helper()
	n := &network{t: t, tap: tap}
	name := fmt.Sprintf("vmmtest-%d-%s", os.Getpid(), tap)
	n.path = filepath.Join("/run/netns", name)
	n.inside(func() (netns.NsHandle, error) { return netns.NewNamed(name) }, func() {
		link := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: tap}, Mode: netlink.TUNTAP_MODE_TAP,
			Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR}
		require.NoError(t, netlink.LinkAdd(link))
		address, err := netlink.ParseAddr(hostIP + "/30")
		require.NoError(t, err)
		require.NoError(t, netlink.AddrAdd(link, address))
		require.NoError(t, netlink.LinkSetUp(link))
	})
	t.Cleanup(func() { require.NoError(t, netns.DeleteNamed(name)) })
	return n
}

// inside runs f on a thread that enter has brought into a namespace, and brings the thread back.
func (n *network) inside(enter func() (netns.NsHandle, error), f func()) {
	n.t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := errors.New("a check in the namespace failed") // FailNow ends this goroutine
		home, homeErr := netns.Get()
		defer func() {
			// Not unwired unless it is home again: the runtime ends such a thread.
			if homeErr == nil && netns.Set(home) == nil && home.Close() == nil {
				runtime.UnlockOSThread()
			}
			done <- err
		}()
		ns, enterErr := enter()
		if err = errors.Join(homeErr, enterErr); err != nil {
			return
		}
		defer func() { _ = ns.Close() }()
		err = errors.New("a check in the namespace failed")
		f()
		err = nil
	}()
	require.NoError(n.t, <-done)
}

func (n *network) enter() (netns.NsHandle, error) {
	ns, err := netns.GetFromPath(n.path)
	if err != nil {
		return ns, err
	}
	return ns, netns.Set(ns)
}

// requireEcho sends the guest a datagram until it comes back: the first ones may be lost while addresses are resolved.
func (n *network) requireEcho(text string) {
	n.t.Helper()
	n.inside(n.enter, func() {
		conn, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.ParseIP(guestIP), Port: echoPort})
		require.NoError(n.t, err)
		defer func() { require.NoError(n.t, conn.Close()) }()
		buf := make([]byte, pageSize)
		require.Eventually(n.t, func() bool {
			if _, err := conn.Write([]byte(text)); err != nil {
				return false
			}
			if conn.SetReadDeadline(time.Now().Add(200*time.Millisecond)) != nil {
				return false
			}
			got, err := conn.Read(buf)
			return err == nil && string(buf[:got]) == text
		}, patience(30*time.Second), 10*time.Millisecond, "the guest does not answer")
	})
}

// TestNetworkInANamespace runs the VMM in a namespace whose tap it is given, and restores its VM in another namespace
// with a tap of another name, both alive at once with the same addresses.
func TestNetworkInANamespace(t *testing.T) {
	forEachVMM(t, func(t *testing.T, binary string) {
		first, second := newNetwork(t, "sftap1"), newNetwork(t, "sftap2")
		v := startVMM(t, binary, func(o *vmm.StartOptions) { o.NetNS = first.path })
		cfg := v.config()
		cfg.Net = []vmm.Net{{ID: netID, Tap: first.tap, MAC: guestMAC}}
		v.boot(cfg)
		require.Contains(t, string(v.serialBytes()), "mac "+guestMAC)
		first.requireEcho("before")
		s := v.save()
		first.requireEcho("after")

		clone := startVMM(t, binary, func(o *vmm.StartOptions) { o.NetNS = second.path })
		dir := clone.clone(s)
		require.NoError(t, vmm.PatchSnapshotConfig(dir, vmm.ConfigEdits{Taps: map[string]string{netID: second.tap}}))
		require.NoError(t, clone.restore(dir, true))
		second.requireEcho("in the clone")
		first.requireEcho("in the source")
		requireContinues(t, clone, s)

		want, err := os.Stat(first.path)
		require.NoError(t, err)
		is, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", v.proc.Record().PID))
		require.NoError(t, err)
		require.True(t, os.SameFile(want, is), "the VMM is not in its namespace")
	})
	ours, err := os.Stat("/proc/self/ns/net")
	require.NoError(t, err)
	parents, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", os.Getppid()))
	require.NoError(t, err)
	require.True(t, os.SameFile(ours, parents), "starting a VMM moved this process")
}

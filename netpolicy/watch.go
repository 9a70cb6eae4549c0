package netpolicy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Numbers of linux/netfilter/nf_tables.h and nfnetlink.h that the netlink library does not have.
const (
	nftSubsystem  = 10 // NFNL_SUBSYS_NFTABLES
	nftNewGen     = 15 // NFT_MSG_NEWGEN
	nftGetGen     = 16 // NFT_MSG_GETGEN
	nftGenID      = 1  // NFTA_GEN_ID
	nftablesGroup = 7  // NFNLGRP_NFTABLES
)

// generation is the number of the rule set that is in force: it changes with every change of any rule of any family in
// the namespace. With no sockets it is that of the calling thread's namespace.
func generation(sockets map[int]*nl.SocketHandle) (uint32, error) {
	req := nl.NewNetlinkRequest(nftSubsystem<<8|nftGetGen, 0)
	req.Sockets = sockets
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	answers, err := req.Execute(unix.NETLINK_NETFILTER, nftSubsystem<<8|nftNewGen)
	if err != nil {
		return 0, fmt.Errorf("ask for the generation of the rules: %w", err)
	}
	for _, a := range answers {
		if len(a) < nl.SizeofNfgenmsg {
			continue
		}
		attrs, err := nl.ParseRouteAttr(a[nl.SizeofNfgenmsg:])
		if err != nil {
			return 0, fmt.Errorf("generation of the rules: %w", err)
		}
		for _, attr := range attrs {
			if attr.Attr.Type&nl.NLA_TYPE_MASK == nftGenID && len(attr.Value) >= 4 {
				return binary.BigEndian.Uint32(attr.Value), nil
			}
		}
	}
	return 0, errors.New("the kernel did not say which generation the rules are of")
}

// watch holds what is needed to look at a namespace without entering it, and hears of changes. It keeps the namespace
// alive, so it must be stopped before the kernel can free that.
type watch struct {
	links   *netlink.Handle
	rules   map[int]*nl.SocketHandle
	events  []*os.File
	readers sync.WaitGroup
}

func newWatch(ns *Namespace) (*watch, error) {
	w := &watch{}
	err := ns.Do(func() error {
		var err error
		if w.links, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return err
		}
		s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		w.rules = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: {Socket: s}}
		for _, group := range []struct{ protocol, groups int }{
			{unix.NETLINK_ROUTE, unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV4_ROUTE},
			{unix.NETLINK_NETFILTER, 1 << (nftablesGroup - 1)},
		} {
			f, err := subscribe(group.protocol, uint32(group.groups))
			if err != nil {
				return err
			}
			w.events = append(w.events, f)
		}
		return nil
	})
	if err != nil {
		w.stop()
		return nil, fmt.Errorf("watch %s: %w", ns.name, err)
	}
	return w, nil
}

// subscribe opens a socket on which the kernel tells of changes, one that a goroutine can wait on without a thread.
func subscribe(protocol int, groups uint32) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		return nil, errors.Join(os.NewSyscallError("bind", err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// start calls changed, from goroutines that stop waits for, whenever there may have been a change.
func (w *watch) start(changed func()) {
	for _, f := range w.events {
		w.readers.Go(func() {
			b := make([]byte, 512) // what it says does not matter, so that the rest may be lost
			for {
				_, err := f.Read(b)
				if err != nil && !errors.Is(err, unix.ENOBUFS) { // a lost event is one too
					return
				}
				changed()
			}
		})
	}
}

// stop closes everything. It can be called on nil.
func (w *watch) stop() {
	if w == nil {
		return
	}
	if w.links != nil {
		w.links.Close()
	}
	for _, s := range w.rules {
		s.Close()
	}
	for _, f := range w.events {
		_ = f.Close() // nothing was written
	}
	w.readers.Wait()
}

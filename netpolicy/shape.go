package netpolicy

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// shapeTap bounds what goes to the guest. What comes from it is bounded by a rule of the raw table, because a queue
// discipline acts on what leaves an interface only.
func shapeTap(b Bounds) error {
	tap, err := netlink.LinkByName(TapName)
	if err != nil {
		return err
	}
	root := netlink.QdiscAttrs{
		LinkIndex: tap.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT,
	}
	if b.BytesPerSecond <= 0 {
		err := netlink.QdiscDel(&netlink.Tbf{QdiscAttrs: root})
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) { // there was none
			return fmt.Errorf("unbound %s: %w", TapName, err)
		}
		return nil
	}
	rate := uint64(b.BytesPerSecond)
	burst := max(rate/100, 64<<10) // 10 ms, and no less than one large segment
	err = netlink.QdiscReplace(&netlink.Tbf{
		QdiscAttrs: root, Rate: rate, Buffer: uint32(tbfTime(rate, burst)), Limit: uint32(burst + rate/20), // 50 ms
	})
	if err != nil {
		return fmt.Errorf("bound %s: %w", TapName, err)
	}
	return nil
}

// tbfTime is how long size bytes take at a rate, in the ticks that the kernel's packet schedulers count in.
func tbfTime(rate, size uint64) float64 {
	return float64(netlink.Xmittime(rate, uint32(size)))
}

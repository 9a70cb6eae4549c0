package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"
)

// A leader whose disk hangs without an error does not step down by itself: its heartbeats need no disk, and its
// followers wait. So the disk under the log is written to and synced all the time, by a goroutine of its own, for it
// may never return.

// errDiskStalled says that the disk under the log hangs.
var errDiskStalled = errors.New("the disk under the log hangs: nothing that was written to it was synced in time")

// probeDisk writes a byte to a file beside the log and syncs it.
func probeDisk(dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, "probe"), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte{1}, 0)
	return errors.Join(err, f.Sync(), f.Close())
}

// watchDisk gives up the leadership when the disk has hung for StallTimeout, and the node after twice that, whether it
// led or not: a follower that cannot write is no follower. A sole voter has nobody to make room for and goes on
// waiting. An error of the disk is not its business; the library stumbles over that by itself.
func (n *Node) watchDisk(ctx context.Context) {
	ticker := time.NewTicker(max(n.cfg.StallTimeout/stallProbes, time.Millisecond))
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		synced := make(chan error, 1)
		go func() { synced <- n.probe(n.cfg.Dir) }() // may hang for ever, with the disk
		if !n.awaitSync(ctx, synced) {
			return
		}
	}
}

// stallProbes is how often the disk is tried within StallTimeout.
const stallProbes = 5

// awaitSync waits for one probe; false when the node cannot or need not be watched any longer.
func (n *Node) awaitSync(ctx context.Context, synced <-chan error) bool {
	begun := time.Now()
	stalled := time.NewTimer(n.cfg.StallTimeout)
	defer stalled.Stop()
	select {
	case err := <-synced:
		if err != nil {
			n.log.Warn("the disk under the log cannot be written to", "error", err)
		}
		return true
	case <-ctx.Done():
		return false
	case <-stalled.C:
	}
	n.log.Error("the disk under the log hangs", "folder", n.cfg.Dir, "for", n.cfg.StallTimeout)
	leading := n.raft.State() == raft.Leader
	if n.otherVoters() == 0 {
		select {
		case err := <-synced:
			n.log.Warn("the disk under the log goes on", "after", time.Since(begun), "error", err)
			return true
		case <-ctx.Done():
			return false
		}
	}
	if leading {
		n.keep.Go(func() { // the library may not answer: its loop may hang with the disk
			if _, err := n.transferHere(ctx, orderRequest{}); err != nil {
				n.log.Warn("the leadership was not handed over", "error", err)
			}
		})
	}
	end := time.NewTimer(n.cfg.StallTimeout)
	defer end.Stop()
	select {
	case err := <-synced:
		n.log.Warn("the disk under the log goes on", "after", time.Since(begun), "error", err)
		return true
	case <-ctx.Done():
		return false
	case <-end.C:
	}
	n.fail(fmt.Errorf("%w (%s, for %s)", errDiskStalled, n.cfg.Dir, time.Since(begun).Round(time.Second)))
	n.port.cut()
	return false
}

package node

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// spareRoom is the size, in bytes, of a file in the data folder that is given up for a start on a full disk. A start
// makes a socket and a few files; without room for them nothing could be deleted any more to make room.
const spareRoom = 4 << 20

func (n *Node) spare() string { return filepath.Join(n.cfg.DataDir, "spare") }

// giveUpSpare removes the spare file where the disk is full.
func (n *Node) giveUpSpare() error {
	var fs unix.Statfs_t
	if err := unix.Statfs(n.cfg.DataDir, &fs); err != nil {
		return err
	}
	if int64(fs.Bavail)*fs.Bsize >= spareRoom {
		return nil
	}
	err := os.Remove(n.spare())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	n.cfg.Logger.Warn("the data folder's disk is full; its spare room is used for this start")
	return err
}

// setAsideSpare makes the spare file. A node goes without where there is no room for it.
func (n *Node) setAsideSpare() {
	f, err := os.OpenFile(n.spare(), os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, spareRoom), f.Close())
	}
	if err != nil {
		n.cfg.Logger.Warn("no spare room is set aside in the data folder", "error", err)
	}
}

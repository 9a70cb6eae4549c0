package e2e

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"stillframe/httpd/client"
	"stillframe/hypervisor/vmm"
)

// TestFullDisk runs nodes on filesystems of their own, one that shares blocks and one that copies, and fills them up:
// by files that are none of the node's, and by a guest.
func TestFullDisk(t *testing.T) {
	for _, kind := range []string{"xfs", "ext4"} {
		t.Run(kind, func(t *testing.T) {
			dir := filepath.Join(workDir, kind)
			require.NoError(t, mountLoop(kind, filepath.Join(workDir, kind+".image"), dir, 2<<30))
			t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
			fullDisk(t, dir)
		})
	}
}

func fullDisk(t *testing.T, dir string) {
	n := newNodeIn(t, dir)
	run := func(name string, f func(t *testing.T)) {
		t.Run(name, func(t *testing.T) {
			outer := n.t
			n.t = t
			defer func() { n.t = outer }()
			f(t)
		})
	}
	first := n.newGuest()
	_, err := first.snapshot("origin", "")
	require.NoError(t, err)
	run("too little for a snapshot", func(t *testing.T) {
		free := fill(t, dir, 100<<20)
		_, err := first.snapshot("no-room", "")
		requireClear(t, err, http.StatusServiceUnavailable, "disk space")
		_, err = n.api.CreateSandbox(within(t), small(""))
		requireClear(t, err, http.StatusServiceUnavailable, "disk space")
		n.requireExact()
		first.requireRuns()
		free()
		first.requireNameFree("no-room")
	})
	// On a disk that is full to the last block any VM may end, because its RAM is a sparse file: from here on every
	// guest is one that may. What must hold is that this is said, and that whatever has not ended runs.
	first.delete()
	for _, at := range []string{"snapshot/ahead/before", "snapshot/vm-snapshot/before", "snapshot/publish/before"} {
		run("full at "+at, func(t *testing.T) { fullDuringSnapshot(t, dir, first, at) })
	}
	run("a restart on a full disk", func(t *testing.T) { restartWhenFull(t, dir, first) })
	run("filled by a guest", func(t *testing.T) { filledByGuest(t, dir, first) })
}

func fullDuringSnapshot(t *testing.T, dir string, first *guest, at string) {
	n, victim := first.n, first.restore("origin")
	g := n.holdAt(at, func() error { _, err := victim.snapshot("no-room", ""); return err })
	free := fill(t, dir, 0)
	err := g.open()
	lives := n.vmmLives(victim.id)
	free()
	switch {
	case err == nil:
		t.Log("there was room enough: blocks are shared or had been set aside")
		n.deleteSnapshotNamed("no-room")
	case client.Status(err) == http.StatusConflict:
		requireClear(t, err, http.StatusConflict, "the sandbox has stopped")
		require.False(t, lives)
	default:
		requireClear(t, err, http.StatusServiceUnavailable, "disk")
	}
	victim.runsOrIsStopped(t)
	victim.delete()
	n.requireExact()
	other := first.restore("origin")
	other.requireNameFree("no-room")
	other.delete()
}

// vmmLives asks the kernel, not the daemon.
func (n *node) vmmLives(id string) bool {
	rec, err := n.record(id)
	require.NoError(n.t, err)
	p, err := vmm.Adopt(rec)
	if err != nil {
		require.ErrorIs(n.t, err, vmm.ErrGone)
		return false
	}
	return p.Close() == nil
}

// runsOrIsStopped is for when there is room again: a guest whose VMM lives runs and is itself, any other is stopped and
// says why.
func (g *guest) runsOrIsStopped(t *testing.T) {
	if g.n.vmmLives(g.id) {
		g.requireRuns()
		return
	}
	sb := g.n.requireStopped(g.id)
	require.Contains(t, sb.StateReason, "VMM")
	t.Logf("a guest has ended: %s", sb.StateReason)
}

func restartWhenFull(t *testing.T, dir string, first *guest) {
	n, victim := first.n, first.restore("origin")
	sn, err := victim.snapshot("ballast", "")
	require.NoError(t, err)
	free := fill(t, dir, 0)
	n.kill()
	n.start()
	require.NoError(t, n.api.DeleteSnapshot(within(t), sn.ID), "what makes room must work without any")
	free()
	victim.runsOrIsStopped(t)
	victim.delete()
	n.requireExact()
}

// filledByGuest: the filesystem fills up under the VMs. The greedy guest meets errors of its disk or ends with its VMM,
// and so may another that grows; the daemon goes on serving, and everything works again once the greedy one is deleted.
func filledByGuest(t *testing.T, dir string, first *guest) {
	n := first.n
	greedy, other := first.restore("origin"), first.restore("origin")
	free := fill(t, dir, 64<<20)
	res, err := n.api.Exec(within(t), greedy.id, client.Exec{
		Command: "dd if=/dev/urandom of=/home/user/fill bs=64k count=1600 oflag=direct && sync", Timeout: 60,
	})
	t.Logf("the guest that fills the disk: %v, exit %d %s", err, res.ExitCode, res.Stderr)
	if n.vmmLives(greedy.id) {
		require.NoError(t, err, "it lives, so it is told of the error and does not hang")
	}
	sandboxes, _ := n.listed()
	require.Len(t, sandboxes, 2, "the daemon serves")
	require.NoError(t, n.api.DeleteSandbox(within(t), greedy.id), "its deletion makes room")
	free()
	other.runsOrIsStopped(t)
	other.delete()
	n.requireExact()
	// Whatever became of the guests, what was kept is whole.
	clone := first.restore("origin")
	clone.requireRuns()
	n.requireExact()
}

// fill writes files beside a data folder until so many bytes are free, and gives what removes them.
func fill(t *testing.T, dir string, leave int64) (free func()) {
	t.Helper()
	folder, err := os.MkdirTemp(dir, "fill")
	require.NoError(t, err)
	var st unix.Statfs_t
	for i, chunk := 0, int64(1<<30); chunk >= 4096; {
		require.NoError(t, unix.Statfs(dir, &st))
		if room := int64(st.Bfree) * st.Bsize; room-chunk < leave && (leave > 0 || chunk > 1<<20) {
			chunk /= 2
			continue
		}
		i++
		f, err := os.Create(filepath.Join(folder, strconv.Itoa(i)))
		if errors.Is(err, unix.ENOSPC) {
			break
		}
		require.NoError(t, err)
		err = unix.Fallocate(int(f.Fd()), 0, 0, chunk)
		require.NoError(t, f.Close())
		if errors.Is(err, unix.ENOSPC) {
			chunk /= 2
			continue
		}
		require.NoError(t, err)
	}
	removed := false
	free = func() {
		if removed {
			return
		}
		removed = true
		require.NoError(t, os.RemoveAll(folder))
		unix.Sync()
		time.Sleep(100 * time.Millisecond)
	}
	t.Cleanup(free)
	return free
}

package e2e

import (
	"crypto/rand"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"stillframe/fsm"
	"stillframe/httpd/client"
	"stillframe/hypervisor"
)

// TestRestoreElsewhere has a node that holds a snapshot and no room for its clones: another one fetches the data,
// however often it is killed while it does, keeps it for the next time, and lets go of it with the snapshot.
func TestRestoreElsewhere(t *testing.T) {
	c := newCluster(t, "--overcommit-vcpu", "1") // room for two small sandboxes on each
	holder := c.nodes[0]
	others := c.others(holder)
	g := c.newGuestOn(holder, holder)
	sn, err := g.snapshot("warm", "")
	require.NoError(t, err, holder.output())

	atHome := c.restore(holder, g, "warm")
	require.Equal(t, holder.dir, atHome.n.dir, "at home as long as there is room")
	for _, n := range others { // what an earlier life left half done
		half := filepath.Join(n.dir, "copies", sn.ID+".tmp")
		require.NoError(t, os.Mkdir(half, 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(half, "ram"), []byte("half"), 0o600))
	}
	for _, when := range []string{"before", "after"} {
		in := client.RestoreSnapshot{SnapshotName: "warm", Timeout: 3600, IdempotencyKey: rand.Text()}
		dead := c.dieAtFetch(others, when, func() { _, _ = holder.api.RestoreSnapshot(within(t), in) })
		dead.start()
		sb, err := holder.api.RestoreSnapshot(within(t), in)
		require.NoError(t, err, dead.output())
		require.Equal(t, dead.dir, c.owner(sb.ID).dir)
		away := &guest{n: dead, id: sb.ID, memory: g.memory, disk: g.disk}
		away.requireRuns()
		require.DirExists(t, filepath.Join(dead.dir, "copies", sn.ID))
		require.NoDirExists(t, filepath.Join(dead.dir, "copies", sn.ID+".tmp"))
		require.Equal(t, http.StatusConflict, client.Status(holder.api.DeleteSnapshot(within(t), sn.ID)), "in use elsewhere")
		away.delete()
	}

	// Two at once: where they meet, one fetches and the other waits for it.
	clones := make([]*guest, 2)
	var both sync.WaitGroup
	for i := range clones {
		both.Go(func() { clones[i] = c.restore(holder, g, "warm") })
	}
	both.Wait()
	for _, away := range clones {
		require.NotEqual(t, holder.dir, away.n.dir)
		away.requireRuns()
		away.delete()
	}
	require.NoError(t, holder.api.DeleteSandbox(within(t), atHome.id))
	require.NoError(t, holder.api.DeleteSnapshot(within(t), sn.ID))
	for _, n := range others {
		copies := filepath.Join(n.dir, "copies")
		n.eventually("the copy goes with the snapshot", func() bool { return len(names(n, copies)) == 0 })
	}
	damageIsFound(c, g)
	g.requireRuns()
	c.agree()
}

// damageIsFound: what decays at the holder is found by whoever fetches it, and nothing of it is kept.
func damageIsFound(c *several, g *guest) {
	t := c.t
	sn, err := g.snapshot("damaged", "")
	require.NoError(t, err)
	filler := c.restore(g.n, g, "damaged") // until it decays
	ram := filepath.Join(g.n.dir, "snapshots", sn.ID, "ram")
	f, err := os.OpenFile(ram, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("damage"), 64<<20)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	_, err = g.n.api.RestoreSnapshot(within(t), client.RestoreSnapshot{SnapshotName: "damaged"})
	requireClear(t, err, http.StatusInternalServerError, "damaged data")
	for _, n := range c.others(g.n) {
		require.Empty(t, names(n, filepath.Join(n.dir, "copies")))
		require.Empty(t, names(n, filepath.Join(n.dir, "sandboxes")))
	}
	filler.delete()
}

// restore makes a clone of a guest through a node, wherever it is placed.
func (c *several) restore(through *node, g *guest, name string) *guest {
	c.t.Helper()
	sb, err := through.api.RestoreSnapshot(within(c.t), client.RestoreSnapshot{SnapshotName: name, Timeout: 3600})
	require.NoError(c.t, err, through.output())
	return &guest{n: c.owner(sb.ID), id: sb.ID, memory: g.memory, disk: g.disk}
}

// dieAtFetch does a call in the background and gives the node that fetched for it, and died doing so.
func (c *several) dieAtFetch(among []*node, when string, call func()) *node {
	c.t.Helper()
	for _, n := range among {
		n.orderFault("kill:" + place(fsm.IntentRestore, hypervisor.StepFetch, when))
	}
	var calling sync.WaitGroup
	calling.Go(call)
	c.t.Cleanup(calling.Wait)
	var dead *node
	among[0].eventually("a node dies", func() bool {
		for _, n := range among {
			select {
			case <-n.exited:
				dead = n
			default:
			}
		}
		return dead != nil
	})
	for _, n := range among {
		n.withdrawFault()
	}
	return dead
}

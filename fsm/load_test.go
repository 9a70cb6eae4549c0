package fsm

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestRowsDoNotShareTheReadersBuffer reads rows with bytes in them, one after the other through the same buffer.
func TestRowsDoNotShareTheReadersBuffer(t *testing.T) {
	w := newWorld(t)
	for i := range 50 {
		key := fmt.Sprintf("k%02d", i)
		w.ok(BeginRequest{Now: w.now, Org: "org-a", Request: Request{Key: key}})
		w.ok(FinishRequest{Now: w.now, Org: "org-a", Key: key, Response: Response{
			Status: 200, Body: bytes.Repeat([]byte(key), 50-i),
		}})
	}
	back := roundTrip(t, w.s)
	require.Equal(t, w.s.Digest(), back.Digest())
	rec, ok := back.Request("org-a", "k07")
	require.True(t, ok)
	require.Equal(t, bytes.Repeat([]byte("k07"), 43), rec.Response.Body)
}

// TestReadRefusesTwins gives Read a table with a row twice, and an index with an entry twice, under a digest that is
// right.
func TestReadRefusesTwins(t *testing.T) {
	row, err := marshal(Org{ID: "org-a", Name: "a"})
	require.NoError(t, err)
	twin, err := marshal(Org{ID: "org-b", Name: "a"})
	require.NoError(t, err)
	for _, second := range [][]byte{row, twin} {
		_, err := Read(bytes.NewReader(sealed(streamMagic, frame(tagOrg, row), frame(tagOrg, second))))
		require.ErrorIs(t, err, errDamaged)
	}
	s, err := Read(bytes.NewReader(sealed(streamMagic, frame(tagOrg, row))))
	require.NoError(t, err)
	require.Len(t, s.Orgs(), 1)
}

// TestPages holds parts of a list against the whole, from both ends and beyond.
func TestPages(t *testing.T) {
	w := newWorld(t)
	w.ok(RegisterNode{Now: w.now, Node: Node{
		ID: "node-1", Name: "first", Capacity: Capacity{VCPU: 8, MemoryMiB: 8192, DiskMiB: 1 << 30},
	}})
	for i := range 70 {
		w.pass(1)
		sb := w.running(fmt.Sprintf("sbx-%02d", i*37%70))
		if i > 2 && sb.ID != "sbx-01" && sb.ID != "sbx-02" {
			w.ok(ReportStopped{Now: w.now, Sandbox: sb.ID, Owner: sb.Owner, Epoch: sb.Epoch, Reason: "x"})
		}
	}
	for i := range 40 {
		w.pass(1)
		w.ready("sbx-01", fmt.Sprintf("snap-%02d", i), fmt.Sprintf("name-%02d", i*17%40))
	}
	w.ok(w.snap("sbx-02", "snap-taking", "taking"))
	w.ok(DeleteSnapshot{Now: w.now, Intent: "int-d", Org: "org-a", Snapshot: "snap-05"})
	var sandboxes []Sandbox
	for sb := range w.s.Sandboxes("org-a") {
		sandboxes = append(sandboxes, sb)
	}
	require.Len(t, sandboxes, 70)
	var ready []Snapshot
	for sn := range w.s.Snapshots("org-a") {
		require.Equal(t, SnapshotReady, sn.State)
		ready = append(ready, sn)
	}
	require.Len(t, ready, 39)
	for offset := range 75 {
		for _, limit := range []int{0, 1, 7, 100} {
			got, total := w.s.ListSandboxes("org-a", SandboxQuery{}, Page{Offset: offset, Limit: limit})
			require.Equal(t, 70, total)
			from := min(offset, 70)
			require.Equal(t, sandboxes[from:min(from+limit, 70)], got)
			back, total := w.s.ListSnapshots("org-a", SnapshotQuery{}, Page{Offset: offset, Limit: limit, NewestFirst: true})
			require.Equal(t, 39, total)
			for i, sn := range back {
				require.Equal(t, ready[38-offset-i].ID, sn.ID)
			}
			require.Len(t, back, max(0, min(limit, 39-offset)))
		}
	}
	got, total := w.s.ListSandboxes("org-b", SandboxQuery{}, Page{Limit: 10})
	require.Empty(t, got)
	require.Zero(t, total)
	running, total := w.s.ListSandboxes("org-a", SandboxQuery{State: SandboxRunning}, Page{Limit: 2})
	require.Equal(t, 4, total, "the first three and sbx-01; of sbx-02 a snapshot is being taken")
	require.Len(t, running, 2)
	some, total := w.s.ListSnapshots("org-a", SnapshotQuery{NamePart: "-1", ByTemplate: true}, Page{Limit: 100})
	require.Equal(t, len(some), total)
	require.Positive(t, total)
	require.Less(t, total, 39)
	sb, sn := w.s.Held("node-1")
	require.Equal(t, []int{70, 41}, []int{sb, sn})
}

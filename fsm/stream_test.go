package fsm

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

// fullWorld has at least one row in each table and an intent of each kind, open and closed.
func fullWorld(t *testing.T) *world {
	w := newWorld(t)
	w.ok(RegisterNode{Now: w.now, Node: Node{
		ID: "node-2", Name: "second", Level: Level, Capacity: Capacity{VCPU: 64, MemoryMiB: 1 << 20, DiskMiB: 1 << 20},
	}})
	keyed := w.create("sbx-1")
	keyed.Request = Request{Key: "k1", BodyHash: [32]byte{1}}
	keyed.EnvVars = map[string]string{"A": "1", "B": "2"}
	keyed.NetworkPolicy = &NetworkPolicy{Mode: "deny-all"}
	keyed.CA = []byte("sealed seed")
	w.done(w.ok(keyed).Intent, nil)
	w.ready("sbx-1", "snap-1", "base")
	w.ready("sbx-1", "snap-2", "other")
	w.ok(w.snap("sbx-1", "snap-3", "taking"))
	w.ok(w.restore("base", "sbx-2"))
	w.ok(DeleteSnapshot{Now: w.now, Intent: "int-d1", Org: "org-a", Snapshot: "snap-2"})
	w.running("sbx-3")
	w.done(w.ok(w.setPolicy("sbx-3", "int-p1")).Intent, nil)
	w.ok(DeleteSandbox{Now: w.now, Intent: "int-d2", Org: "org-a", Sandbox: "sbx-3"})
	w.running("sbx-6")
	fell := w.complete(w.ok(w.setPolicy("sbx-6", "int-p2")).Intent, nil)
	fell.Error, fell.PolicyFellBack = Errorf(KindInternal, "no"), true
	w.ok(fell)
	w.ok(w.setPolicy("sbx-6", "int-p3"))
	sb := w.running("sbx-4")
	w.ok(ReportStopped{Now: w.now, Sandbox: sb.ID, Owner: sb.Owner, Epoch: sb.Epoch, Reason: "gone"})
	w.fail(w.ok(w.create("sbx-5")).Intent, "no")
	refused := w.snap("sbx-1", "snap-4", "base")
	refused.Request = Request{Key: "k2"}
	w.refused(refused, KindConflict, "already exists")
	w.ok(BeginRequest{Now: w.now, Org: "org-a", Request: Request{Key: "k3"}})
	w.ok(FinishRequest{Now: w.now, Org: "org-a", Key: "k3", Response: Response{Status: 200, Body: []byte("x")}})
	w.ok(BeginRequest{Now: w.now, Org: "org-b", Request: Request{Key: "k3"}})
	w.ok(RevokeKey{Now: w.now, ID: "key-a"})
	return w
}

func TestStreamRoundTrip(t *testing.T) {
	require.Equal(t, New().Digest(), roundTrip(t, New()).Digest())
	w := fullWorld(t)
	back := roundTrip(t, w.s)
	require.Equal(t, w.s.Digest(), back.Digest())
	require.Equal(t, w.s.Digest(), replay(t, w.log).Digest())
	require.NotEqual(t, w.s.Digest(), New().Digest())

	// What is read back goes on as the original would.
	next := *w
	next.s = back
	for _, n := range []*world{w, &next} {
		in, ok := n.s.Intent("int-restore-sbx-2")
		require.True(t, ok)
		n.done(in, nil)
	}
	require.Equal(t, w.s.Digest(), next.s.Digest())
}

// TestGoldenState reads the states that this version and every older one wrote: later versions must read them, too, and
// write them as they were. The newest is what is written now; whoever changes the format leaves it as it is and adds
// the next.
func TestGoldenState(t *testing.T) {
	var buf bytes.Buffer
	_, err := fullWorld(t).s.WriteTo(&buf)
	require.NoError(t, err)
	newest := filepath.Join("testdata", "state-2.golden")
	if *rewrite {
		require.NoError(t, os.WriteFile(newest, buf.Bytes(), 0o644))
	}
	goldens, err := filepath.Glob(filepath.Join("testdata", "state-*.golden"))
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(goldens), 2)
	for _, path := range goldens {
		want, err := os.ReadFile(path)
		require.NoError(t, err)
		s, err := Read(bytes.NewReader(want))
		require.NoError(t, err, path)
		require.NoError(t, s.Check(), path)
		var again bytes.Buffer
		_, err = s.WriteTo(&again)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, again.Bytes()), "%s: reading and writing changes nothing", path)
		if path == newest {
			require.True(t, bytes.Equal(want, buf.Bytes()), "the format changed: add a file, and go on reading this")
		}
	}
}

func TestReadRejects(t *testing.T) {
	var buf bytes.Buffer
	_, err := fullWorld(t).s.WriteTo(&buf)
	require.NoError(t, err)
	whole := buf.Bytes()
	for n := 0; n < len(whole); n += 5 {
		s, err := Read(bytes.NewReader(whole[:n]))
		require.ErrorIs(t, err, errDamaged, "cut to %d bytes", n)
		require.Nil(t, s)
	}
	for i := 0; i < len(whole); i += 5 {
		bad := bytes.Clone(whole)
		bad[i] ^= 0x10
		s, err := Read(bytes.NewReader(bad))
		require.Error(t, err, "byte %d changed", i)
		require.Nil(t, s)
	}
	_, err = Read(bytes.NewReader(append(bytes.Clone(whole), 0)))
	require.ErrorContains(t, err, "follows its end")
	_, err = Read(iotest.TimeoutReader(iotest.OneByteReader(bytes.NewReader(whole))))
	require.ErrorIs(t, err, iotest.ErrTimeout)
	_, err = Read(iotest.DataErrReader(iotest.HalfReader(bytes.NewReader(whole))))
	require.NoError(t, err, "a reader may give less than asked")
}

// brokenWriter fails after a number of bytes.
type brokenWriter struct{ left int }

var errBrokenDisk = errors.New("disk full")

func (w *brokenWriter) Write(b []byte) (int, error) {
	if len(b) > w.left {
		return w.left, errBrokenDisk
	}
	w.left -= len(b)
	return len(b), nil
}

func TestWriteToFails(t *testing.T) {
	_, err := fullWorld(t).s.WriteTo(&brokenWriter{left: 100})
	require.ErrorIs(t, err, errBrokenDisk)
}

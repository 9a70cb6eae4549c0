package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"stillframe/fsm"
)

// TestEveryOperationMayFail makes each operation fail, the first time it is met and a later time, in every method of
// capture: the error comes out with its kind, and no file is left but the source.
func TestEveryOperationMayFail(t *testing.T) {
	ops := []Op{OpCreate, OpSize, OpClone, OpMap, OpRead, OpWrite, OpPunch, OpFlush, OpSync, OpRename}
	eachFilesystem(t, func(t *testing.T, kind, dir string) {
		src := filepath.Join(dir, "ram")
		scatter(t, src, 5, 8<<20, 400)
		w := startWriter(t, order{path: src, seed: 6, mib: 20, punch: true})
		for _, method := range methods {
			if !available(kind, method) {
				continue
			}
			met := 0
			for _, op := range ops {
				for _, at := range []int64{1, 3} {
					if failAt(t, w, dir, method, op, at) {
						met++
					}
				}
			}
			if met < 5 {
				t.Errorf("%s: only %d failures were met", method, met)
			}
		}
	})
}

// failAt makes the at-th operation of a kind fail and says whether it was met.
func failAt(t *testing.T, w *writer, dir string, method Method, op Op, at int64) bool {
	t.Helper()
	name := fmt.Sprintf("%s, %s number %d", method, op, at)
	var count atomic.Int64
	f := NewFailing(func(got Op, _ string) error {
		if got == op && count.Add(1) == at {
			return unix.ENOSPC
		}
		return nil
	})
	dest := filepath.Join(dir, "copy")
	_, err := captureWith(t, f, w, Request{Source: filepath.Join(dir, "ram"), Dest: dest, Mapped: true, Method: method})
	if count.Load() < at {
		if err != nil {
			t.Fatal(name, err)
		}
		leftovers(t, dir, "copy", "ram")
		if err := os.Remove(dest); err != nil {
			t.Fatal(err)
		}
		return false
	}
	if kindOfError(err) != fsm.KindUnavailable || !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("%s: got %v", name, err)
	}
	leftovers(t, dir, "ram")
	return true
}

// captureWith goes through the phases as the owner does: the guest runs again whatever happens.
func captureWith(t *testing.T, f *Files, w *writer, req Request) (Report, error) {
	t.Helper()
	c, err := f.Begin(t.Context(), req)
	if err != nil {
		return Report{}, err
	}
	w.stop()
	_, err = c.Freeze(t.Context())
	w.cont()
	if err != nil {
		return Report{}, errors.Join(err, c.Abort())
	}
	return c.Finish(t.Context())
}

// TestSoftDirtyMayFail falls back when the bits cannot be read in the pause.
func TestSoftDirtyMayFail(t *testing.T) {
	soft, _ := SoftDirtyAvailable()
	eachFilesystem(t, func(t *testing.T, kind, dir string) {
		src := filepath.Join(dir, "ram")
		scatter(t, src, 5, 8<<20, 400)
		w := startWriter(t, order{path: src, seed: 6, mib: 20})
		frozen := false
		f := NewFailing(func(op Op, _ string) error {
			if op == OpPagemap && frozen {
				return unix.EIO
			}
			return nil
		})
		dest := filepath.Join(dir, "copy")
		c, err := f.Begin(t.Context(), Request{Source: src, Dest: dest, Mapped: true, Method: MethodCopySoftDirty})
		if !soft {
			if !errors.Is(err, ErrUnsupported) {
				t.Fatal(err)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		frozen = true
		w.stop()
		_, err = c.Freeze(t.Context())
		want := read(t, src)
		w.cont()
		if err != nil {
			t.Fatal(err)
		}
		report, err := c.Finish(t.Context())
		if err != nil || report.Method != MethodCopyCompare {
			t.Fatal(report.Method, err)
		}
		samePages(t, want, read(t, dest), "without bits")
	})
}

// TestFullDisk fills a real filesystem: copies and reservations that do not fit say so, leave nothing, and the source
// stays as it was. Afterwards, with room again, the same call succeeds.
func TestFullDisk(t *testing.T) {
	for _, kind := range filesystems {
		t.Run(kind, func(t *testing.T) {
			dir := mount(t, kind, 512<<20)
			f, src, dst := New(), filepath.Join(dir, "ram"), filepath.Join(dir, "copy")
			scatter(t, src, 8, 64<<20, 40000)
			before := read(t, src)
			free, err := f.Free(dir)
			if err != nil {
				t.Fatal(err)
			}
			filler := filepath.Join(dir, "filler")
			if err := f.Allocate(filler, free-16<<20, true); err != nil {
				t.Fatal(err)
			}
			for _, call := range []func() error{
				func() error { return f.EnsureSpace(dir, 256<<20) },
				func() error { return f.Allocate(dst, 128<<20, true) },
				func() error {
					_, err := captureWith(t, f, startWriter(t, order{path: src, mib: -1}),
						Request{Source: src, Dest: dst, Method: MethodCopy})
					return err
				},
				func() error {
					_, err := f.Begin(t.Context(), Request{Source: src, Dest: dst, Method: MethodCopyCompare})
					return err
				},
			} {
				if err := call(); kindOfError(err) != fsm.KindUnavailable {
					t.Errorf("got %v", err)
				}
				leftovers(t, dir, "filler", "ram")
			}
			samePages(t, before, read(t, src), "source")
			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
			if _, err := f.Clone(t.Context(), src, dst); err != nil {
				t.Fatal(err)
			}
			samePages(t, before, read(t, dst), "clone")
		})
	}
}

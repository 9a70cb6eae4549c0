package store

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var methods = []Method{
	MethodReflink, MethodReflinkFlush, MethodReflinkAhead, MethodReflinkSoftDirty,
	MethodCopy, MethodCopyCompare, MethodCopySoftDirty,
}

// available says which methods a filesystem must offer. Soft-dirty bits depend on the kernel.
func available(kind string, method Method) bool {
	soft, _ := SoftDirtyAvailable()
	switch method {
	case MethodReflinkAhead:
		return kind == "xfs"
	case MethodReflinkSoftDirty:
		return kind == "xfs" && soft
	case MethodReflink, MethodReflinkFlush:
		return kind == "xfs" || kind == "btrfs"
	case MethodCopySoftDirty:
		return soft
	default:
		return true
	}
}

// TestCaptureEqualsTheFreeze dirties a file by another process while it is captured again and again, by every method on
// every filesystem, and compares each captured file with the source as it was while the process stood still.
func TestCaptureEqualsTheFreeze(t *testing.T) {
	eachFilesystem(t, func(t *testing.T, kind, dir string) {
		for _, method := range methods {
			t.Run(string(method), func(t *testing.T) {
				if available(kind, method) {
					captureRounds(t, dir, method, 40)
				} else {
					refused(t, dir, method)
				}
			})
		}
	})
}

// TestSoftDirtyIsThere fails in the machine whose kernel must have soft-dirty bits when they are not found.
func TestSoftDirtyIsThere(t *testing.T) {
	ok, reason := SoftDirtyAvailable()
	if os.Getenv(envExpect) != "" && !ok {
		t.Fatal("this kernel must have soft-dirty bits: ", reason)
	}
	if !ok && reason == "" {
		t.Fatal("no reason given")
	}
	t.Logf("soft-dirty bits: %t %s", ok, reason)
}

func refused(t *testing.T, dir string, method Method) {
	src := filepath.Join(dir, "ram")
	scatter(t, src, 1, 1<<20, 10)
	_, err := New().Begin(t.Context(), Request{Source: src, Dest: src + ".copy", Mapped: true, Method: method})
	if !errors.Is(err, ErrUnsupported) {
		t.Fatalf("got %v, want ErrUnsupported", err)
	}
	leftovers(t, dir, "ram")
	if err := os.Remove(src); err != nil {
		t.Fatal(err)
	}
}

// captureRounds makes n captures of files that a process writes to, in ways that vary with the seed.
func captureRounds(t *testing.T, dir string, method Method, n int) {
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 0))
	for first := 0; first < n; first += 10 {
		size := int64(1+rng.IntN(16)) << 20
		o := order{
			path: filepath.Join(dir, "ram"), seed: rng.Uint64(), hot: rng.IntN(2) == 0,
			mib: []int{0, 20, 100}[rng.IntN(3)], punch: rng.IntN(2) == 0,
			calls: first == 0 && !strings.Contains(string(method), "soft-dirty"),
		}
		name := fmt.Sprintf("seed %d, rounds from %d, %d bytes, writer %v", seed, first, size, o)
		scatter(t, o.path, o.seed, size, rng.IntN(int(size/pageSize)))
		w := startWriter(t, o)
		for range 10 {
			captureOnce(t, w, o, method, dir, name)
		}
		w.kill()
		leftovers(t, dir, "ram")
		if err := os.Remove(o.path); err != nil {
			t.Fatal(err)
		}
	}
}

func captureOnce(t *testing.T, w *writer, o order, method Method, dir, name string) {
	t.Helper()
	f, ctx := New(), t.Context()
	dest := filepath.Join(dir, "copy")
	c, err := f.Begin(ctx, Request{Source: o.path, Dest: dest, Mapped: !o.calls, Method: method})
	if err != nil {
		t.Fatal(name, err)
	}
	defer func() { _ = c.Abort() }()
	w.stop()
	_, err = c.Freeze(ctx)
	want := read(t, o.path)
	w.cont()
	if err != nil {
		t.Fatal(name, err)
	}
	report, err := c.Finish(ctx)
	if err != nil {
		t.Fatal(name, err)
	}
	samePages(t, want, read(t, dest), name)
	digest, err := f.Digest(ctx, dest)
	if err != nil || digest != report.Digest {
		t.Fatalf("%s: digest %s, %v, report %s", name, digest, err, report.Digest)
	}
	if report.Method != method {
		without := map[Method]Method{MethodCopySoftDirty: MethodCopyCompare, MethodReflinkSoftDirty: MethodReflinkAhead}
		if report.Method != without[method] || report.Reason == "" {
			t.Fatalf("%s: taken %s: %s", name, report.Method, report.Reason)
		}
		t.Log(report.Reason)
	}
	if err := os.Remove(dest); err != nil {
		t.Fatal(err)
	}
}

// TestChosenMethod takes what the filesystem and the kernel offer without being told.
func TestChosenMethod(t *testing.T) {
	eachFilesystem(t, func(t *testing.T, kind, dir string) {
		few, many := filepath.Join(dir, "few"), filepath.Join(dir, "many")
		scatter(t, few, 3, 1<<20, 100)
		scatter(t, many, 3, 200<<20, 30_000)
		startWriter(t, order{path: few, seed: 4, mib: 20})
		startWriter(t, order{path: many, seed: 4, mib: 20})
		for _, mapped := range []bool{true, false} {
			for _, src := range []string{few, many} {
				c, err := New().Begin(t.Context(), Request{Source: src, Dest: filepath.Join(dir, "copy"), Mapped: mapped})
				if err != nil {
					t.Fatal(err)
				}
				if want := chosen(t, kind, c.src, mapped, src == many); c.report.Method != want || c.report.Reason == "" {
					t.Errorf("mapped %t, %s: took %s (%s), want %s", mapped, src, c.report.Method, c.report.Reason, want)
				}
				if err := c.Abort(); err != nil {
					t.Fatal(err)
				}
				leftovers(t, dir, "few", "many")
			}
		}
	})
}

func chosen(t *testing.T, kind string, src *os.File, mapped, many bool) Method {
	t.Helper()
	soft, _ := SoftDirtyAvailable()
	_, err := dirtyIn(src, run{})
	switch {
	case kind == "xfs" && soft && mapped && many:
		return MethodReflinkSoftDirty
	case kind == "xfs" && err == nil && many:
		return MethodReflinkAhead
	case kind == "xfs" || kind == "btrfs":
		return MethodReflinkFlush
	case soft && mapped:
		return MethodCopySoftDirty
	default:
		return MethodCopyCompare
	}
}

// TestDirectIOIsNotFollowed keeps away from soft-dirty bits where devices write to memory by themselves.
func TestDirectIOIsNotFollowed(t *testing.T) {
	eachFilesystem(t, func(t *testing.T, kind, dir string) {
		src := filepath.Join(dir, "ram")
		scatter(t, src, 3, 1<<20, 10)
		startWriter(t, order{path: src, seed: 4, mib: 20})
		for _, method := range []Method{MethodCopySoftDirty, MethodReflinkSoftDirty} {
			_, err := New().Begin(t.Context(), Request{
				Source: src, Dest: filepath.Join(dir, "copy"), Mapped: true, DirectIO: true, Method: method,
			})
			if !errors.Is(err, ErrUnsupported) {
				t.Fatalf("%s: got %v, want ErrUnsupported", method, err)
			}
		}
		leftovers(t, dir, "ram")
	})
}

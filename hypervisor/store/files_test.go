package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"stillframe/fsm"
)

func kindOfError(err error) fsm.Kind {
	var known *fsm.Error
	if errors.As(err, &known) {
		return known.Kind
	}
	return ""
}

func TestProbe(t *testing.T) {
	eachFilesystem(t, func(t *testing.T, kind, dir string) {
		want := MethodCopy
		if kind == "xfs" || kind == "btrfs" {
			want = MethodReflink
		}
		got, err := New().Probe(dir)
		if err != nil || got != want {
			t.Fatalf("got %s, %v, want %s", got, err, want)
		}
		leftovers(t, dir)
		if _, err := New().Probe(filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("a missing folder: %v", err)
		}
	})
}

func TestAllocate(t *testing.T) {
	eachFilesystem(t, func(t *testing.T, _, dir string) {
		f, path := New(), filepath.Join(dir, "ram")
		for _, reserve := range []bool{false, true} {
			const size = 8 << 20
			// What a killed attempt left behind is in nobody's way.
			if err := os.WriteFile(path+partSuffix, []byte("half"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := f.Allocate(path, size, reserve); err != nil {
				t.Fatal(err)
			}
			leftovers(t, dir, "ram")
			samePages(t, make([]byte, size), read(t, path), "allocated")
			stored, err := f.Stored(path)
			if err != nil || reserve != (stored >= size) {
				t.Fatalf("reserve %t: stored %d, %v", reserve, stored, err)
			}
			if err := f.Allocate(path, size, reserve); !errors.Is(err, os.ErrExist) {
				t.Fatalf("over an existing file: %v", err)
			}
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestCloneIsEqual(t *testing.T) {
	eachFilesystem(t, func(t *testing.T, _, dir string) {
		f, src, dst := New(), filepath.Join(dir, "src"), filepath.Join(dir, "dst")
		// Sizes around blocks and pages, and an odd end; nearly empty and nearly full.
		for seed, size := range []int64{0, 1, 4096, 10_000, blockSize, blockSize + 4096, 3*blockSize + 777} {
			for _, pages := range []int{0, 3, 5000} {
				if size > 0 {
					scatter(t, src, uint64(seed), size, pages)
				} else if err := os.WriteFile(src, nil, 0o600); err != nil {
					t.Fatal(err)
				}
				stats, err := f.Clone(t.Context(), src, dst)
				if err != nil {
					t.Fatal(size, pages, err)
				}
				samePages(t, read(t, src), read(t, dst), string(stats.Method))
				if _, err := f.Clone(t.Context(), src, dst); !errors.Is(err, os.ErrExist) {
					t.Fatalf("over an existing file: %v", err)
				}
				leftovers(t, dir, "dst", "src")
				if err := errors.Join(os.Remove(src), os.Remove(dst)); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

func TestCopyKeepsHoles(t *testing.T) {
	eachFilesystem(t, func(t *testing.T, _, dir string) {
		f, src, dst := New(), filepath.Join(dir, "src"), filepath.Join(dir, "dst")
		scatter(t, src, 1, 64<<20, 20)
		// Zeros that are stored are not worth storing again.
		file, err := os.OpenFile(src, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := file.WriteAt(make([]byte, 4<<20), 30<<20); err != nil {
			t.Fatal(err)
		}
		out, err := os.Create(dst)
		if err != nil {
			t.Fatal(err)
		}
		stats, err := f.copyAll(t.Context(), file, out)
		if err := errors.Join(err, file.Close(), out.Sync(), out.Close()); err != nil {
			t.Fatal(err)
		}
		samePages(t, read(t, src), read(t, dst), "copy")
		stored, err := f.Stored(dst)
		if err != nil || stored > 4<<20 || stats.Bytes > 20*pageSize {
			t.Fatalf("stored %d, copied %d, %v", stored, stats.Bytes, err)
		}
	})
}

func TestCloneHonoursContext(t *testing.T) {
	eachFilesystem(t, func(t *testing.T, _, dir string) {
		src := filepath.Join(dir, "src")
		scatter(t, src, 1, 32<<20, 4000)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := New().Clone(ctx, src, filepath.Join(dir, "dst")); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		leftovers(t, dir, "src")
	})
}

func TestDigest(t *testing.T) {
	eachFilesystem(t, func(t *testing.T, _, dir string) {
		f, src := New(), filepath.Join(dir, "src")
		const size = 2*blockSize + 4096 + 100
		rng := scatter(t, src, 7, size, 300)
		digest := func(path string) string {
			d, err := f.Digest(t.Context(), path)
			if err != nil || len(d) != len("xxh3:")+32 || !strings.HasPrefix(d, "xxh3:") {
				t.Fatal(d, err)
			}
			return d
		}
		want := digest(src)
		// The same contents without a hole.
		full := filepath.Join(dir, "full")
		content := read(t, src)
		if err := os.WriteFile(full, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := digest(full); got != want {
			t.Errorf("without holes %s, with %s", got, want)
		}
		// Any byte, the length, and the place of a page all count.
		for range 50 {
			at := rng.IntN(len(content))
			content[at] ^= 1 << rng.IntN(8)
			if err := os.WriteFile(full, content, 0o600); err != nil {
				t.Fatal(err)
			}
			if digest(full) == want {
				t.Fatalf("a flipped bit at %d is not seen", at)
			}
			copy(content, read(t, src))
		}
		if err := os.WriteFile(full, append(content, 0), 0o600); err != nil {
			t.Fatal(err)
		}
		if digest(full) == want {
			t.Error("a longer file is not seen")
		}
		swapped := append(append([]byte{}, content[pageSize:2*pageSize]...), content[:pageSize]...)
		copy(swapped, "one page")
		copy(swapped[pageSize:], "another")
		a, b := append([]byte{}, swapped...), append(append([]byte{}, swapped[pageSize:]...), swapped[:pageSize]...)
		if err := errors.Join(os.WriteFile(full, a, 0o600), os.WriteFile(src, b, 0o600)); err != nil {
			t.Fatal(err)
		}
		if digest(full) == digest(src) {
			t.Error("pages that changed places are not seen")
		}
	})
}

func TestPublish(t *testing.T) {
	eachFilesystem(t, func(t *testing.T, _, dir string) {
		f, tmp, final := New(), filepath.Join(dir, "s.tmp"), filepath.Join(dir, "s")
		make1 := func() {
			if err := os.Mkdir(tmp, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(tmp, "ram"), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		make1()
		if err := f.Publish(tmp, final); err != nil {
			t.Fatal(err)
		}
		leftovers(t, dir, "s")
		make1()
		if err := f.Publish(tmp, final); kindOfError(err) != fsm.KindConflict {
			t.Fatalf("over an existing folder: %v", err)
		}
		leftovers(t, dir, "s", "s.tmp")
		if err := os.RemoveAll(final); err != nil {
			t.Fatal(err)
		}
		for _, op := range []Op{OpSync, OpRename} {
			failing := NewFailing(func(got Op, _ string) error {
				if got == op {
					return unix.EIO
				}
				return nil
			})
			if err := failing.Publish(tmp, final); !errors.Is(err, unix.EIO) {
				t.Fatalf("%s: %v", op, err)
			}
			leftovers(t, dir, "s.tmp")
		}
	})
}

func TestSpace(t *testing.T) {
	eachFilesystem(t, func(t *testing.T, kind, dir string) {
		f, path := New(), filepath.Join(dir, "ram")
		free, err := f.Free(dir)
		if err != nil || free <= 0 {
			t.Fatal(free, err)
		}
		if err := f.EnsureSpace(dir, free/2); err != nil {
			t.Fatal(err)
		}
		err = f.EnsureSpace(dir, free*2)
		if kindOfError(err) != fsm.KindUnavailable || !strings.Contains(err.Error(), "MiB needed") {
			t.Fatal(err)
		}
		const size = 16 << 20
		if err := f.Allocate(path, size, false); err != nil {
			t.Fatal(err)
		}
		outstanding := func() int64 {
			n, err := f.Outstanding(path)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		if n := outstanding(); n != size {
			t.Fatalf("an empty file may claim %d more bytes", n)
		}
		content := make([]byte, size/4)
		for i := range content {
			content[i] = byte(i)
		}
		file, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := file.WriteAt(content, 0); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(file.Sync(), file.Close()); err != nil {
			t.Fatal(err)
		}
		if n := outstanding(); n != size*3/4 {
			t.Fatalf("a quarter full: may claim %d more bytes", n)
		}
		stats, err := f.Clone(t.Context(), path, filepath.Join(dir, "snapshot"))
		if err != nil {
			t.Fatal(err)
		}
		want := int64(size * 3 / 4)
		if stats.Method == MethodReflink { // its blocks are no longer its own
			want = size
		}
		if n := outstanding(); n != want {
			t.Fatalf("%s: after %s: may claim %d more bytes, want %d", kind, stats.Method, n, want)
		}
	})
}

package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"testing/iotest"
)

func TestSentIsReceived(t *testing.T) {
	eachFilesystem(t, func(t *testing.T, kind, dir string) {
		f, src, dst := New(), filepath.Join(dir, "src"), filepath.Join(dir, "dst")
		for seed, size := range []int64{1, 4096, 10_000, blockSize, 3*blockSize + 777, 32 << 20} {
			for _, pages := range []int{0, 3, 900} {
				scatter(t, src, uint64(seed), size, pages)
				var wire bytes.Buffer
				sent, err := f.Send(t.Context(), src, &wire)
				if err != nil {
					t.Fatal(size, pages, err)
				}
				// As a connection gives it: in pieces of any size.
				received, err := f.Receive(t.Context(), iotest.HalfReader(&wire), dst, size)
				if err != nil || wire.Len() != 0 || sent.Bytes != received.Bytes || sent.Bytes > int64(pages+1)*pageSize {
					t.Fatal(size, pages, err, wire.Len(), sent, received)
				}
				want, err := f.Digest(t.Context(), src)
				if err != nil {
					t.Fatal(err)
				}
				if got, err := f.Digest(t.Context(), dst); err != nil || got != want {
					t.Fatal(size, pages, got, want, err)
				}
				if err := f.SyncFile(dst); err != nil {
					t.Fatal(err)
				}
				stored, err := f.Stored(dst)
				if err != nil || kind != "btrfs" && stored > int64(pages+64)*4*pageSize {
					t.Fatalf("%d bytes in %d pages take %d bytes of disk, %v", size, pages, stored, err)
				}
				if err := errors.Join(os.Remove(src), os.Remove(dst)); err != nil {
					t.Fatal(err)
				}
			}
		}
		leftovers(t, dir)
	})
}

// TestBrokenStreams: what ends early, at any place, or says what cannot be, leaves nothing.
func TestBrokenStreams(t *testing.T) {
	dir := t.TempDir()
	f, src, dst := New(), filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	const size = 40_000
	scatter(t, src, 7, size, 4)
	var buf bytes.Buffer
	if _, err := f.Send(t.Context(), src, &buf); err != nil {
		t.Fatal(err)
	}
	whole := buf.Bytes()
	receive := func(r io.Reader) error {
		_, err := f.Receive(t.Context(), r, dst, size)
		return err
	}
	for n := range whole {
		if err := receive(bytes.NewReader(whole[:n])); err == nil {
			t.Fatalf("%d of %d bytes make a file", n, len(whole))
		}
		leftovers(t, dir, "src")
	}
	piece := func(off, length uint64) []byte {
		out := binary.BigEndian.AppendUint64(nil, size)
		out = binary.BigEndian.AppendUint64(out, off)
		out = binary.BigEndian.AppendUint32(out, uint32(length))
		return append(out, make([]byte, length)...)
	}
	for name, bad := range map[string][]byte{
		"another size":      binary.BigEndian.AppendUint64(nil, size+1),
		"a negative size":   binary.BigEndian.AppendUint64(nil, 1<<63+size),
		"beyond the end":    piece(size-1, 2),
		"at the end":        piece(size, 1),
		"far away":          piece(1<<63, 1),
		"a wrong end":       piece(size-1, 0),
		"backwards":         append(piece(8192, 4096), piece(4096, 4096)[8:]...),
		"more than a piece": piece(0, maxPiece+1)[:20],
	} {
		if err := receive(bytes.NewReader(bad)); !errors.Is(err, errStream) {
			t.Fatalf("%s: %v", name, err)
		}
		leftovers(t, dir, "src")
	}
	if err := receive(io.MultiReader(bytes.NewReader(whole[:50]), iotest.ErrReader(io.ErrClosedPipe))); err == nil {
		t.Fatal("a reader that fails")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Receive(ctx, bytes.NewReader(whole), dst, size); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	leftovers(t, dir, "src")
	if err := receive(bytes.NewReader(whole)); err != nil {
		t.Fatal(err)
	}
}

// TestTransferMayFail fails each operation of a transfer in turn.
func TestTransferMayFail(t *testing.T) {
	dir := t.TempDir()
	src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	const size = 100_000
	scatter(t, src, 7, size, 4)
	broken := errors.New("broken")
	for _, op := range []Op{OpRead, OpMap, OpCreate, OpSize, OpWrite, OpRename} {
		f := NewFailing(func(o Op, _ string) error {
			if o == op {
				return broken
			}
			return nil
		})
		var buf bytes.Buffer
		_, err := f.Send(t.Context(), src, &buf)
		if op != OpRead && op != OpMap {
			if err != nil {
				t.Fatal(err)
			}
			_, err = f.Receive(t.Context(), &buf, dst, size)
		}
		if !errors.Is(err, broken) {
			t.Fatalf("%s: %v", op, err)
		}
		leftovers(t, dir, "src")
	}
}

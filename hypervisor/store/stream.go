package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// A file goes over a connection as its length (8 bytes, big-endian like all numbers here), then pieces that are not all
// zero: offset (8 bytes), length (4 bytes), bytes; in ascending order, without overlap. A piece of length 0 at the
// offset that is the file's length ends it, so that a connection that breaks is not taken for the end.
const (
	pieceHeader = 12
	maxPiece    = blockSize
)

// errStream says that what came over a connection is no file as Send writes it.
var errStream = errors.New("malformed file stream")

// Send writes a file that nobody changes to w, leaving out holes and pages of zeros.
func (f *Files) Send(ctx context.Context, path string, w io.Writer) (Stats, error) {
	start := time.Now()
	file, err := f.openSource(path)
	if err != nil {
		return Stats{}, err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return Stats{}, wrap(err, OpRead, path)
	}
	data, err := f.dataRuns(file, info.Size())
	if err != nil {
		return Stats{}, err
	}
	stats := Stats{Method: MethodCopy, Rounds: 1}
	if _, err := w.Write(binary.BigEndian.AppendUint64(nil, uint64(info.Size()))); err != nil {
		return stats, fmt.Errorf("send: %w", err)
	}
	var buf buffers
	for _, r := range cutRuns(data) {
		if err := ctx.Err(); err != nil {
			return stats, err
		}
		block := buf.first(r.length)
		if err := f.readFull(file, block, r.off); err != nil {
			return stats, err
		}
		if err := sendPieces(w, block, r.off, &stats); err != nil {
			return stats, err
		}
	}
	stats.Duration = time.Since(start)
	return stats, writePiece(w, info.Size(), nil)
}

// sendPieces sends the pages of a block that are not zero, neighbours together.
func sendPieces(w io.Writer, block []byte, off int64, stats *Stats) error {
	for at := 0; at < len(block); {
		end := at
		for end < len(block) && !isZero(block[end:min(end+pageSize, len(block))]) {
			end = min(end+pageSize, len(block))
		}
		if end == at {
			at += pageSize
			continue
		}
		if err := writePiece(w, off+int64(at), block[at:end]); err != nil {
			return err
		}
		stats.Bytes += int64(end - at)
		stats.Extents++
		at = end
	}
	return nil
}

func writePiece(w io.Writer, off int64, b []byte) error {
	header := binary.BigEndian.AppendUint64(make([]byte, 0, pieceHeader), uint64(off))
	header = binary.BigEndian.AppendUint32(header, uint32(len(b)))
	if _, err := w.Write(header); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	if len(b) == 0 {
		return nil
	}
	if _, err := w.Write(b); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return nil
}

// Receive makes the file path, which must not exist, from what Send has written, with its holes. Its length must be
// size. It appears under its name only when complete; it is not yet on stable storage. What it holds is for the caller
// to verify (Digest).
func (f *Files) Receive(ctx context.Context, r io.Reader, path string, size int64) (Stats, error) {
	start := time.Now()
	part, err := f.create(path)
	if err != nil {
		return Stats{}, err
	}
	stats, err := f.receive(ctx, r, part, size)
	err = errors.Join(err, part.Close())
	if err == nil {
		err = f.rename(part.Name(), path)
	}
	if err != nil {
		_ = os.Remove(part.Name())
		return Stats{}, err
	}
	stats.Duration = time.Since(start)
	return stats, nil
}

func (f *Files) receive(ctx context.Context, r io.Reader, part *os.File, size int64) (Stats, error) {
	stats := Stats{Method: MethodCopy, Rounds: 1}
	var head [pieceHeader]byte
	if _, err := io.ReadFull(r, head[:8]); err != nil {
		return stats, fmt.Errorf("receive: %w", err)
	}
	if is := binary.BigEndian.Uint64(head[:]); is != uint64(size) {
		return stats, fmt.Errorf("%w: a file of %d bytes, not %d", errStream, is, size)
	}
	if err := f.resize(part, size); err != nil {
		return stats, err
	}
	var buf buffers
	for at := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return stats, err
		}
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return stats, fmt.Errorf("receive: %w", noEOF(err))
		}
		off, length := binary.BigEndian.Uint64(head[:]), int64(binary.BigEndian.Uint32(head[8:]))
		if length == 0 && off == uint64(size) {
			return stats, nil
		}
		if off < uint64(at) || off >= uint64(size) || length == 0 || length > min(maxPiece, size-int64(off)) {
			return stats, fmt.Errorf("%w: a piece of %d bytes at %d", errStream, length, off)
		}
		piece := buf.first(length)
		if _, err := io.ReadFull(r, piece); err != nil {
			return stats, fmt.Errorf("receive: %w", noEOF(err))
		}
		if err := f.write(part, piece, int64(off)); err != nil {
			return stats, err
		}
		at = int64(off) + length
		stats.Bytes += length
		stats.Extents++
	}
}

// noEOF: a stream that ends before it says so has broken off.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

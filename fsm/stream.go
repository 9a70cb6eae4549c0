package fsm

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/hashicorp/go-msgpack/v2/codec"
)

// The stream of a state is streamMagic, then a frame for each row of each table (the table's tag, the length of the
// row as an unsigned varint, the row as MessagePack), tables by tag and rows by key, then tagEnd and the SHA-256 of
// all that came before. Equal states give equal streams.
var streamMagic = []byte("stillframe state 1\n")

// The tags of the tables. A number, once used, keeps its meaning for ever.
const (
	tagEnd byte = iota
	tagOrg
	tagKey
	tagNode
	tagTemplate
	tagSandbox
	tagSnapshot
	tagIntent
	tagRequest
)

// maxRowBytes bounds a row on reading, so that a damaged length cannot take all memory. No row can be near it, since
// each is made from commands of at most MaxCommandBytes.
const maxRowBytes = 16 << 20

// ErrUnknownState says that a stream is whole and has something that this program does not know: a newer one wrote it.
// A node that is given it must stop, for to go on without is to diverge.
var ErrUnknownState = errors.New("unknown state")

// errDamaged says that a stream is not one that WriteTo wrote.
var errDamaged = errors.New("damaged state stream")

// WriteTo writes the whole state. It implements io.WriterTo.
func (s *State) WriteTo(w io.Writer) (int64, error) {
	sw := &streamWriter{w: bufio.NewWriterSize(w, 256<<10), sum: sha256.New(), enc: codec.NewEncoderBytes(nil, handle)}
	sw.write(streamMagic)
	writeTable(sw, tagOrg, s.orgs)
	writeTable(sw, tagKey, s.keys)
	writeTable(sw, tagNode, s.nodes)
	writeTable(sw, tagTemplate, s.templates)
	writeTable(sw, tagSandbox, s.sandboxes)
	writeTable(sw, tagSnapshot, s.snapshots)
	writeTable(sw, tagIntent, s.intents)
	writeTable(sw, tagRequest, s.requests)
	sw.write([]byte{tagEnd})
	sw.write(sw.sum.Sum(nil))
	if sw.err == nil {
		sw.err = sw.w.Flush()
	}
	if sw.err != nil {
		return sw.n, fmt.Errorf("write state: %w", sw.err)
	}
	return sw.n, nil
}

// Digest is the SHA-256 over the canonical encoding of the whole state: equal on two nodes that applied the same log.
// It takes time in proportion to the state.
func (s *State) Digest() [32]byte {
	h := sha256.New()
	if _, err := s.WriteTo(h); err != nil {
		panic(err) // a hash takes every write, and every row is a plain struct that encodes
	}
	return [32]byte(h.Sum(nil))
}

// streamWriter encodes, counts, hashes and keeps the first error.
type streamWriter struct {
	enc       *codec.Encoder
	head, row []byte
	w         *bufio.Writer
	sum       hash.Hash
	n         int64
	err       error
}

func (sw *streamWriter) write(b []byte) {
	if sw.err != nil {
		return
	}
	sw.sum.Write(b)
	n, err := sw.w.Write(b)
	sw.n += int64(n)
	sw.err = err
}

func writeTable[T any](sw *streamWriter, tag byte, t *tree[T]) {
	for v := range t.rows() {
		if sw.err != nil {
			return
		}
		sw.enc.ResetBytes(&sw.row)
		if sw.err = sw.enc.Encode(v); sw.err != nil {
			return
		}
		sw.head = binary.AppendUvarint(append(sw.head[:0], tag), uint64(len(sw.row)))
		sw.write(sw.head)
		sw.write(sw.row)
	}
}

// Read gives the state that WriteTo wrote, to the end of r. On an error, also for a stream that is cut short, changed
// or followed by anything, there is no state: all or nothing.
func Read(r io.Reader) (*State, error) {
	s, err := readStream(r)
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	return s, nil
}

func readStream(r io.Reader) (*State, error) {
	sr := &streamReader{r: bufio.NewReaderSize(r, 256<<10), sum: sha256.New()}
	magic := make([]byte, len(streamMagic))
	if err := sr.fill(magic); err != nil {
		return nil, err
	}
	kind := streamMagic[:len(streamMagic)-len("1\n")]
	if bytes.HasPrefix(magic, kind) && !bytes.Equal(magic, streamMagic) {
		return nil, fmt.Errorf("%w: version %q", ErrUnknownState, bytes.TrimSpace(magic[len(kind):]))
	}
	if !bytes.Equal(magic, streamMagic) {
		return nil, fmt.Errorf("%w: it does not begin as a state of this version", errDamaged)
	}
	l, last := newLoader(), tagEnd
	var unknown error // the first; whether it is a newer program's or damage is known at the end
	for {
		tag, err := sr.ReadByte()
		if err != nil {
			return nil, cutShort(err)
		}
		if tag == tagEnd {
			break
		}
		if tag < last {
			return nil, fmt.Errorf("%w: table %d after table %d", errDamaged, tag, last)
		}
		last = tag
		row, err := sr.row()
		if err != nil {
			return nil, err
		}
		if unknown == nil {
			unknown = l.row(tag, row)
		}
	}
	if err := sr.end(); err != nil {
		return nil, errors.Join(err, unknown)
	}
	if unknown != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnknownState, unknown)
	}
	return l.state()
}

// streamReader hashes what it reads. It implements io.ByteReader for the varints.
type streamReader struct {
	r   *bufio.Reader
	sum hash.Hash
	one [1]byte
	buf []byte
}

func (sr *streamReader) ReadByte() (byte, error) {
	b, err := sr.r.ReadByte()
	if err == nil {
		sr.one[0] = b
		sr.sum.Write(sr.one[:])
	}
	return b, err
}

func (sr *streamReader) fill(b []byte) error {
	if _, err := io.ReadFull(sr.r, b); err != nil {
		return cutShort(err)
	}
	sr.sum.Write(b)
	return nil
}

// row gives the next row, in bytes that are good until the one after.
func (sr *streamReader) row() ([]byte, error) {
	n, err := binary.ReadUvarint(sr)
	if err != nil {
		return nil, cutShort(err)
	}
	if n > maxRowBytes {
		return nil, fmt.Errorf("%w: a row of %d bytes", errDamaged, n)
	}
	if uint64(cap(sr.buf)) < n {
		sr.buf = make([]byte, n)
	}
	row := sr.buf[:n]
	return row, sr.fill(row)
}

// end checks the digest and that nothing follows.
func (sr *streamReader) end() error {
	want := sr.sum.Sum(nil)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(sr.r, got); err != nil {
		return cutShort(err)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%w: its digest does not match", errDamaged)
	}
	switch _, err := sr.r.ReadByte(); {
	case err == nil:
		return fmt.Errorf("%w: something follows its end", errDamaged)
	case !errors.Is(err, io.EOF):
		return err
	}
	return nil
}

// cutShort makes the end of the input an error that says so.
func cutShort(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it is cut short", errDamaged)
	}
	return err
}

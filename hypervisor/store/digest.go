package store

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"

	"github.com/zeebo/xxh3"
)

// Digest gives a checksum of a file's length and contents as "xxh3:" and 32 hex digits. It does not depend on how the
// file is stored: a hole and a page of zeros are the same. It finds damage; it is no defence against a forger.
//
// The file is taken in blocks of 4 MiB. A block's sum is XXH3-128 over its pages of 4 KiB that are not all zero, each
// after its page number (8 bytes, little-endian); the file's sum is XXH3-128 over its length and the sums of the blocks
// that have such pages, each after its block number.
func (f *Files) Digest(ctx context.Context, path string) (string, error) {
	file, err := f.openSource(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = file.Close() }()
	return f.digest(ctx, file)
}

func (f *Files) digest(ctx context.Context, file *os.File) (string, error) {
	info, err := file.Stat()
	if err != nil {
		return "", wrap(err, OpRead, file.Name())
	}
	data, err := f.dataRuns(file, info.Size())
	if err != nil {
		return "", err
	}
	blocks := coverBlocks(data, info.Size())
	sums := make([]*xxh3.Uint128, len(blocks))
	err = eachRun(ctx, blocks, func(i int, block run, buf *buffers) error {
		page := buf.first(block.length)
		if err := f.readFull(file, page, block.off); err != nil {
			return err
		}
		sums[i] = sumBlock(page, block.off)
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("digest: %w", err)
	}
	total := xxh3.New()
	writeNumber(total, info.Size())
	for i, sum := range sums {
		if sum != nil {
			writeNumber(total, blocks[i].off/blockSize)
			b := sum.Bytes()
			_, _ = total.Write(b[:])
		}
	}
	b := total.Sum128().Bytes()
	return "xxh3:" + hex.EncodeToString(b[:]), nil
}

// sumBlock gives nil for a block of zeros.
func sumBlock(block []byte, off int64) *xxh3.Uint128 {
	var h *xxh3.Hasher
	for at := 0; at < len(block); at += pageSize {
		page := block[at:min(at+pageSize, len(block))]
		if isZero(page) {
			continue
		}
		if h == nil {
			h = xxh3.New()
		}
		writeNumber(h, (off+int64(at))/pageSize)
		_, _ = h.Write(page)
	}
	if h == nil {
		return nil
	}
	sum := h.Sum128()
	return &sum
}

func writeNumber(h *xxh3.Hasher, n int64) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], uint64(n))
	_, _ = h.Write(b[:])
}

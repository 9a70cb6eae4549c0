package main

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
)

// The layout of RAM and of the disk. RAM: page 0 holds the counter, the pages after it what the last rounds wrote, the
// page after those the counter again. The disk holds the counter where no file system of a template has anything.
// Slots for files are in both.
const (
	pageSize  = 4096
	ringPages = 63
	ringAt    = pageSize
	tailAt    = ringAt + ringPages*pageSize
	seedAt    = tailAt + pageSize
	ramSlots  = 1 << 20
	diskAt    = 1 << 30 // bytes
	diskSlots = diskAt + pageSize

	slots     = 16
	slotSize  = 16 << 10
	slotPath  = 256
	slotBytes = slotSize - slotPath - 4
	ramUsed   = ramSlots + slots*slotSize
)

var magic = []byte("lightvmm RAM 001")

// counter is the number of the last whole round.
func (v *vm) counter() uint64 { return binary.LittleEndian.Uint64(v.ram[tailAt:]) }

// round writes once to everything, in an order in which no two places agree until it is done.
func (v *vm) round() error {
	n := binary.LittleEndian.Uint64(v.ram[len(magic):]) + 1
	binary.LittleEndian.PutUint64(v.ram[len(magic):], n)
	fillPage(v.ram[ringAt+int(n%ringPages)*pageSize:][:pageSize], n)
	var onDisk [8]byte
	binary.LittleEndian.PutUint64(onDisk[:], n)
	if _, err := v.disk.WriteAt(onDisk[:], diskAt); err != nil {
		return err
	}
	binary.LittleEndian.PutUint64(v.ram[tailAt:], n)
	return nil
}

// fillPage writes a page that can only be of this round.
func fillPage(page []byte, n uint64) {
	x := n*0x9e3779b97f4a7c15 + 1
	for i := 0; i < pageSize; i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(page[i:], x)
	}
}

// whole says what is not of one instant.
func (v *vm) whole() error {
	if string(v.ram[:len(magic)]) != string(magic) {
		return errors.New("the RAM file is not of this program")
	}
	n := binary.LittleEndian.Uint64(v.ram[len(magic):])
	if tail := v.counter(); tail != n {
		return fmt.Errorf("memory was taken while it was written: %d and %d", n, tail)
	}
	var onDisk [8]byte
	if _, err := v.disk.ReadAt(onDisk[:], diskAt); err != nil {
		return err
	}
	if d := binary.LittleEndian.Uint64(onDisk[:]); d != n {
		return fmt.Errorf("memory is of round %d and the disk of round %d", n, d)
	}
	var want [pageSize]byte
	for back := uint64(0); back < ringPages && back < n; back++ {
		page := v.ram[ringAt+int((n-back)%ringPages)*pageSize:][:pageSize]
		if fillPage(want[:], n-back); string(page) != string(want[:]) {
			return fmt.Errorf("the page of round %d is not what it was at round %d", n-back, n)
		}
	}
	return nil
}

// digest is of everything that is used.
func (v *vm) digest() (string, error) {
	h := sha256.New()
	h.Write(v.ram[:ramUsed])
	disk := make([]byte, pageSize+slots*slotSize)
	if _, err := v.disk.ReadAt(disk, diskAt); err != nil {
		return "", err
	}
	h.Write(disk)
	return hex.EncodeToString(h.Sum(nil)), nil
}

// format is what booting is: everything at zero.
func (v *vm) format() error {
	copy(v.ram, magic)
	return v.round()
}

// store is where files are kept: in RAM or on the disk.
type store interface {
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
}

// memory is RAM as a store.
type memory []byte

func (m memory) ReadAt(p []byte, off int64) (int, error)  { return copy(p, m[off:]), nil }
func (m memory) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }

// place gives where files of a path are.
func (v *vm) place(name string) (store, int64) {
	if strings.HasPrefix(name, "/dev/shm/") {
		return memory(v.ram), ramSlots
	}
	return v.disk, diskSlots
}

var (
	errNoFile = fmt.Errorf("no such file: %w", os.ErrNotExist)
	errNoRoom = errors.New("no room for another file")
)

// slot finds the place of a file, or the first that is free.
func slot(s store, at int64, name string) (int64, bool, error) {
	free := int64(-1)
	for i := range int64(slots) {
		raw := make([]byte, slotPath)
		if _, err := s.ReadAt(raw, at+i*slotSize); err != nil {
			return 0, false, err
		}
		switch known := strings.TrimRight(string(raw), "\x00"); {
		case known == name:
			return at + i*slotSize, true, nil
		case known == "" && free < 0:
			free = at + i*slotSize
		}
	}
	if free < 0 {
		return 0, false, errNoRoom
	}
	return free, false, nil
}

func (v *vm) readFile(name string) ([]byte, error) {
	s, at := v.place(name)
	at, found, err := slot(s, at, path.Clean(name))
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, errNoFile
	}
	raw := make([]byte, slotSize-slotPath)
	if _, err := s.ReadAt(raw, at+slotPath); err != nil {
		return nil, err
	}
	n := min(int(binary.LittleEndian.Uint32(raw)), slotBytes)
	return raw[4 : 4+n], nil
}

func (v *vm) writeFile(name string, content []byte) error {
	if len(name) > slotPath || len(content) > slotBytes {
		return fmt.Errorf("a file of %d bytes is too large", len(content))
	}
	s, at := v.place(name)
	at, _, err := slot(s, at, path.Clean(name))
	if err != nil {
		return err
	}
	raw := make([]byte, slotPath+4+len(content))
	copy(raw, path.Clean(name))
	binary.LittleEndian.PutUint32(raw[slotPath:], uint32(len(content)))
	copy(raw[slotPath+4:], content)
	_, err = s.WriteAt(raw, at)
	return err
}

package main

import (
	"fmt"
	"io"
	"os"
)

// File types of the archive's mode field.
const (
	typeDir  = 0o040000
	typeFile = 0o100000
	typeChar = 0o020000
)

// archive writes the "newc" format that the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst
// in its source): a header of 8-digit hexadecimal fields, the name, the contents, both padded to 4 bytes. The first
// error sticks.
type archive struct {
	w     io.Writer
	inode int
	err   error
}

func (a *archive) dir(name string)                       { a.entry(name, typeDir|0o755, 0, 0, nil) }
func (a *archive) file(name string, b []byte, perm uint) { a.entry(name, typeFile|perm, 0, 0, b) }
func (a *archive) charDevice(name string, major, minor uint) {
	a.entry(name, typeChar|0o600, major, minor, nil)
}

func (a *archive) fileFrom(name, source string, perm uint) {
	b, err := os.ReadFile(source) // named by the caller
	if err != nil && a.err == nil {
		a.err = err
		return
	}
	a.file(name, b, perm)
}

func (a *archive) trailer() {
	a.inode = -1 // becomes 0
	a.entry("TRAILER!!!", 0, 0, 0, nil)
}

func (a *archive) entry(name string, mode, major, minor uint, contents []byte) {
	if a.err != nil {
		return
	}
	a.inode++
	// magic, inode, mode, uid, gid, links, mtime, size, device of the file (2), device it is (2), name size, check.
	header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		a.inode, mode, 0, 0, 1, 0, len(contents), 0, 0, major, minor, len(name)+1, 0, name)
	a.padded([]byte(header))
	a.padded(contents)
}

func (a *archive) padded(b []byte) {
	if a.err == nil {
		_, a.err = a.w.Write(b)
	}
	if rest := len(b) % 4; rest != 0 && a.err == nil {
		_, a.err = a.w.Write(make([]byte, 4-rest))
	}
}

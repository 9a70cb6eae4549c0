package vmmtest

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// guestModules are what the guest needs of the Debian cloud kernel's modules, in the order of loading.
var guestModules = []string{
	"virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_blk",
	"failover", "net_failover", "virtio_net", "virtio-rng",
}

// writeInitramfs makes an uncompressed initramfs: init, its console, and the modules found below modulesDir.
func writeInitramfs(path, init, modulesDir string) error {
	program, err := os.ReadFile(init) // a program of ours
	if err != nil {
		return err
	}
	modules, err := findModules(modulesDir)
	if err != nil {
		return err
	}
	var a cpio
	a.add("dev", dirMode, nil, 0, 0)
	a.add("dev/console", charMode, nil, 5, 1)
	a.add("modules", dirMode, nil, 0, 0)
	for i, name := range guestModules {
		content, err := os.ReadFile(modules[name]) // from the images folder
		if err != nil {
			return err
		}
		a.add(fmt.Sprintf("modules/%02d-%s.ko", i, name), fileMode, content, 0, 0)
	}
	a.add("init", programMode, program, 0, 0)
	a.add("TRAILER!!!", 0, nil, 0, 0)
	return os.WriteFile(path, a.buf.Bytes(), 0o600)
}

func findModules(dir string) (map[string]string, error) {
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); ok && err == nil && !d.IsDir() {
			found[name] = path
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, name := range guestModules {
		if found[name] == "" {
			return nil, fmt.Errorf("no module %s.ko below %s: run make setup", name, dir)
		}
	}
	return found, nil
}

const (
	dirMode     = 0o040755
	charMode    = 0o020600
	fileMode    = 0o100644
	programMode = 0o100755
)

// cpio writes an archive in the "newc" format, the one that the kernel unpacks.
type cpio struct {
	buf   bytes.Buffer
	inode int
}

func (c *cpio) add(name string, mode int, content []byte, major, minor int) {
	c.inode++
	fmt.Fprintf(&c.buf, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", c.inode, mode, 0, 0, 1, 0,
		len(content), 0, 0, major, minor, len(name)+1, 0)
	c.buf.WriteString(name + "\x00")
	c.align()
	c.buf.Write(content)
	c.align()
}

func (c *cpio) align() {
	for c.buf.Len()%4 != 0 {
		c.buf.WriteByte(0)
	}
}

// isStatic tells whether a program runs without a dynamic loader, and so can be an init.
func isStatic(path string) (bool, error) {
	f, err := elf.Open(path)
	if err != nil {
		return false, err
	}
	static := true
	for _, p := range f.Progs {
		static = static && p.Type != elf.PT_INTERP
	}
	return static, errors.Join(f.Close())
}

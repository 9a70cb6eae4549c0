package vmmtest

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What host and guest agree on.
const (
	diskSerial = "counter" // the disk that the guest counts on
	diskOffset = 4096      // where on it, in bytes
	echoPort   = 7
	guestIP    = "10.111.7.2"
	hostIP     = "10.111.7.1"

	// heapSize is how much memory the guest fills and keeps checking, in bytes.
	heapSize = 32 << 20
	// heapShare is the part of it that is checked at each tick.
	heapShare = 16
	tickPause = 20 * time.Millisecond
)

// Words of the guest's command line: what it does at a certain tick.
const (
	wordPowerOff = "vmmtest.poweroff="
	wordReset    = "vmmtest.reset="
)

// RunGuest is the guest's init: it prints a line for every tick, which says whether memory and disk are as this guest
// left them a tick ago. It never returns.
func RunGuest() {
	if err := runGuest(); err != nil {
		fmt.Printf("guest failed: %v\n", err)
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

func runGuest() error {
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	if err := loadModules("/modules"); err != nil {
		return err
	}
	g := guest{heap: make([]byte, heapSize)}
	if _, err := rand.Read(g.nonce[:]); err != nil {
		return err
	}
	g.fill()
	if err := g.openDisk(); err != nil {
		return err
	}
	if err := startEcho(); err != nil {
		return err
	}
	words, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	return g.count(number(words, wordPowerOff), number(words, wordReset))
}

// loadModules loads every file of a folder in the order of their names.
func loadModules(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil {
			return fmt.Errorf("load %s: %w", e.Name(), err)
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

// number reads "word<n>" from a command line; 0 if it is not there.
func number(cmdline []byte, word string) uint64 {
	for _, f := range bytes.Fields(cmdline) {
		if v, ok := bytes.CutPrefix(f, []byte(word)); ok {
			n, err := strconv.ParseUint(string(v), 10, 64)
			if err == nil {
				return n
			}
		}
	}
	return 0
}

type guest struct {
	nonce [8]byte
	heap  []byte
	disk  *os.File // nil: none
	block []byte   // one aligned sector
	tick  uint64
}

const pageSize = 4096

// mark is what the page at an offset of the heap holds: it differs from page to page and from guest to guest.
func (g *guest) mark(offset int) uint64 {
	return binary.LittleEndian.Uint64(g.nonce[:]) ^ uint64(offset)*0x9e3779b97f4a7c15 // a mix of bits
}

func (g *guest) fill() {
	for at := 0; at < len(g.heap); at += pageSize {
		binary.LittleEndian.PutUint64(g.heap[at:], g.mark(at))
	}
}

// damaged counts the wrong pages in this tick's share of the heap.
func (g *guest) damaged() int {
	share := len(g.heap) / heapShare
	from := int(g.tick%heapShare) * share // less than heapShare
	wrong := 0
	for at := from; at < from+share; at += pageSize {
		if binary.LittleEndian.Uint64(g.heap[at:]) != g.mark(at) {
			wrong++
		}
	}
	return wrong
}

func (g *guest) openDisk() error {
	serials, err := filepath.Glob("/sys/block/*/serial")
	if err != nil {
		return err
	}
	for _, path := range serials {
		serial, err := os.ReadFile(path)
		if err != nil || strings.TrimSpace(string(serial)) != diskSerial {
			continue
		}
		name := filepath.Base(filepath.Dir(path))
		if g.disk, err = os.OpenFile("/dev/"+name, os.O_RDWR|unix.O_DIRECT|unix.O_SYNC, 0); err != nil {
			return err
		}
		// Direct I/O needs an aligned buffer: a mapping is.
		g.block, err = unix.Mmap(-1, 0, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		return err
	}
	return nil
}

// writeDisk checks that the disk holds the last tick, and writes this one.
func (g *guest) writeDisk() (string, error) {
	if g.disk == nil {
		return "none", nil
	}
	if _, err := g.disk.ReadAt(g.block[:512], diskOffset); err != nil {
		return "", fmt.Errorf("read the disk: %w", err)
	}
	verdict := "ok"
	if found := binary.LittleEndian.Uint64(g.block); g.tick > 0 && found != g.tick-1 {
		verdict = fmt.Sprintf("bad:%d", found)
	}
	binary.LittleEndian.PutUint64(g.block, g.tick)
	if _, err := g.disk.WriteAt(g.block[:512], diskOffset); err != nil {
		return "", fmt.Errorf("write the disk: %w", err)
	}
	return verdict, nil
}

func (g *guest) count(powerOff, reset uint64) error {
	for ; ; g.tick++ {
		disk, err := g.writeDisk()
		if err != nil {
			return err
		}
		memory := "ok"
		if n := g.damaged(); n > 0 {
			memory = fmt.Sprintf("bad:%d", n)
		}
		fmt.Printf("tick %d nonce %x memory %s disk %s\n", g.tick, g.nonce, memory, disk)
		if powerOff > 0 && g.tick == powerOff {
			return nil
		}
		if reset > 0 && g.tick == reset {
			return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
		}
		time.Sleep(tickPause)
	}
}

// startEcho gives the first network device an address and answers datagrams with what they hold.
func startEcho() error {
	devices, err := filepath.Glob("/sys/class/net/eth*/address")
	if err != nil || len(devices) == 0 {
		return err
	}
	mac, err := os.ReadFile(devices[0])
	if err != nil {
		return err
	}
	name := filepath.Base(filepath.Dir(devices[0]))
	if err := setAddress(name, net.ParseIP(guestIP), net.CIDRMask(30, 32)); err != nil {
		return fmt.Errorf("set up %s: %w", name, err)
	}
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{Port: echoPort})
	if err != nil {
		return err
	}
	fmt.Printf("net %s mac %s", name, mac)
	go func() {
		buf := make([]byte, pageSize)
		for {
			n, from, err := conn.ReadFromUDP(buf)
			if err == nil {
				_, _ = conn.WriteToUDP(buf[:n], from)
			}
		}
	}()
	return nil
}

// setAddress uses the old ioctls: they need nothing but a socket.
func setAddress(name string, ip net.IP, mask net.IPMask) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	set := func(request uintptr, value []byte) error {
		var req [40]byte // struct ifreq
		copy(req[:unix.IFNAMSIZ-1], name)
		copy(req[unix.IFNAMSIZ:], value)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(&req)))
		if errno != 0 {
			return errno
		}
		return nil
	}
	address := func(ip []byte) []byte { // struct sockaddr_in
		return slices.Concat([]byte{unix.AF_INET, 0, 0, 0}, ip)
	}
	up := make([]byte, 2)
	binary.NativeEndian.PutUint16(up, unix.IFF_UP|unix.IFF_RUNNING)
	if err := set(unix.SIOCSIFADDR, address(ip.To4())); err != nil {
		return err
	}
	if err := set(unix.SIOCSIFNETMASK, address(mask)); err != nil {
		return err
	}
	return set(unix.SIOCSIFFLAGS, up)
}

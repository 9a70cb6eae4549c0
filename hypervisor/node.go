package hypervisor

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"stillframe/fsm"
)

// Overcommit says how many times over a node promises what it has. RAM is not overcommitted: the guests of a node are
// not trusted to leave theirs unused.
type Overcommit struct {
	VCPU int // virtual CPUs promised per CPU of the host
	Disk int // MiB of virtual disk promised per MiB of the data folder's filesystem; disks are sparse
}

// DefaultOvercommit is for machines that run agents: mostly idle CPUs, mostly empty disks.
var DefaultOvercommit = Overcommit{VCPU: 4, Disk: 10}

// hostReserveMiB is the memory that is never promised to guests: the kernel, the daemon and the VMM processes.
const hostReserveMiB = 1024

// MeasureCapacity tells what this host can promise with its data in dir.
func MeasureCapacity(dir string, over Overcommit) (fsm.Capacity, error) {
	memory, err := memTotalMiB()
	if err != nil {
		return fsm.Capacity{}, err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fsm.Capacity{}, fmt.Errorf("statfs %s: %w", dir, err)
	}
	diskMiB := int64(fs.Blocks) * fs.Bsize >> 20 // block counts fit
	return fsm.Capacity{
		VCPU:      runtime.NumCPU() * over.VCPU,
		MemoryMiB: max(memory-hostReserveMiB, 0),
		DiskMiB:   diskMiB * int64(over.Disk),
	}, nil
}

func memTotalMiB() (int64, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	defer f.Close() //nolint:errcheck // read only
	for sc := bufio.NewScanner(f); sc.Scan(); {
		fields := strings.Fields(sc.Text())
		if len(fields) >= 2 && fields[0] == "MemTotal:" {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			return kib >> 10, err
		}
	}
	return 0, errors.New("no MemTotal in /proc/meminfo")
}

package fsm

import "regexp"

// Bounds of what a command may say. The HTTP layer has narrower ones for clients; these keep the state machine total:
// keys of indexes unambiguous and sums of sizes far from overflowing.
const (
	maxIDBytes   = 128
	maxNameBytes = 255
	maxTime      = Time(1) << 62 // the year 2116
	maxVCPU      = 1 << 20
	maxMiB       = int64(1) << 40
	maxSeconds   = int64(1) << 31
	maxKeyBytes  = 255 // of an idempotency key
	// maxStoredBytes bounds what the files of one snapshot take together.
	maxStoredBytes = int64(1) << 60
	// maxErrorBytes bounds the kept message of an owner's failure; it is cut, not refused: a failure must get through.
	maxErrorBytes = 4 << 10
)

var snapshotName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// maxSnapshotNameBytes is the longest name that snapshotName allows.
const maxSnapshotNameBytes = 64

// problems collects the first thing that is wrong with a command.
type problems struct{ err *Error }

func (p *problems) addf(ok bool, format string, args ...any) {
	if !ok && p.err == nil {
		p.err = Errorf(KindInvalid, format, args...)
	}
}

func (p *problems) now(t Time) {
	p.addf(t > 0 && t <= maxTime, "the command's time is missing or out of range")
}

// id wants a value that is safe as a part of an index key and in a path: letters, digits and ._:- only.
func (p *problems) id(what, id string) {
	p.addf(validID(id), "%s is missing or malformed", what)
}

func (p *problems) name(what, name string) {
	p.addf(validName(name), "%s must have 1 to %d characters and no control characters", what, maxNameBytes)
}

func (p *problems) size(vcpu int, memoryMiB, diskMiB int64) {
	p.addf(vcpu > 0 && vcpu <= maxVCPU, "vcpu is out of range")
	p.addf(memoryMiB > 0 && memoryMiB <= maxMiB, "memory is out of range")
	p.addf(diskMiB > 0 && diskMiB <= maxMiB, "disk is out of range")
}

func (p *problems) timeout(seconds int64) {
	p.addf(seconds > 0 && seconds <= maxSeconds, "timeout is out of range")
}

func (p *problems) request(r Request) {
	if r.Key == "" {
		return
	}
	p.addf(validRequestKey(r.Key), "Idempotency-Key must be 1 to %d visible ASCII characters", maxKeyBytes)
}

func validID(id string) bool {
	if id == "" || len(id) > maxIDBytes {
		return false
	}
	for i := range len(id) {
		c := id[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') &&
			c != '-' && c != '_' && c != '.' && c != ':' {
			return false
		}
	}
	return true
}

func validName(name string) bool {
	if name == "" || len(name) > maxNameBytes {
		return false
	}
	for i := range len(name) {
		if name[i] < 0x20 || name[i] == 0x7f {
			return false
		}
	}
	return true
}

func validRequestKey(key string) bool {
	if key == "" || len(key) > maxKeyBytes {
		return false
	}
	for i := range len(key) {
		if key[i] < 0x21 || key[i] > 0x7e {
			return false
		}
	}
	return true
}

package agent

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"stillframe/hypervisor/guest"
)

// identityState is what the agent remembers of its identity. It is on a tmpfs, readable by root only (it holds the
// sandbox's environment), so that an agent that was started again goes on with it.
type identityState struct {
	SandboxID  string            `json:"sandbox_id"`
	Hostname   string            `json:"hostname"`
	MachineID  string            `json:"machine_id"`
	Generation int               `json:"generation"`
	CA         string            `json:"ca,omitempty"` // digest of the authority that is installed
	Env        map[string]string `json:"env,omitempty"`
}

type identityStore struct {
	dir string

	mu    sync.Mutex // one identity is taken at a time
	state identityState
}

const (
	stateFile  = "state.json"
	publicFile = "identity"
)

func openIdentity(dir string) (*identityStore, error) {
	s := &identityStore{dir: dir}
	b, err := os.ReadFile(filepath.Join(dir, stateFile)) // the agent's own folder
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &s.state); err != nil {
		return nil, fmt.Errorf("%s: %w", stateFile, err)
	}
	return s, nil
}

func (s *identityStore) current() identityState {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.state
	st.Env = maps.Clone(st.Env)
	return st
}

// save writes the state, and the part that everybody in the sandbox may read.
func (s *identityStore) save(st identityState) error {
	b, err := json.Marshal(st)
	if err != nil {
		return err
	}
	if err := replaceFile(filepath.Join(s.dir, stateFile), b, 0o600); err != nil {
		return err
	}
	st.Env = nil
	if b, err = json.Marshal(st); err != nil {
		return err
	}
	return replaceFile(filepath.Join(s.dir, publicFile), append(b, '\n'), 0o644)
}

var label = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// setIdentity makes the machine the sandbox of the request. The order matters: random numbers first, as everything
// that happens afterwards may use them. Each step can be repeated, so a call that failed half way is simply made again.
func (s *Server) setIdentity(_ context.Context, id guest.Identity) (guest.IdentityResult, error) {
	if err := checkIdentity(id); err != nil {
		return guest.IdentityResult{}, err
	}
	s.identity.mu.Lock()
	defer s.identity.mu.Unlock()
	if err := reseed(id.Seed); err != nil {
		return guest.IdentityResult{}, fmt.Errorf("reseed the random generator: %w", err)
	}
	step, err := setClock(id.UnixNano)
	if err != nil {
		return guest.IdentityResult{}, fmt.Errorf("set the clock: %w", err)
	}
	st := s.identity.state
	changed := st.SandboxID != id.SandboxID
	if changed {
		st.SandboxID, st.Hostname, st.MachineID = id.SandboxID, id.SandboxID, machineID(id.SandboxID)
		st.Generation++
	}
	if id.Env != nil {
		st.Env = maps.Clone(id.Env)
	}
	if err := rename(st); err != nil {
		return guest.IdentityResult{}, err
	}
	// A restored guest has its source's authority: what it has made of it since is its own business.
	if id.CAPEM != "" && st.CA != caDigest(id.CAPEM) {
		if err := s.trust.install(id.CAPEM); err != nil {
			return guest.IdentityResult{}, fmt.Errorf("trust the sandbox's authority: %w", err)
		}
		st.CA = caDigest(id.CAPEM)
	}
	if err := s.identity.save(st); err != nil {
		return guest.IdentityResult{}, err
	}
	s.identity.state = st
	return guest.IdentityResult{
		SandboxID: st.SandboxID, Hostname: st.Hostname, MachineID: st.MachineID, Changed: changed,
		ClockStep: int64(step), SeedBytes: len(id.Seed), Reseeded: true, Generation: st.Generation,
		CA: st.CA,
	}, nil
}

func checkIdentity(id guest.Identity) error {
	if !label.MatchString(id.SandboxID) {
		return guest.Errorf(guest.CodeInvalid, "sandbox id %q is not a DNS label", id.SandboxID)
	}
	if len(id.Seed) != guest.SeedSize {
		return guest.Errorf(guest.CodeInvalid, "seed has %d bytes, not %d", len(id.Seed), guest.SeedSize)
	}
	if id.UnixNano <= 0 {
		return guest.Errorf(guest.CodeInvalid, "no time")
	}
	for k, v := range id.Env {
		if err := validEnv(k, v); err != nil {
			return err
		}
	}
	if id.CAPEM == "" {
		return nil
	}
	_, err := checkCA(id.CAPEM)
	return err
}

// machineID derives the 32 hexadecimal digits of machine-id(5) from the sandbox's id, so that it is as unique as that
// and the same whenever it is asked for.
func machineID(sandboxID string) string {
	sum := sha256.Sum256([]byte("stillframe machine id\n" + sandboxID))
	return hex.EncodeToString(sum[:16])
}

// rename gives the machine its name and id. Files are written only where they differ, to keep the sandbox's disk still.
func rename(st identityState) error {
	if err := unix.Sethostname([]byte(st.Hostname)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	for path, contents := range map[string]string{
		"/etc/hostname":   st.Hostname + "\n",
		"/etc/machine-id": st.MachineID + "\n",
		"/etc/hosts":      "127.0.0.1 localhost\n127.0.1.1 " + st.Hostname + "\n",
	} {
		if have, err := os.ReadFile(path); err == nil && string(have) == contents { // fixed paths
			continue
		}
		if err := replaceFile(path, []byte(contents), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// setClock sets the wall clock and says by how much it moved.
func setClock(unixNano int64) (time.Duration, error) {
	step := time.Duration(unixNano - time.Now().UnixNano())
	ts := unix.NsecToTimespec(unixNano)
	return step, unix.ClockSettime(unix.CLOCK_REALTIME, &ts)
}

// Requests of the random device, from linux/random.h; golang.org/x/sys does not have them.
const (
	rndAddEntropy = 0x40085203 // RNDADDENTROPY: _IOW('R', 3, int[2])
	rndReseedCRNG = 0x5207     // RNDRESEEDCRNG: _IO('R', 7)
)

// reseed mixes the seed into the kernel's generator, credited in full, and makes the generator take it into use now:
// otherwise two copies of one snapshot would give the same bytes until the next reseeding, up to a minute later.
func reseed(seed []byte) error {
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // nothing is buffered
	// struct rand_pool_info: entropy in bits, size in bytes, data.
	info := make([]byte, 8+len(seed))
	binary.NativeEndian.PutUint32(info, uint32(8*len(seed)))   // SeedSize
	binary.NativeEndian.PutUint32(info[4:], uint32(len(seed))) // SeedSize
	copy(info[8:], seed)
	if err := ioctl(f.Fd(), rndAddEntropy, uintptr(unsafe.Pointer(&info[0]))); err != nil { // ioctl
		return fmt.Errorf("add entropy: %w", err)
	}
	clear(info)
	if err := ioctl(f.Fd(), rndReseedCRNG, 0); err != nil {
		return fmt.Errorf("reseed: %w", err)
	}
	return nil
}

func ioctl(fd, request, arg uintptr) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, request, arg); errno != 0 {
		return errno
	}
	return nil
}

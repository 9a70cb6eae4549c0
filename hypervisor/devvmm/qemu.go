package devvmm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// qemu is a running QEMU process with one VM.
type qemu struct {
	cmd    *exec.Cmd
	qmp    *qmp
	ram    *ram
	device *os.File // memfd that QEMU writes its device state to
	output *tail
	exited chan struct{}
	wanted atomic.Bool // its end was asked for
}

// Descriptors of the child, in the order of ExtraFiles.
const (
	childQMP      = 3
	childDevice   = 4
	childRAM      = 5
	childIncoming = 6
)

// loadPoll is the interval at which QEMU is asked whether it has loaded the device state.
const loadPoll = time.Millisecond

// startQEMU starts a stopped VM, new or with a device state. It takes over r, whatever happens.
func startQEMU(cfg *vmConfig, r *ram, incoming []byte, events func(qmpEvent), log *slog.Logger) (*qemu, error) {
	q := &qemu{ram: r, output: &tail{log: log}, exited: make(chan struct{})}
	err := q.launch(cfg, incoming, events)
	if err == nil && incoming != nil {
		err = q.awaitLoaded()
	}
	if err == nil {
		return q, nil
	}
	err = q.explain(err)
	return nil, errors.Join(err, q.kill())
}

func (q *qemu) launch(cfg *vmConfig, incoming []byte, events func(qmpEvent)) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("QMP: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "qmp"), os.NewFile(uintptr(pair[1]), "qmp")
	defer func() { _ = ours.Close() }() // net.FileConn has a copy
	err = q.spawnWith(cfg, theirs, incoming)
	// Our copy of its end must be closed before we talk: only then does QEMU's end close the connection.
	if err = errors.Join(err, theirs.Close()); err != nil {
		return err
	}
	conn, err := net.FileConn(ours)
	if err != nil {
		return fmt.Errorf("QMP: %w", err)
	}
	q.qmp, err = newQMP(conn, events)
	return err
}

// spawnWith starts QEMU with the descriptors it needs.
func (q *qemu) spawnWith(cfg *vmConfig, control *os.File, incoming []byte) error {
	var err error
	if q.device, err = memfd("device-state", nil); err != nil {
		return err
	}
	files := []*os.File{control, q.device, q.ram.file}
	if incoming != nil {
		in, err := memfd("incoming", incoming)
		if err != nil {
			return err
		}
		defer func() { _ = in.Close() }()
		files = append(files, in)
	}
	return q.spawn(arguments(cfg, q.ram, incoming != nil), files)
}

// spawn starts the child from a goroutine that keeps its thread until the child has ended: the kernel kills the child
// when that thread ends, so it may end with this process only.
func (q *qemu) spawn(args []string, files []*os.File) error {
	binary, err := exec.LookPath(qemuBinary())
	if err != nil {
		return err
	}
	q.cmd = exec.Command("/proc/self/exe", append([]string{launchArg, binary}, args...)...)
	q.cmd.ExtraFiles = files
	q.cmd.Stdout, q.cmd.Stderr = os.Stdout, q.output
	q.cmd.WaitDelay = time.Second
	q.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := q.cmd.Start()
		started <- err
		if err == nil {
			_ = q.cmd.Wait() // how it ended is in ProcessState
			close(q.exited)
		}
	}()
	if err := <-started; err != nil {
		q.cmd = nil
		return err
	}
	return nil
}

// awaitLoaded waits until the device state is loaded. QEMU ends by itself where it cannot load it.
func (q *qemu) awaitLoaded() error {
	ctx, cancel := context.WithTimeout(context.Background(), qmpTimeout)
	defer cancel()
	tick := time.NewTicker(loadPoll)
	defer tick.Stop()
	for {
		var status struct {
			Status string `json:"status"`
		}
		if err := q.qmp.run("query-status", nil, &status); err != nil {
			return err
		}
		if status.Status != "inmigrate" {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.New("QEMU does not finish loading the device state")
		case <-tick.C:
		}
	}
}

// explain adds what QEMU said to an error of talking to it.
func (q *qemu) explain(err error) error {
	if q.cmd == nil {
		return err
	}
	// The reason is written before QEMU ends, and its end is why it does not answer: give both the time to arrive.
	select {
	case <-q.exited:
	case <-time.After(time.Second):
	}
	if said := q.output.String(); said != "" {
		return fmt.Errorf("%w: %s", err, said)
	}
	return err
}

func (q *qemu) pid() int { return q.cmd.Process.Pid }

// kill ends QEMU, which holds nothing that is not in files, and returns when it has gone.
func (q *qemu) kill() error {
	q.wanted.Store(true)
	var errs []error
	if q.cmd != nil {
		if err := q.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, err)
		}
		select {
		case <-q.exited:
		case <-time.After(qmpTimeout):
			errs = append(errs, errors.New("QEMU does not end"))
		}
	}
	if q.qmp != nil {
		_ = q.qmp.close()
	}
	if q.device != nil {
		errs = append(errs, q.device.Close())
	}
	return errors.Join(append(errs, q.ram.close())...)
}

// status says how it ended; only after exited.
func (q *qemu) status() string { return q.cmd.ProcessState.String() }

// failure is nil where the guest powered off.
func (q *qemu) failure() error {
	if q.cmd.ProcessState.Success() {
		return nil
	}
	return fmt.Errorf("QEMU ended with %s: %s", q.status(), q.output.String())
}

// saveDevices takes the device state of the stopped VM.
func (q *qemu) saveDevices() ([]byte, error) {
	// live false: QEMU keeps the disks instead of giving them up to another process.
	args := map[string]any{"filename": fmt.Sprintf("/proc/self/fd/%d", childDevice), "live": false}
	if err := q.qmp.run("xen-save-devices-state", args, nil); err != nil {
		return nil, err
	}
	st, err := q.device.Stat()
	if err != nil {
		return nil, err
	}
	state := make([]byte, st.Size())
	if _, err := q.device.ReadAt(state, 0); err != nil {
		return nil, fmt.Errorf("read the device state: %w", err)
	}
	return state, nil
}

// counters gives what disks have read and written, by disk id.
func (q *qemu) counters() (map[string]map[string]uint64, error) {
	var stats []struct {
		Qdev  string                     `json:"qdev"`
		Stats map[string]json.RawMessage `json:"stats"`
	}
	if err := q.qmp.run("query-blockstats", nil, &stats); err != nil {
		return nil, err
	}
	names := map[string]string{
		"rd_bytes": "read_bytes", "wr_bytes": "write_bytes", "rd_operations": "read_ops", "wr_operations": "write_ops",
	}
	counters := map[string]map[string]uint64{}
	for _, s := range stats {
		device := map[string]uint64{}
		for theirs, name := range names {
			var v uint64
			if json.Unmarshal(s.Stats[theirs], &v) == nil {
				device[name] = v
			}
		}
		counters[deviceID(s.Qdev)] = device
	}
	return counters, nil
}

func memfd(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	// Written at an offset, so that the reader, who shares the position, starts at the beginning.
	if _, err := f.WriteAt(content, 0); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// tail keeps the end of what QEMU says and passes it on to the log.
type tail struct {
	log *slog.Logger

	mu   sync.Mutex
	text string
}

const tailSize = 2048

func (t *tail) Write(p []byte) (int, error) {
	t.log.Warn("QEMU says", "text", strings.TrimSpace(string(p)))
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text += string(p)
	t.text = t.text[max(0, len(t.text)-tailSize):]
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(t.text)
}

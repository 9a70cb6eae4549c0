//go:build linux && amd64

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"stillframe/deploy/lab/job"
)

const (
	firstExtraFD = 3       // where os/exec puts ExtraFiles
	consoleTail  = 8 << 10 // bytes of console shown when the machine fails
)

// bootTries is how often the machine is booted until it starts the command. Emulation can fail early by no fault of the
// job: about one boot in fifty ended in an assertion of QEMU 7.2's when the host was crowded.
const bootTries = 3

// run boots the machine, follows it to its end and gives the exit code of labrun. The error says what went wrong in
// the lab; a command that failed is no error. A machine that dies before its command starts is booted again.
func run(ctx context.Context, o options) (int, error) {
	// The kernel ties a parent-death signal to the thread that forked.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for try := 1; ; try++ {
		m, err := newMachine(ctx, o)
		if err != nil {
			return exitLab, err
		}
		begin := time.Now()
		if err := m.start(); err != nil {
			return exitLab, err
		}
		err = m.wait()
		if o.verbose {
			fmt.Fprintf(os.Stderr, "labrun: %.1f s from start to end\n", time.Since(begin).Seconds())
		}
		code, verdict := m.verdict(ctx, err)
		if !m.diedEarly() || ctx.Err() != nil || try == bootTries {
			return code, verdict
		}
		fmt.Fprintf(os.Stderr, "labrun: booting again: %v\n", verdict)
	}
}

// machine is one QEMU process with the streams that come out of it.
type machine struct {
	options options
	qemu    *exec.Cmd
	readers sync.WaitGroup
	given   []*os.File // descriptors that QEMU got and labrun no longer needs once it runs
	console *tail

	mu         sync.Mutex // guards what the readers below set
	started    bool       // the command may have run
	exit       *int       // the command's exit code, once reported
	failure    string     // why labinit gave up
	collectErr error
}

func newMachine(ctx context.Context, o options) (*machine, error) {
	m := &machine{options: o, console: &tail{}}
	// CommandContext kills by the process handle, so never another process that got the same id.
	m.qemu = exec.CommandContext(ctx, "qemu-system-x86_64", m.baseArguments()...)
	m.qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	m.qemu.Stderr = os.Stderr
	err := m.addDevices(ctx)
	if err != nil {
		m.closeGiven()
		return nil, err
	}
	return m, nil
}

func (m *machine) baseArguments() []string {
	o := m.options
	// No five-level paging: one level less to walk, and
	// the nested page tables of KVM guests follow the machine's own. A panic reboots, and -no-reboot makes that an end.
	kernel := "console=ttyS0 quiet loglevel=4 panic=-1 nokaslr mitigations=off no5lvl random.trust_cpu=on " +
		clockWords(o.tscKHz)
	return []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,+svm",
		"-smp", strconv.Itoa(o.cpus), "-m", strconv.Itoa(o.memory),
		"-kernel", filepath.Join(o.dir, "vmlinuz"), "-initrd", filepath.Join(o.dir, "initramfs.img"), "-append", kernel,
		"-drive", "if=none,id=root,format=raw,snapshot=on,file=" + filepath.Join(o.dir, "rootfs.ext4"),
		"-device", "virtio-blk-pci,drive=root,serial=" + job.RootDisk,
		"-device", "virtio-serial-pci",
	}
}

func (m *machine) addDevices(ctx context.Context) error {
	disk, err := jobDisk(ctx, m.options)
	if err != nil {
		return err
	}
	m.addDisk(job.JobDisk, disk, "read-only=on")
	if m.options.disk > 0 {
		scratch, err := scratchFile(int64(m.options.disk) << 20)
		if err != nil {
			return fmt.Errorf("make the scratch disk: %w", err)
		}
		m.addDisk(job.ScratchDisk, scratch, "read-only=off,cache.direct=off,cache.no-flush=on,discard=unmap")
	}
	return m.addStreams()
}

// scratchFile makes an empty sparse file that has no name.
func scratchFile(size int64) (*os.File, error) {
	f, err := os.CreateTemp("", "stillframe-lab-*")
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.Remove(f.Name()), f.Truncate(size)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// give passes a descriptor to QEMU and gives the path under which its options know it.
func (m *machine) give(f *os.File) string {
	set := len(m.qemu.ExtraFiles)
	m.qemu.ExtraFiles = append(m.qemu.ExtraFiles, f)
	m.given = append(m.given, f)
	m.qemu.Args = append(m.qemu.Args, "-add-fd", fmt.Sprintf("fd=%d,set=%d", firstExtraFD+set, set))
	return fmt.Sprintf("/dev/fdset/%d", set)
}

func (m *machine) addDisk(serial string, f *os.File, how string) {
	m.qemu.Args = append(m.qemu.Args,
		"-blockdev", fmt.Sprintf("driver=raw,node-name=%s,%s,file.driver=file,file.filename=%s", serial, how, m.give(f)),
		"-device", fmt.Sprintf("virtio-blk-pci,drive=%s,serial=%s", serial, serial))
}

// addStreams connects the ports and the console. Every stream has one reader, which ends when QEMU has ended.
func (m *machine) addStreams() error {
	copyTo := func(w io.Writer) func(io.Reader) {
		return func(r io.Reader) { _, _ = io.Copy(w, r) }
	}
	console := io.Writer(m.console)
	if m.options.console != "" {
		file, err := os.Create(m.options.console)
		if err != nil {
			return err
		}
		m.given = append(m.given, file)
		console = io.MultiWriter(m.console, file)
	}
	streams := []struct {
		name string
		read func(io.Reader)
	}{
		{"console", copyTo(console)},
		{job.StdoutPort, copyTo(os.Stdout)},
		{job.StderrPort, copyTo(os.Stderr)},
		{job.ControlPort, m.readReports},
		{job.CollectPort, m.unpack},
	}
	for _, s := range streams {
		if err := m.addStream(s.name, s.read); err != nil {
			return fmt.Errorf("connect %s: %w", s.name, err)
		}
	}
	return nil
}

func (m *machine) addStream(name string, read func(io.Reader)) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	id := strings.ReplaceAll(name, ".", "-")
	// append: QEMU would truncate the file otherwise, which a pipe refuses.
	m.qemu.Args = append(m.qemu.Args, "-chardev", fmt.Sprintf("file,id=%s,append=on,path=%s", id, m.give(w)))
	if name == "console" {
		m.qemu.Args = append(m.qemu.Args, "-serial", "chardev:"+id)
	} else {
		m.qemu.Args = append(m.qemu.Args, "-device", fmt.Sprintf("virtserialport,chardev=%s,name=%s", id, name))
	}
	m.readers.Go(func() {
		defer r.Close()
		read(r)
		_, _ = io.Copy(io.Discard, r) // a reader that gave up must not block the machine
	})
	return nil
}

func (m *machine) start() error {
	err := m.qemu.Start()
	if err != nil {
		m.closeGiven()
		m.readers.Wait()
		return fmt.Errorf("start the machine: %w", err)
	}
	for _, f := range m.qemu.ExtraFiles {
		_ = f.Close()
	}
	return nil
}

func (m *machine) wait() error {
	err := m.qemu.Wait()
	m.readers.Wait()
	m.closeGiven()
	return err
}

func (m *machine) closeGiven() {
	for _, f := range m.given {
		_ = f.Close()
	}
}

func (m *machine) readReports(r io.Reader) {
	for decoder := json.NewDecoder(r); ; {
		var report job.Report
		if decoder.Decode(&report) != nil {
			return // the machine has ended; verdict knows what is missing
		}
		m.note(report)
	}
}

func (m *machine) note(report job.Report) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case report.Exit != nil:
		m.exit = report.Exit
	case report.Failure != "":
		m.failure = report.Failure
	case report.Started != nil:
		m.started = true
		if !m.options.verbose {
			return
		}
		s := report.Started
		fmt.Fprintf(os.Stderr, "labrun: up with kernel %s, kvm=%v, after %.1f s of its own time\n", s.Kernel, s.KVM,
			s.Uptime)
	}
}

// diedEarly tells a machine that ended without having started the command or said why it could not.
func (m *machine) diedEarly() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.started && m.exit == nil && m.failure == ""
}

func (m *machine) unpack(r io.Reader) {
	first := make([]byte, 512)
	n, err := io.ReadFull(r, first)
	if n == 0 {
		return // nothing was collected
	}
	if err == nil {
		err = untar(io.MultiReader(strings.NewReader(string(first)), r), m.options.collect)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.collectErr = err
}

func untar(r io.Reader, into string) error {
	if err := os.MkdirAll(into, 0o755); err != nil {
		return err
	}
	tar := exec.Command("tar", "--extract", "--sparse", "--no-same-owner", "--directory", into)
	tar.Stdin = r
	var complaint strings.Builder
	tar.Stderr = &complaint
	if err := tar.Run(); err != nil {
		return fmt.Errorf("unpack into %s: %w: %s", into, err, complaint.String())
	}
	return nil
}

// verdict turns what came out of the machine into labrun's exit code.
func (m *machine) verdict(ctx context.Context, qemuErr error) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.exit != nil && m.collectErr != nil:
		return exitLab, m.collectErr
	case m.exit != nil:
		return *m.exit, nil
	case m.failure != "":
		return exitLab, errors.New(m.failure)
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return job.ExitTimeout, fmt.Errorf("%s are over; the console ends with:\n%s", m.options.timeout, m.console)
	case ctx.Err() != nil:
		return exitLab, errors.New("interrupted")
	default:
		return exitLab, fmt.Errorf("the machine ended without a word (%v); its console ends with:\n%s", qemuErr,
			m.console)
	}
}

// tail keeps the end of what is written to it.
type tail struct {
	mu   sync.Mutex
	kept []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, p...)
	if over := len(t.kept) - consoleTail; over > 0 {
		t.kept = append(t.kept[:0], t.kept[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.kept)
}

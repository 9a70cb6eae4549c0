package hypervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"stillframe/fsm"
	"stillframe/hypervisor/guest"
	"stillframe/hypervisor/guest/clock"
	"stillframe/hypervisor/vmm"
)

// machine is a VM of this node while its process runs: what the owner needs to reach it.
type machine struct {
	id     fsm.SandboxID
	files  machineFiles
	egress *egress
	proc   *vmm.Process
	api    *vmm.Client
	guest  *guest.Client
	clock  net.PacketConn // of the clock that the guest asks

	once     sync.Once
	detached chan struct{} // closed when the owner no longer watches: the machine is being ended, or the daemon is
}

// machineFiles are the paths in a sandbox's folder.
type machineFiles struct{ dir string }

func (f machineFiles) runtime() string { return filepath.Join(f.dir, "runtime.json") }
func (f machineFiles) ram() string     { return filepath.Join(f.dir, "ram") }
func (f machineFiles) disk() string    { return filepath.Join(f.dir, "disk") }
func (f machineFiles) socket() string  { return filepath.Join(f.dir, "vmm.sock") }
func (f machineFiles) log() string     { return filepath.Join(f.dir, "vmm.log") }
func (f machineFiles) output() string  { return filepath.Join(f.dir, "vmm.out") }
func (f machineFiles) serial() string  { return filepath.Join(f.dir, "serial.log") }
func (f machineFiles) events() string  { return filepath.Join(f.dir, "events.json") }
func (f machineFiles) born() string    { return filepath.Join(f.dir, "born") }    // there once it has its identity
func (f machineFiles) saved() string   { return filepath.Join(f.dir, "restore") } // what the VMM restores from

// snapshotFiles are the paths in a snapshot's folder.
type snapshotFiles struct{ dir string }

func (f snapshotFiles) ram() string      { return filepath.Join(f.dir, "ram") }
func (f snapshotFiles) disk() string     { return filepath.Join(f.dir, "disk") }
func (f snapshotFiles) config() string   { return filepath.Join(f.dir, "config.json") }
func (f snapshotFiles) state() string    { return filepath.Join(f.dir, "state.json") }
func (f snapshotFiles) manifest() string { return filepath.Join(f.dir, "manifest.json") }

// dataFiles are the files of a snapshot that its manifest lists.
var dataFiles = []string{"ram", "disk", vmm.ConfigFile, vmm.StateFile}

// Names inside the VM's configuration. A snapshot refers to its devices by these, so they never change.
const (
	baseDisk    = "base"
	overlayDisk = "overlay"
	netDevice   = "net0"
	ramZone     = "ram"
	tapName     = "tap0"
)

func namespaceName(id fsm.SandboxID) string { return "sf-" + string(id) }

// startVMM starts the VMM process of a sandbox in the sandbox's namespace and stores how to find it again.
func (o *Owner) startVMM(ctx context.Context, id fsm.SandboxID, e *egress) (*machine, error) {
	files := machineFiles{o.sandboxDir(id)}
	proc, err := vmm.Start(ctx, vmm.StartOptions{
		Binary:     o.cfg.VMM.Binary,
		Dir:        files.dir,
		SocketPath: files.socket(),
		LogPath:    files.log(),
		EventPath:  files.events(),
		Output:     files.output(),
		NetNS:      e.ns.Path(),
	})
	if err != nil {
		return nil, err
	}
	if err := writeRuntime(files, proc.Record()); err != nil {
		return nil, errors.Join(err, proc.Kill(ctx), proc.Close())
	}
	return o.attach(id, e, proc)
}

// attach makes the machine of a process known to the owner: its clock is served, its end is watched.
func (o *Owner) attach(id fsm.SandboxID, e *egress, proc *vmm.Process) (*machine, error) {
	m := &machine{
		id:       id,
		files:    machineFiles{o.sandboxDir(id)},
		egress:   e,
		proc:     proc,
		api:      proc.Client(),
		detached: make(chan struct{}),
	}
	m.guest = guest.NewClient(m.dial)
	err := e.ns.Do(func() (err error) {
		m.clock, err = (&net.ListenConfig{}).ListenPacket(context.Background(), "udp4",
			net.JoinHostPort(guest.HostIP, strconv.Itoa(guest.ClockPort)))
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("serve the guest's clock: %w", err), proc.Close())
	}
	o.mu.Lock()
	o.machines[id] = m
	if o.stopping {
		m.detach() // made by an intent that the shutdown lets finish: nobody is left to watch it
	}
	o.metrics.machines.Set(float64(len(o.machines)))
	o.mu.Unlock()
	o.workers.Go(func() { o.watch(m) })
	return m, nil
}

// dial connects to the guest. Nobody in the namespace would say that the VM is gone, so the connection is closed when
// it is, and a call under way ends at once instead of at its own deadline.
func (m *machine) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := m.egress.ns.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	g := &guestConn{Conn: conn, closed: make(chan struct{})}
	go func() {
		select {
		case <-m.proc.Exited():
		case <-m.detached:
		case <-g.closed:
		}
		_ = conn.Close() // closing twice does nothing
	}()
	return g, nil
}

// guestConn tells the goroutine that watches over it when it is closed.
type guestConn struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
}

func (g *guestConn) Close() error {
	g.once.Do(func() { close(g.closed) })
	return g.Conn.Close()
}

// detach ends the watch over a machine; the process goes on. It may be called more than once.
func (m *machine) detach() { m.once.Do(func() { close(m.detached) }) }

// watch waits for the end of a VMM that nobody asked for, and reports it.
func (o *Owner) watch(m *machine) {
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- clock.Serve(ctx, m.clock) }()
	defer func() {
		cancel()
		if err := errors.Join(<-served, m.proc.Close()); err != nil {
			o.log.Warn("letting go of a VM", "sandbox", m.id, "error", err)
		}
	}()
	select {
	case <-m.detached:
		return
	case <-m.proc.Exited():
	}
	o.forget(m)
	reason := "its VMM ended: " + m.proc.ExitStatus()
	o.log.Error("VM lost", "sandbox", m.id, "reason", reason)
	o.reportStopped(m.id, reason)
}

// forget takes a machine off the books, unless another has taken its place.
func (o *Owner) forget(m *machine) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.machines[m.id] == m {
		delete(o.machines, m.id)
	}
	o.metrics.machines.Set(float64(len(o.machines)))
}

// reportStopped tells the log that a sandbox lost its VM, once no other intent on it is open: an open one meets the
// loss itself and says so in its outcome, unless an outcome of before the loss was under way. It goes on for as long as
// the daemon lives, for a cluster without a leader may take its time, and nobody else will ever say it.
func (o *Owner) reportStopped(id fsm.SandboxID, reason string) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-o.quit:
			cancel() // the next start finds the loss
		case <-ctx.Done():
		}
	}()
	for ctx.Err() == nil {
		changed := o.cfg.Log.Changed()
		sb, ok := o.cfg.Log.State().Sandbox(id)
		if !ok || sb.State == fsm.SandboxStopped || sb.State == fsm.SandboxDeleting {
			return
		}
		if sb.State == fsm.SandboxRunning && o.propose(ctx, stopped(sb, reason)) == nil {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// machine gives the machine of a sandbox that runs on this node.
func (o *Owner) machine(id fsm.SandboxID) (*machine, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if m, ok := o.machines[id]; ok {
		return m, nil
	}
	return nil, fsm.Errorf(fsm.KindUnavailable, "sandbox %s has no VM on this node now", id)
}

// untilExit gives a context that also ends when the machine's VMM does, so that nothing waits for a dead VM.
func (m *machine) untilExit(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := make(chan struct{})
	go func() {
		select {
		case <-m.proc.Exited():
			cancel(fmt.Errorf("the VMM ended: %s", m.proc.ExitStatus()))
		case <-stop:
		}
	}()
	return ctx, func() { close(stop); cancel(context.Canceled) }
}

// destroy removes everything of a sandbox from this node: process, namespace, folder. It finds what there is from the
// folder alone, may be interrupted anywhere, and may be repeated.
func (o *Owner) destroy(ctx context.Context, id fsm.SandboxID) error {
	if err := o.stopVMM(ctx, id); err != nil {
		return err
	}
	if err := o.destroyNetwork(ctx, id); err != nil {
		return err
	}
	return os.RemoveAll(o.sandboxDir(id))
}

// stopVMM ends a sandbox's VMM, known or not.
func (o *Owner) stopVMM(ctx context.Context, id fsm.SandboxID) error {
	o.mu.Lock()
	m := o.machines[id]
	o.mu.Unlock()
	if m != nil {
		m.detach()
		o.forget(m)
		// The watcher closes its descriptor, so the process is taken up anew below.
	}
	rec, err := findVMM(machineFiles{o.sandboxDir(id)})
	if errors.Is(err, vmm.ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	proc, err := vmm.Adopt(rec)
	if errors.Is(err, vmm.ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(proc.Kill(ctx), proc.Close())
}

// findVMM tells which process is a sandbox's VMM: the stored one, or, where the daemon died before it stored it, the
// one that serves the sandbox's socket.
func findVMM(files machineFiles) (vmm.Record, error) {
	raw, err := os.ReadFile(files.runtime())
	var rec vmm.Record
	if err == nil {
		err = json.Unmarshal(raw, &rec)
	}
	if err != nil {
		return vmm.Find(files.socket())
	}
	return rec, nil
}

// writeRuntime stores a process record whole or not at all. It need not survive a power cut: nor does the process.
func writeRuntime(files machineFiles, rec vmm.Record) error {
	raw, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	tmp := files.runtime() + ".tmp"
	if err := os.WriteFile(tmp, raw, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, files.runtime())
}

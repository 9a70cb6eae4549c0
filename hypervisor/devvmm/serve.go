package devvmm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Options are the program's arguments.
type Options struct {
	APISocket    string // "path=…", "fd=…" or a plain path; required
	EventMonitor string // "path=…", "fd=…" or empty
	Logger       *slog.Logger
}

// shutdownGrace is how long the last reply may take to be read.
const shutdownGrace = 2 * time.Second

// Serve answers requests until ctx ends (a signal), the API is told to shut down, or the guest ends. Nothing of the VM
// is left when it returns. An error says that QEMU crashed or that the program could not start.
func Serve(ctx context.Context, o Options) error {
	monitor, closeMonitor, err := openMonitor(o)
	if err != nil {
		return err
	}
	defer closeMonitor()
	listener, release, err := listen(o.APISocket)
	if err != nil {
		return err
	}
	defer release()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	version := NewVersion()
	go version.prepare()
	a := &api{
		version: version, log: o.Logger,
		stop: func() { cancel(nil) },
		machine: &machine{
			events: monitor, log: o.Logger, version: version,
			ended: func(err error) { cancel(err) },
		},
	}
	monitor.emit("vmm", "starting")
	server := &http.Server{Handler: a.handler(), ReadHeaderTimeout: shutdownGrace}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err = <-served:
	case <-ctx.Done():
		err = a.end(server, context.Cause(ctx))
		if failed := <-served; !errors.Is(failed, http.ErrServerClosed) {
			err = errors.Join(err, failed)
		}
	}
	return err
}

// end finishes the reply under way, closes the API and takes down the VM.
func (a *api) end(server *http.Server, cause error) error {
	grace, cancel := context.WithTimeout(context.Background(), shutdownGrace)
	defer cancel()
	err := server.Shutdown(grace)
	if errors.Is(err, context.DeadlineExceeded) {
		err = server.Close()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	err = errors.Join(err, a.machine.delete())
	if cause != nil && !errors.Is(cause, context.Canceled) {
		err = errors.Join(cause, err)
	}
	return err
}

func openMonitor(o Options) (*eventMonitor, func(), error) {
	m := &eventMonitor{start: time.Now(), log: o.Logger}
	if o.EventMonitor == "" {
		return m, func() {}, nil
	}
	var f *os.File
	path, fd, err := place(o.EventMonitor)
	switch {
	case err != nil:
	case path != "":
		f, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600) // an argument
	default:
		f = os.NewFile(fd, "event-monitor")
	}
	if err != nil {
		return nil, nil, fmt.Errorf("event monitor: %w", err)
	}
	m.out = f
	return m, func() { _ = f.Close() }, nil
}

// place reads "path=…", "fd=…" or a plain path.
func place(arg string) (path string, fd uintptr, err error) {
	if p, ok := cutPrefix(arg, "path="); ok {
		return p, 0, nil
	}
	if n, ok := cutPrefix(arg, "fd="); ok {
		v, err := strconv.ParseUint(n, 10, 31)
		if err != nil {
			return "", 0, fmt.Errorf("descriptor %q: %w", n, err)
		}
		return "", uintptr(v), nil
	}
	if arg == "" {
		return "", 0, errors.New("neither path= nor fd= is given")
	}
	return arg, 0, nil
}

func cutPrefix(s, prefix string) (string, bool) {
	if len(s) > len(prefix) && s[:len(prefix)] == prefix {
		return s[len(prefix):], true
	}
	return "", false
}

// listen opens the API socket. The lock beside it tells a socket in use from a stale one, which is replaced.
func listen(arg string) (net.Listener, func(), error) {
	path, fd, err := place(arg)
	if err != nil {
		return nil, nil, fmt.Errorf("API socket: %w", err)
	}
	if path == "" {
		f := os.NewFile(fd, "api-socket")
		l, err := net.FileListener(f)
		return l, func() {}, errors.Join(err, f.Close())
	}
	lock, err := os.OpenFile(path+".lock", os.O_WRONLY|os.O_CREATE, 0o600) // an argument
	if err != nil {
		return nil, nil, fmt.Errorf("API socket: %w", err)
	}
	whole := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(lock.Fd(), unix.F_OFD_SETLK, &whole); err != nil {
		_ = lock.Close()
		return nil, nil, fmt.Errorf("API socket %s is in use by another VMM: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, errors.Join(err, lock.Close())
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, nil, errors.Join(err, lock.Close())
	}
	return l, func() { _ = lock.Close() }, nil
}

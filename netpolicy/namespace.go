package netpolicy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Dir is where names of network namespaces live, by the convention of ip-netns(8).
const Dir = "/run/netns"

var (
	// ErrInUse says that a namespace of that name has a process or an open tap.
	ErrInUse = errors.New("network namespace is in use")
	// ErrNotFound says that no complete namespace has that name.
	ErrNotFound = errors.New("no such network namespace")
)

// Namespace is a named network namespace. It holds nothing open and is safe for concurrent use.
type Namespace struct{ name string }

// Name is the name it was made with.
func (ns *Namespace) Name() string { return ns.name }

// Path is the file that setns(2) and the tools of iproute2 take.
func (ns *Namespace) Path() string { return filepath.Join(Dir, ns.name) }

var validName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,127}$`)

func named(name string) (*Namespace, error) {
	if !validName.MatchString(name) {
		return nil, fmt.Errorf("invalid name %q for a network namespace", name)
	}
	return &Namespace{name}, nil
}

// Create makes a namespace with lo and tap0. One of that name that nothing uses is destroyed first.
func Create(ctx context.Context, name string) (*Namespace, error) {
	ns, err := named(name)
	if err != nil {
		return nil, err
	}
	if err := ns.clear(ctx); err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", name, err)
	}
	if err := shareDir(); err != nil {
		return nil, fmt.Errorf("prepare %s: %w", Dir, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := onThread(func() error { return ns.build(configure) }); err != nil {
		return nil, fmt.Errorf("make network namespace %s: %w", name, err)
	}
	return ns, nil
}

// clear removes what has the name, unless it is in use.
func (ns *Namespace) clear(ctx context.Context) error {
	used, err := ns.inUse()
	switch {
	case errors.Is(err, ErrNotFound):
	case err != nil:
		return err
	case used:
		return ErrInUse
	}
	return Destroy(ctx, ns.name)
}

// build moves the calling thread into a new namespace and names that once configure has made it complete.
func (ns *Namespace) build(configure func() error) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := configure(); err != nil {
		return err
	}
	return ns.give("/proc/thread-self/ns/net")
}

// give names the namespace that path stands for.
func (ns *Namespace) give(path string) error {
	f, err := os.OpenFile(ns.Path(), os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o400)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := unix.Mount(path, ns.Path(), "", unix.MS_BIND, ""); err != nil {
		return errors.Join(fmt.Errorf("name it: %w", err), os.Remove(ns.Path()))
	}
	return nil
}

// Open finds a namespace that was made earlier, by whichever process.
func Open(name string) (*Namespace, error) {
	ns, err := named(name)
	if err != nil {
		return nil, err
	}
	h, err := ns.open()
	if err != nil {
		return nil, err
	}
	return ns, h.Close()
}

// open gives a handle on the namespace, or ErrNotFound when the name is free or was never finished.
func (ns *Namespace) open() (*os.File, error) {
	f, err := os.Open(ns.Path())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, ns.name)
	}
	if err != nil {
		return nil, err
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if st.Type != unix.NSFS_MAGIC {
		return nil, errors.Join(fmt.Errorf("%w: %s was never finished", ErrNotFound, ns.name), f.Close())
	}
	return f, nil
}

// Destroy removes the links and the name. The kernel frees the rest when the last process and socket in it are gone. A
// name that is not there is no error.
func Destroy(ctx context.Context, name string) error {
	ns, err := named(name)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	// First the links: something that still holds the namespace, such as a socket, must not keep the guest connected.
	if err := ns.Do(removeLinks); err != nil && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("destroy network namespace %s: %w", name, err)
	}
	if err := ns.forget(); err != nil {
		return fmt.Errorf("destroy network namespace %s: %w", name, err)
	}
	return nil
}

// forget takes the name away and leaves the namespace as it is.
func (ns *Namespace) forget() error {
	for {
		err := unix.Unmount(ns.Path(), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break // nothing is mounted there (any more)
		}
		if err != nil {
			return err
		}
	}
	if err := os.Remove(ns.Path()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// List gives the names that begin with prefix, half-made ones too, sorted.
func List(prefix string) ([]string, error) {
	entries, err := os.ReadDir(Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// shareDir makes Dir a shared mount, as ip-netns(8) does: removing a name then also removes it from the mount
// namespaces of services that were started meanwhile, which would otherwise keep the network alive.
func shareDir() error {
	if err := os.MkdirAll(Dir, 0o755); err != nil { // what ip-netns gives it
		return err
	}
	err := unix.Mount("", Dir, "", unix.MS_SHARED|unix.MS_REC, "")
	if !errors.Is(err, unix.EINVAL) {
		return err
	}
	// Not a mount point yet.
	if err := unix.Mount(Dir, Dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	return unix.Mount("", Dir, "", unix.MS_SHARED|unix.MS_REC, "")
}

// Do calls f on a thread that is in the namespace. Sockets and processes that f starts stay there; goroutines that f
// starts do not run there. f must not keep the thread for long.
func (ns *Namespace) Do(f func() error) error {
	h, err := ns.open()
	if err != nil {
		return err
	}
	defer h.Close() //nolint:errcheck // only entered
	return onThread(func() error {
		if err := unix.Setns(int(h.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", ns.name, err)
		}
		return f()
	})
}

// onThread calls f on a locked thread, which f may take to another network namespace, and brings the thread back to its
// own. A thread that cannot come back stays locked while its goroutine ends: the runtime then ends it instead of using
// it for others. That must stay the exception, because a process's first thread cannot end, and would hold the
// namespace for as long as the process lives.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		result := errors.New("the function ended its goroutine") // what remains if f does
		defer func() { done <- result }()
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			result = err
			return
		}
		defer func() {
			if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			}
			_ = home.Close() // only entered
		}()
		result = f()
	}()
	return <-done
}

package farside

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/vishvananda/netns"
)

// onThread calls f on a locked thread and brings the thread back to its network namespace. It must come back: the
// process's first thread cannot be thrown away, and /proc/self speaks of that one.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		result := errors.New("the function ended its goroutine") // what remains if f does
		defer func() { done <- result }()
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			result = err
			return
		}
		defer func() {
			if netns.Set(home) == nil {
				runtime.UnlockOSThread()
			}
			_ = home.Close()
		}()
		result = f()
	}()
	return <-done
}

// do calls f on a thread in a network namespace. Sockets that f opens stay there.
func do(ns netns.NsHandle, f func() error) error {
	return onThread(func() error {
		if err := netns.Set(ns); err != nil {
			return fmt.Errorf("enter the namespace: %w", err)
		}
		return f()
	})
}

// newNamespace makes a network namespace that lives as long as the handle, or a socket in it, is open.
func newNamespace() (ns netns.NsHandle, err error) {
	err = onThread(func() (err error) {
		ns, err = netns.New()
		return err
	})
	return ns, err
}

package httpd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// How long, and for how many bytes, a connection is drained before it is closed on a client that is still sending.
const (
	lingerTime  = 5 * time.Second
	lingerBytes = 64 << 20
)

// trackedListener wraps its connections in trackedConn and knows those that are open.
type trackedListener struct {
	net.Listener
	mu     sync.Mutex
	open   map[*trackedConn]struct{}
	closed bool
}

func track(ln net.Listener) *trackedListener {
	return &trackedListener{Listener: ln, open: map[*trackedConn]struct{}{}}
}

func (l *trackedListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &trackedConn{Conn: nc, listener: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		_ = nc.Close()
		return nil, net.ErrClosed
	}
	l.open[c] = struct{}{}
	return c, nil
}

// Close stops accepting, and closes the connections on which nothing has been received yet: clients open some ahead of
// need, and the HTTP server would wait for their first request for as long as headers may take. A second Close does
// nothing.
func (l *trackedListener) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	var silent []*trackedConn
	for c := range l.open {
		if !c.heard.Load() {
			silent = append(silent, c)
		}
	}
	l.mu.Unlock()
	for _, c := range silent {
		_ = c.Close()
	}
	return l.Listener.Close()
}

// trackedConn can be told to read on before it closes. A body that is refused half read would else make the kernel
// reset the connection, and the reset would overtake the answer: the client would see a broken pipe and not the 413.
type trackedConn struct {
	net.Conn
	listener *trackedListener
	heard    atomic.Bool // something was received
	linger   atomic.Bool
}

func (c *trackedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.heard.Store(true)
	}
	return n, err
}

// Close half-closes and drains first, within bounds, when the connection is to linger.
func (c *trackedConn) Close() error {
	c.listener.mu.Lock()
	delete(c.listener.open, c)
	c.listener.mu.Unlock()
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok && c.linger.Load() && half.CloseWrite() == nil {
		_ = c.SetReadDeadline(time.Now().Add(lingerTime))
		_, _ = io.CopyN(io.Discard, c.Conn, lingerBytes)
	}
	return c.Conn.Close()
}

// listenUnix makes a socket that only this user can connect to. It is made under another name and renamed once its mode
// is set, so that there is no instant at which others could connect. A socket that a dead process left is replaced; one
// that answers is an error.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	making := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.Remove(making); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: making, Net: "unix"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false) // the name that it knows is not the one that it will have
	if err = os.Chmod(making, 0o600); err == nil {
		err = os.Rename(making, path)
	}
	if err != nil {
		_ = ln.Close()
		_ = os.Remove(making)
		return nil, err
	}
	return &unixListener{ln, path}, nil
}

func removeStale(ctx context.Context, path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("%s is there and is no socket", path)
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		_ = c.Close()
		return fmt.Errorf("another process serves %s", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("cannot tell whether another process serves %s: %w", path, err)
	}
	return os.Remove(path)
}

// unixListener removes its path when it closes.
type unixListener struct {
	net.Listener
	path string
}

func (l *unixListener) Close() error {
	err := l.Listener.Close()
	if err == nil {
		_ = os.Remove(l.path)
	}
	return err
}

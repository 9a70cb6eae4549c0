package gate

import (
	"bufio"
	"crypto/tls"
	"net"
	"sync"
)

// wire lies between TLS and a connection. TLS reads and writes each record of 16 KiB with a call of its own; wire makes
// one call of several, which is most of what a terminated stream costs beyond its encryption.
type wire struct {
	net.Conn
	in *bufio.Reader

	mu     sync.Mutex
	corked bool
	out    []byte // written while corked
	pooled *[wireBytes]byte
}

const wireBytes = copyBytes + 4<<10 // what is copied at once, in records

var wirePool = sync.Pool{New: func() any { return new([wireBytes]byte) }}

func newWire(conn net.Conn) *wire { return &wire{Conn: conn, in: bufio.NewReaderSize(conn, copyBytes)} }

func (w *wire) Read(p []byte) (int, error) { return w.in.Read(p) }

func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.corked && len(w.out)+len(p) <= wireBytes {
		w.out = append(w.out, p...)
		return len(p), nil
	}
	if err := w.flush(); err != nil {
		return 0, err
	}
	return w.Conn.Write(p)
}

// flush writes what was kept back. The lock is held.
func (w *wire) flush() error {
	if len(w.out) == 0 {
		return nil
	}
	_, err := w.Conn.Write(w.out)
	w.out = w.out[:0]
	return err
}

func (w *wire) cork() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.corked = true
	if b, ok := wirePool.Get().(*[wireBytes]byte); ok {
		w.pooled, w.out = b, b[:0]
	}
}

func (w *wire) uncork() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	err := w.flush()
	w.corked, w.out = false, nil
	if w.pooled != nil {
		wirePool.Put(w.pooled)
		w.pooled = nil
	}
	return err
}

// corkedTLS is a TLS connection over a wire, of which each Write is one call.
type corkedTLS struct {
	*tls.Conn
	wire *wire

	mu sync.Mutex
}

func (c *corkedTLS) Write(p []byte) (int, error) {
	if len(p) <= recordBytes {
		return c.Conn.Write(p)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wire.cork()
	n, err := c.Conn.Write(p)
	if flushed := c.wire.uncork(); err == nil && flushed != nil {
		return 0, flushed
	}
	return n, err
}

const recordBytes = 16 << 10

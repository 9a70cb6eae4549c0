package agent

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A command's output is read until its main process has ended and what was in the pipe by then has been read; a child
// left in the background may keep the pipe open, and gets outputGrace to finish a pipeline. After that its output is
// still read, and dropped: closing the pipe would kill it at its next write.
const outputGrace = 50 * time.Millisecond

// sink takes the output of one stream; it must not keep b.
type sink func(b []byte)

// stream reads one pipe of a command.
type stream struct {
	r        *os.File
	complete chan struct{} // closed when all that belongs to the answer has been handed to the sink
}

// newStream makes a pipe and gives its writing end for the command. The reader runs until the last writer is gone.
func newStream(out sink) (*stream, *os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	s := &stream{r: r, complete: make(chan struct{})}
	go s.pump(out)
	return s, w, nil
}

// finish says that the main process has ended.
func (s *stream) finish() { _ = s.r.SetReadDeadline(time.Now().Add(outputGrace)) }

func (s *stream) pump(out sink) {
	defer s.r.Close() //nolint:errcheck // only read
	buf := make([]byte, 32<<10)
	for {
		n, err := s.r.Read(buf)
		if n > 0 {
			out(buf[:n])
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			s.rest(out, buf)
			close(s.complete)
			_, _ = io.CopyBuffer(discard{}, s.r, buf)
			return
		}
		if err != nil {
			close(s.complete)
			return
		}
	}
}

// rest hands over what was in the pipe when the grace ended.
func (s *stream) rest(out sink, buf []byte) {
	left := s.pending()
	_ = s.r.SetReadDeadline(time.Time{})
	for left > 0 {
		n, err := s.r.Read(buf[:min(left, len(buf))])
		if n > 0 {
			out(buf[:n])
		}
		if err != nil {
			return
		}
		left -= n
	}
}

// pending is the number of bytes in the pipe.
func (s *stream) pending() int {
	var n int
	raw, err := s.r.SyscallConn()
	if err != nil {
		return 0
	}
	if err := raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }); err != nil {
		return 0
	}
	return n
}

// discard is io.Discard without its ReadFrom, which would bring a buffer of its own.
type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

// bounded keeps the first limit bytes of a stream. Safe for one writer and any readers.
type bounded struct {
	mu        sync.Mutex
	limit     int64
	buf       []byte
	taken     int64
	truncated bool
}

// take gives the part of b that is within the limit.
func (o *bounded) take(b []byte) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	if room := o.limit - o.taken; int64(len(b)) > room {
		o.truncated = true
		b = b[:room]
	}
	o.taken += int64(len(b))
	return b
}

func (o *bounded) keep(b []byte) {
	b = o.take(b)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.buf = append(o.buf, b...)
}

func (o *bounded) result() ([]byte, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf, o.truncated
}

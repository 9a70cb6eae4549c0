package gate

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"strconv"
	"sync"

	"golang.org/x/net/http/httpguts"
)

// guard reads an HTTP/1 connection before the HTTP library does, and lets through only what can be read in one way:
// the library is lenient with line ends and lengths, and silent about it. A head that is at fault is replaced by a
// request of a method that nobody else knows, for which the handler answers 400 with the reason; a body at fault ends
// the connection.
//
// It looks at heads and at the frames of chunked bodies; the bytes of bodies go through unseen. A request for a
// WebSocket is the last that it reads: what follows belongs to another protocol, or the connection is closed.
type guard struct {
	halfConn
	flow    *flow
	limit   int
	refusal string // the method that stands for a head at fault

	in    []byte // read and not given out
	clear int    // how much of in may be given out
	state guardState
	left  int64 // of a body or chunk

	mu    sync.Mutex
	fault error // why the connection can be read no further
}

type guardState int

const (
	inHead guardState = iota
	inBody
	inChunkSize
	inChunk
	inChunkEnd
	inTrailer
	inRaw
	atEnd
)

var (
	errChunk   = errors.New("a chunk of the request's body is malformed")
	errTrailer = errors.New("a trailer of the request is malformed")
)

const maxChunkLine = 4 << 10

// halfConn is a connection of which one half can be closed.
type halfConn interface {
	net.Conn
	CloseWrite() error
}

func newGuard(conn halfConn, f *flow, limit int) *guard {
	var nonce [12]byte
	_, _ = rand.Read(nonce[:])
	return &guard{halfConn: conn, flow: f, limit: limit, refusal: "REFUSED-" + hex.EncodeToString(nonce[:])}
}

// failed gives the fault that was found, nil for none.
func (g *guard) failed() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.fault
}

func (g *guard) fail(err error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fault, g.state = err, atEnd
	return err
}

// Read gives out bytes that were found good. The HTTP library calls it from one goroutine at a time.
func (g *guard) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for g.clear == 0 {
		if (g.state == inRaw || g.state == inBody || g.state == inChunk) && len(g.in) == 0 {
			return g.through(p)
		}
		if err := g.step(); err != nil {
			return 0, err
		}
	}
	n := copy(p, g.in[:g.clear])
	g.in = g.in[n:]
	g.clear -= n
	return n, nil
}

// through reads a body without a copy of it.
func (g *guard) through(p []byte) (int, error) {
	if g.state != inRaw && int64(len(p)) > g.left {
		p = p[:g.left]
	}
	n, err := g.halfConn.Read(p)
	g.passed(int64(n))
	return n, err
}

func (g *guard) passed(n int64) {
	if g.state == inRaw {
		return
	}
	g.left -= n
	switch {
	case g.left > 0:
	case g.state == inChunk:
		g.state = inChunkEnd
	default:
		g.state = inHead
	}
}

// step clears some of what was read, or reads more.
func (g *guard) step() error {
	switch g.state {
	case inHead:
		return g.head()
	case inRaw:
		g.clear = len(g.in)
	case inBody, inChunk:
		g.clear = int(min(int64(len(g.in)), g.left))
		g.passed(int64(g.clear))
	case inChunkSize:
		return g.line(maxChunkLine, g.chunkSize)
	case inChunkEnd:
		return g.line(len(crlf), func(line []byte) error {
			g.state = inChunkSize
			if len(line) > 0 {
				return errChunk
			}
			return nil
		})
	case inTrailer:
		return g.line(g.limit, g.trailer)
	case atEnd:
		return io.EOF
	}
	return nil
}

func (g *guard) more() error {
	if cap(g.in)-len(g.in) < 512 {
		g.in = append(make([]byte, 0, 2*len(g.in)+4096), g.in...)
	}
	n, err := g.halfConn.Read(g.in[len(g.in):cap(g.in)])
	g.in = g.in[:len(g.in)+n]
	if n > 0 {
		return nil
	}
	return err
}

func (g *guard) head() error {
	for seen := 0; ; {
		end, err := headEnd(g.in[:min(len(g.in), g.limit)], seen)
		var h head
		switch {
		case err == nil && end > 0:
			h, err = parseHead(g.in[:end])
		case err == nil && len(g.in) >= g.limit:
			err = errHeadLong
		case err == nil:
			seen = len(g.in)
			if err := g.more(); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			_ = g.fail(err)
			g.in = []byte(g.refusal + " / HTTP/1.1\r\nHost: " + g.flow.ruling.name + "\r\nConnection: close\r\n\r\n")
			g.clear = len(g.in)
			return nil
		}
		g.clear = end
		g.begin(h)
		return nil
	}
}

func (g *guard) begin(h head) {
	switch {
	case h.upgrade:
		g.state = inRaw
	case h.length < 0:
		g.state = inChunkSize
	case h.length > 0:
		g.state, g.left = inBody, h.length
	}
}

// line clears one line of at most limit bytes that take finds good; its end is not shown to take.
func (g *guard) line(limit int, take func([]byte) error) error {
	for {
		if i := bytes.IndexByte(g.in[:min(len(g.in), limit)], '\n'); i >= 0 {
			line, ok := bytes.CutSuffix(g.in[:i+1], crlf)
			if !ok || bytes.IndexByte(line, '\r') >= 0 {
				return g.fail(errChunk)
			}
			if err := take(line); err != nil {
				return g.fail(err)
			}
			g.clear = i + 1
			return nil
		}
		if len(g.in) >= limit {
			return g.fail(errChunk)
		}
		if err := g.more(); err != nil {
			return err
		}
	}
}

func (g *guard) chunkSize(line []byte) error {
	digits, _, _ := bytes.Cut(line, []byte(";")) // extensions are allowed, and mean nothing
	if len(digits) == 0 || len(digits) > 15 || !httpguts.ValidHeaderFieldValue(string(line)) {
		return errChunk
	}
	n, err := strconv.ParseInt(string(digits), 16, 64)
	if err != nil || digits[0] == '+' || digits[0] == '-' {
		return errChunk
	}
	g.left, g.state = n, inChunk
	if n == 0 {
		g.state = inTrailer
	}
	return nil
}

func (g *guard) trailer(line []byte) error {
	if len(line) == 0 {
		g.state = inHead
		return nil
	}
	var f fields
	if f.line(string(line)) != nil || len(f.hosts)+len(f.lengths)+len(f.codings)+len(f.connection)+len(f.upgrade) > 0 {
		return errTrailer
	}
	return nil
}

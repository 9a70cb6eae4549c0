package gate

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"time"
)

// protocol is what the first bytes of a connection are.
type protocol int

const (
	silent    protocol = iota // nothing was said in time
	protoTLS                  // a TLS record
	protoHTTP                 // an HTTP/1 request
	protoElse
)

// said is what a connection said before it was decided.
type said struct {
	proto protocol
	name  string // of the ClientHello or Host, as it was said; empty for none
	err   error  // why it could not be read as what it began as
	raw   []byte // all that was read, to be passed on
}

var (
	errHelloSeen = errors.New("the name was read")
	errTooMuch   = errors.New("more bytes than a beginning may have")
	errNoHello   = errors.New("the TLS ClientHello is malformed")
)

// recorder reads from a connection and keeps what it read, up to a limit, so that it can be read again.
type recorder struct {
	src   io.Reader
	buf   []byte
	off   int // what of buf was given out
	limit int
}

func (r *recorder) Read(p []byte) (int, error) {
	if r.off == len(r.buf) {
		if err := r.more(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.buf[r.off:])
	r.off += n
	return n, nil
}

// more reads at least one byte more into buf.
func (r *recorder) more() error {
	room := r.limit - len(r.buf)
	if room <= 0 {
		return errTooMuch
	}
	if cap(r.buf) == len(r.buf) {
		r.buf = append(r.buf, make([]byte, min(room, max(2048, len(r.buf))))...)[:len(r.buf)]
	}
	free := r.buf[len(r.buf):cap(r.buf)]
	n, err := r.src.Read(free[:min(len(free), room)])
	r.buf = r.buf[:len(r.buf)+n]
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// listen reads the beginning of a connection: as much as says whom it is for, limit bytes at most. The source's
// deadline bounds the time. It answers nothing.
func listen(src io.Reader, limit int) said {
	r := &recorder{src: src, limit: limit}
	if err := r.more(); err != nil {
		return said{err: err}
	}
	var s said
	if r.buf[0] == 0x16 {
		s = listenTLS(r)
	} else {
		s = listenHTTP(r)
	}
	s.raw = r.buf
	return s
}

// listenTLS lets the TLS library read the ClientHello, over as many records and reads as it takes: the same reader that
// terminates connections, so that there is no second opinion. The handshake goes no further; what it would write
// is thrown away.
func listenTLS(r *recorder) said {
	s := said{proto: protoTLS, err: errNoHello}
	conn := tls.Server(helloConn{r}, &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			s.name, s.err = hello.ServerName, nil
			return nil, errHelloSeen
		},
	})
	err := conn.Handshake() //nolint:noctx // the source's deadline bounds it
	if s.err != nil && (timedOut(err) || errors.Is(err, errTooMuch)) {
		s.err = err
	}
	return s
}

// helloConn is the connection of a handshake that is only read.
type helloConn struct{ *recorder }

func (helloConn) Write(p []byte) (int, error)      { return len(p), nil }
func (helloConn) Close() error                     { return nil }
func (helloConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (helloConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (helloConn) SetDeadline(time.Time) error      { return nil }
func (helloConn) SetReadDeadline(time.Time) error  { return nil }
func (helloConn) SetWriteDeadline(time.Time) error { return nil }

// listenHTTP reads an HTTP/1 head. What cannot become one is protoElse, as soon as that is clear.
func listenHTTP(r *recorder) said {
	for seen := 0; ; {
		if !maybeHTTP(r.buf) {
			return said{proto: protoElse}
		}
		end, err := headEnd(r.buf, seen)
		if err != nil {
			return said{proto: protoHTTP, err: err}
		}
		if end > 0 {
			h, err := parseHead(r.buf[:end])
			if err != nil {
				return said{proto: protoHTTP, err: err}
			}
			name, _, _ := splitHost(h.host) // parseHead looked
			return said{proto: protoHTTP, name: name}
		}
		seen = len(r.buf)
		if err := r.more(); err != nil {
			s := said{proto: protoElse, err: err}
			if bytes.IndexByte(r.buf, '\n') >= 0 { // a whole request line was one of HTTP
				s.proto = protoHTTP
			}
			if errors.Is(err, errTooMuch) {
				s.err = errHeadLong
			}
			return s
		}
	}
}

const maxMethod = 24

// maybeHTTP tells whether b can be the beginning of an HTTP/1 request.
func maybeHTTP(b []byte) bool {
	line, _, whole := bytes.Cut(b, []byte("\n"))
	method, _, hasMethod := bytes.Cut(line, []byte(" "))
	if len(method) > maxMethod || hasMethod && len(method) == 0 {
		return false
	}
	for _, c := range method {
		if (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && c != '-' && c != '_' {
			return false
		}
	}
	s := strings.TrimSuffix(string(line), "\r")
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' }) {
		return false
	}
	if !whole {
		return true
	}
	return hasMethod && (strings.HasSuffix(s, " HTTP/1.1") || strings.HasSuffix(s, " HTTP/1.0"))
}

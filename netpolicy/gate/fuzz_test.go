package gate

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"stillframe/netpolicy/policy"
)

const fuzzLimit = 4 << 10

// heardTwice listens to the same bytes in one piece and one by one: the answer may not depend on how they arrive.
func heardTwice(t *testing.T, b []byte) said {
	t.Helper()
	whole := listen(bytes.NewReader(b), fuzzLimit)
	slow := listen(iotest.OneByteReader(bytes.NewReader(b)), fuzzLimit)
	require.Equal(t, whole.proto, slow.proto)
	require.Equal(t, whole.name, slow.name)
	require.Equal(t, whole.err == nil, slow.err == nil)
	for _, s := range []said{whole, slow} {
		require.LessOrEqual(t, len(s.raw), fuzzLimit)
		require.True(t, bytes.HasPrefix(b, s.raw), "what was read is passed on as it was")
	}
	return whole
}

// serverName is what another reader makes of a ClientHello: the TLS library as a server that goes on.
func serverName(b []byte) string {
	var name string
	conn := tls.Server(helloConn{&recorder{src: bytes.NewReader(b), limit: fuzzLimit}}, &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) { name = h.ServerName; return nil, nil },
	})
	_ = conn.Handshake()
	return name
}

func clientHello(t testing.TB, name string) []byte {
	t.Helper()
	a, b := net.Pipe()
	go func() {
		_ = tls.Client(a, &tls.Config{ServerName: name}).Handshake()
		_ = a.Close()
	}()
	s := listen(b, 64<<10)
	require.NoError(t, b.Close())
	require.NoError(t, s.err)
	require.Equal(t, name, s.name)
	return s.raw
}

func FuzzClientHello(f *testing.F) {
	hello := clientHello(f, "good.example")
	f.Add(hello)
	f.Add(hello[:len(hello)/2])
	f.Add(append(bytes.Clone(hello), "more"...))
	split := append([]byte{22, 3, 1, 0, 1}, hello[5])
	f.Add(append(append(split, 22, 3, 1, byte((len(hello)-6)>>8), byte(len(hello)-6)), hello[6:]...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 || b[0] != 22 {
			return
		}
		s := heardTwice(t, b)
		require.Equal(t, protoTLS, s.proto)
		if s.err != nil {
			require.Empty(t, s.name)
		} else if name := serverName(b); name != "" { // a server that finds no cipher of its own does not come so far
			require.Equal(t, name, s.name)
		}
	})
}

func FuzzHTTPHost(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: good.example\r\n\r\n", "GET http://a.example/ HTTP/1.1\r\nHost: A.example\r\n\r\nrest",
		"POST / HTTP/1.1\r\nHost: a.example:80\r\nContent-Length: 3\r\n\r\nabc", "SSH-2.0-x\r\n", "HELO a.example\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "GET / HTTP/1.1\nHost: a\n\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "GET",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 || b[0] == 22 {
			return
		}
		s := heardTwice(t, b)
		if s.proto != protoHTTP || s.err != nil {
			require.Empty(t, s.name)
			return
		}
		// Whatever is taken here, the library takes in the same way.
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			require.NotEqual(t, policy.Tunnel, allows(s.name), "taken here and refused by another reader: %v", err)
			return
		}
		name, _, err := splitHost(r.Host)
		require.NoError(t, err)
		require.True(t, strings.EqualFold(name, s.name), "%q %q", name, s.name)
	})
}

func allows(name string) policy.Action {
	if _, err := policy.CanonicalName(name); err != nil {
		return policy.Deny
	}
	return policy.Tunnel
}

// guarded gives what a guard lets through of b, and the fault that it found.
func guarded(b []byte, step int) (out []byte, fault error, refused bool) {
	r := &scripted{r: bytes.NewReader(b), step: step}
	g := newGuard(r, &flow{ruling: ruling{name: "a.example"}}, fuzzLimit)
	out, _ = io.ReadAll(g)
	i := bytes.Index(out, []byte(g.refusal))
	if i >= 0 {
		return out[:i], g.failed(), true
	}
	return out, g.failed(), false
}

// scripted is a connection that was written to beforehand, and is read in pieces.
type scripted struct {
	net.Conn
	r    io.Reader
	step int
}

func (s *scripted) Read(p []byte) (int, error) { return s.r.Read(p[:min(len(p), s.step)]) }
func (s *scripted) CloseWrite() error          { return nil }

// The guard against the library: what it lets through, the library reads as the same requests, each of which the guard
// would take by itself; what it lets through is what was sent; and how the bytes arrive makes no difference.
func FuzzGuard(f *testing.F) {
	const host = "Host: a.example\r\n"
	const get = "GET / HTTP/1.1\r\n" + host + "\r\n"
	for _, s := range []string{
		get + "POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\n\r\nabc" + get,
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nX: y\r\n\r\n" + get,
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
		"GET / HTTP/1.1\r\n" + host + "Connection: upgrade\r\nUpgrade: websocket\r\n\r\n\x00\n\nraw",
		"GET / HTTP/1.1\n" + host + "\n",
		"POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		out, fault, refused := guarded(b, 1<<20)
		slow, slowFault, slowRefused := guarded(b, 1)
		require.Equal(t, out, slow)
		require.Equal(t, fault, slowFault)
		require.Equal(t, refused, slowRefused)
		require.True(t, bytes.HasPrefix(b, out))
		in := bufio.NewReader(bytes.NewReader(out))
		for {
			before := out[len(out)-remaining(in, out):]
			if len(before) == 0 {
				return
			}
			end, err := headEnd(before, 0)
			require.NoError(t, err)
			require.Greater(t, end, 0, "heads go through whole")
			h, err := parseHead(before[:end])
			require.NoError(t, err)
			r, err := http.ReadRequest(in)
			if err != nil { // the library refuses more than the guard; then it reads no further
				return
			}
			require.Equal(t, h.method, r.Method)
			require.Equal(t, h.length, r.ContentLength)
			if h.upgrade {
				return
			}
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				return // cut off, or a trailer that the library refuses: it reads no further
			}
		}
	})
}

// remaining is how many bytes of b a reader over it has not given out.
func remaining(in *bufio.Reader, b []byte) int {
	rest, _ := in.Peek(in.Size())
	if len(rest) < in.Size() {
		return len(rest)
	}
	all, _ := io.ReadAll(in)
	in.Reset(io.MultiReader(bytes.NewReader(all)))
	_ = b
	return len(all)
}

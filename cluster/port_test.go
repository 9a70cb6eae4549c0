package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// pair is two members, each with its port.
type pair struct {
	dir  string
	a, b *port
}

func startPair(t *testing.T) pair {
	p := pair{dir: t.TempDir()}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	ids := testIdentity(t, p.dir, Member{"id-a", "a", "127.0.0.1:0"}, Member{"id-b", "b", l.Addr().String()})
	p.a, p.b = openTestPort(t, ids[0]), openTestPort(t, ids[1])
	p.b.routes.HandleFunc("GET /hello", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("b")) })
	return p
}

func openTestPort(t *testing.T, id *Identity) *port {
	t.Helper()
	p, err := openPort(id, "", directory{}, testLogger(t))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.close()) })
	return p
}

func (p pair) hello(t *testing.T) (string, error) {
	req, err := http.NewRequestWithContext(deadline(t), http.MethodGet, "http://id-b/hello", nil)
	require.NoError(t, err)
	resp, err := p.a.client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

func TestPortSpeaksBoth(t *testing.T) {
	p := startPair(t)
	said, err := p.hello(t)
	require.NoError(t, err)
	require.Equal(t, "b", said)

	stream := raftStream{newHalf(p.a, p.a.raft), ""}
	out, err := stream.Dial("id-b", time.Minute)
	require.NoError(t, err)
	defer out.Close()
	in := <-p.b.raft
	defer in.Close()
	_, err = out.Write([]byte("ping"))
	require.NoError(t, err)
	b := make([]byte, 4)
	_, err = io.ReadFull(in, b)
	require.NoError(t, err)
	require.Equal(t, "ping", string(b))
	require.WithinDuration(t, time.Now(), p.b.lastContact("id-a"), time.Minute)
	require.Zero(t, p.b.lastContact("id-c"))
}

// requireRefused dials b with a configuration and fails unless b ends the connection without a word of ours.
func requireRefused(t *testing.T, b *port, cfg *tls.Config) {
	t.Helper()
	cfg.InsecureSkipVerify, cfg.NextProtos = true, []string{protoRPC}
	raw, err := net.Dial("tcp", b.addr())
	require.NoError(t, err)
	defer raw.Close()
	require.Error(t, greet(deadline(t), tls.Client(raw, cfg)), "the handshake came to its end")
}

func TestPortRefusesStrangers(t *testing.T) {
	p := startPair(t)
	t.Run("no certificate", func(t *testing.T) {
		requireRefused(t, p.b, &tls.Config{MinVersion: tls.VersionTLS13})
	})
	t.Run("another CA's certificate, with the right names", func(t *testing.T) {
		others := testIdentity(t, t.TempDir(), Member{"id-a", "a", "127.0.0.1:0"}, Member{"id-b", "b", p.b.addr()})
		cert := *others[0].current().cert
		requireRefused(t, p.b, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}})
		// And the other way: the stranger's node does not take b for its own b.
		stranger := openTestPort(t, others[0])
		_, err := stranger.dial(deadline(t), "id-b", protoRPC)
		require.ErrorContains(t, err, "unknown authority")
	})
	t.Run("TLS 1.2", func(t *testing.T) {
		cert := *p.a.id.current().cert
		requireRefused(t, p.b, &tls.Config{MaxVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}})
	})
	t.Run("no protocol", func(t *testing.T) {
		cert := *p.a.id.current().cert
		raw, err := net.Dial("tcp", p.b.addr())
		require.NoError(t, err)
		defer raw.Close()
		require.Error(t, greet(deadline(t), tls.Client(raw, &tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true,
		})))
	})
	t.Run("plaintext", func(t *testing.T) {
		raw, err := net.Dial("tcp", p.b.addr())
		require.NoError(t, err)
		defer raw.Close()
		_, err = raw.Write([]byte("GET /hello HTTP/1.1\r\nHost: b\r\n\r\n"))
		require.NoError(t, err)
		require.NoError(t, raw.SetReadDeadline(time.Now().Add(time.Minute)))
		got, err := io.ReadAll(raw)
		require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "the connection stays open")
		require.NotContains(t, string(got), "HTTP", "an answer in clear")
	})
	said, err := p.hello(t)
	require.NoError(t, err, "members are served as before")
	require.Equal(t, "b", said)
}

// TestDialChecksTheNode has the member list send a to b's address for a third node: a certificate of the right CA and
// the wrong node is refused by the dialler.
func TestDialChecksTheNode(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	dir := t.TempDir()
	ids := testIdentity(t, dir, Member{"id-a", "a", "127.0.0.1:0"}, Member{"id-b", "b", l.Addr().String()})
	a, _ := openTestPort(t, ids[0]), openTestPort(t, ids[1])
	_, err = a.dial(deadline(t), "id-b", protoRPC)
	require.NoError(t, err)

	list := memberList{Version: memberListVersion, ID: "id-a", Members: []Member{
		{"id-a", "a", "127.0.0.1:0"}, {"id-c", "c", l.Addr().String()},
	}}
	writeList(t, filepath.Join(dir, "a"), list)
	_, err = a.dial(deadline(t), "id-c", protoRPC)
	require.ErrorContains(t, err, "the peer is node id-b, not id-c")
	_, err = a.dial(deadline(t), "id-b", protoRPC)
	require.ErrorContains(t, err, "not in the member list", "the list is read again when it changes")
}

// TestRotation changes one node's certificate, then the CA, while both run.
func TestRotation(t *testing.T) {
	p := startPair(t)
	before := p.b.id.ValidUntil()
	shown := func() *x509.Certificate {
		conn, err := p.a.dial(deadline(t), "id-b", protoRPC)
		require.NoError(t, err)
		defer conn.Close()
		return conn.(*peerConn).Conn.(*tls.Conn).ConnectionState().PeerCertificates[0]
	}
	first := shown()
	require.NoError(t, Renew(p.dir, "b"))
	second := shown()
	require.NotEqual(t, first.SerialNumber, second.SerialNumber, "the new certificate is shown without a restart")
	require.False(t, p.b.id.ValidUntil().Before(before))

	// What cannot be read leaves the last good certificate in force.
	key := filepath.Join(p.dir, "b", fileKey)
	good, err := os.ReadFile(key)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(key, []byte("no key"), 0o600))
	require.Equal(t, second.SerialNumber, shown().SerialNumber)
	require.NoError(t, os.WriteFile(key, good, 0o600))
	require.Equal(t, second.SerialNumber, shown().SerialNumber)

	// A new CA, first trusted beside the old one, then alone: whoever keeps an old certificate is refused.
	ca, err := newCA()
	require.NoError(t, err)
	old, err := os.ReadFile(filepath.Join(p.dir, "a", fileCA))
	require.NoError(t, err)
	for _, name := range []string{"a", "b"} {
		require.NoError(t, writeFile(filepath.Join(p.dir, name, fileCA), append(ca.certPEM(), old...), 0o644))
	}
	require.NoError(t, ca.writeCertificate(filepath.Join(p.dir, "b"), "id-b"))
	require.Equal(t, ca.cert.RawSubject, shown().RawIssuer)
	require.NoError(t, writeFile(filepath.Join(p.dir, "b", fileCA), ca.certPEM(), 0o644))
	_, err = p.a.dial(deadline(t), "id-b", protoRPC)
	require.ErrorContains(t, err, "refused", "a still has a certificate of the old CA")
	require.NoError(t, ca.writeCertificate(filepath.Join(p.dir, "a"), "id-a"))
	shown()
}

// TestDialEnds has a peer that accepts and says nothing: a dial ends with its context.
func TestDialEnds(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer silent.Close()
	ids := testIdentity(t, t.TempDir(), Member{"id-a", "a", "127.0.0.1:0"}, Member{"id-b", "b", silent.Addr().String()})
	a := openTestPort(t, ids[0])
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err = a.dial(ctx, "id-b", protoRPC)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestIdentityFolders(t *testing.T) {
	dir := t.TempDir()
	one := Member{"id-a", "a", "127.0.0.1:1"}
	for name, members := range map[string][]Member{
		"no members": nil, "no name": {{"id-a", "", "127.0.0.1:1"}}, "path": {{"id-a", "../a", "127.0.0.1:1"}},
		"no port": {{"id-a", "a", "127.0.0.1"}}, "wildcard": {{"id-a", "a", "0.0.0.0:1"}},
		"twice the name": {one, {"id-b", "a", "127.0.0.1:2"}}, "twice the address": {one, {"id-b", "b", "127.0.0.1:1"}},
		"twice the id": {one, {"id-a", "b", "127.0.0.1:2"}},
	} {
		require.Error(t, Init(dir, members), name)
	}
	require.NoError(t, Init(dir, []Member{one}))
	require.ErrorContains(t, Init(dir, []Member{one}), "holds one already")
	for _, secret := range []string{fileCAKey, "a/" + fileKey} {
		st, err := os.Stat(filepath.Join(dir, secret))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), st.Mode().Perm())
	}
	id, err := OpenIdentity(filepath.Join(dir, "a"), testLogger(t))
	require.NoError(t, err)
	require.Equal(t, one, id.Self())

	other := t.TempDir()
	require.NoError(t, Init(other, []Member{{"id-x", "a", "127.0.0.1:1"}}))
	swapped := filepath.Join(other, "a")
	for _, name := range []string{fileCert, fileKey} {
		b, err := os.ReadFile(filepath.Join(dir, "a", name))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(swapped, name), b, 0o600))
	}
	_, err = OpenIdentity(swapped, testLogger(t))
	require.ErrorContains(t, err, "is of node id-a")
}

func writeList(t *testing.T, dir string, list memberList) {
	t.Helper()
	raw, err := json.Marshal(list)
	require.NoError(t, err)
	require.NoError(t, writeFile(filepath.Join(dir, fileMembers), raw, 0o644))
}

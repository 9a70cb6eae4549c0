package httpd

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/fsm"
)

// doAsync posts with a preference and an idempotency key.
func (e *env) doAsync(path, body, prefer, key string) response {
	e.t.Helper()
	return e.send(request{method: "POST", path: path, body: body, key: e.key, header: map[string]string{
		headerPrefer: prefer, headerIdempotency: key,
	}})
}

// TestRespondAsync has an owner that does nothing until it is told: who does not want to wait is answered at once with
// what is open, and a retry that waits gets the outcome of the same.
func TestRespondAsync(t *testing.T) {
	e := newEnv(t)
	source := e.sandbox()
	e.snapshot(source, "warm")
	e.log.set(func() { e.log.outcome = func(fsm.Intent) *fsm.Complete { return nil } })
	body := `{"template_name":"system/busybox"}`
	first := e.doAsync(create, body, "return=minimal, Respond-Async; wait=5", "k1")
	require.Equal(t, 202, first.status, "%s", first.body)
	require.Equal(t, respondAsync, first.header.Get(headerApplied))
	require.Equal(t, "starting", first.object(t)["state"])
	again := e.doAsync(create, body, respondAsync, "k1")
	require.Equal(t, 202, again.status)
	require.Equal(t, "true", again.header.Get(headerReplayed))
	require.Equal(t, first.object(t)["id"], again.object(t)["id"])
	require.Equal(t, "starting", e.do("GET", "/v1/sandbox/"+first.text(t, "id"), nil).object(t)["state"])

	snap := e.doAsync("/v1/sandbox/"+source+"/snapshot/create", `{"name":"cold"}`, respondAsync, "k2")
	require.Equal(t, 202, snap.status, "%s", snap.body)
	require.Equal(t, "cold", snap.object(t)["name"])
	require.Len(t, e.do("GET", "/v1/snapshots", nil).items(t), 1, "it is not listed before it is ready")
	clone := e.doAsync(restore, `{"snapshot_name":"warm"}`, respondAsync, "k3")
	require.Equal(t, 202, clone.status)

	e.log.closeOpen()
	done := e.doAsync(create, body, "", "k1")
	require.Equal(t, 201, done.status)
	require.Equal(t, first.object(t)["id"], done.object(t)["id"])
	require.Equal(t, "running", done.object(t)["state"])
	taken := e.doAsync("/v1/sandbox/"+source+"/snapshot/create", `{"name":"cold"}`, respondAsync, "k2")
	require.Equal(t, 201, taken.status)
	require.Equal(t, 409, e.doAsync(create, `{"template_name":"system/debian:bookworm"}`, respondAsync, "k1").status)
	require.Equal(t, 400, e.doAsync(create, `{}`, respondAsync, "k4").status, "what is refused is not accepted")
}

// testCertificate makes a certificate for 127.0.0.1.
func testCertificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	leaf, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// TestTLS serves over TLS, and nothing to who does not speak it; a body that is too large is still answered with 413.
func TestTLS(t *testing.T) {
	cert := testCertificate(t)
	e := newEnv(t, func(c *Config) { c.TLS = &tls.Config{Certificates: []tls.Certificate{cert}} })
	roots := x509.NewCertPool()
	roots.AddCert(cert.Leaf)
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	t.Cleanup(c.CloseIdleConnections)
	url := strings.Replace(e.base, "http://", "https://", 1)
	resp, err := c.Get(url + "/healthz")
	require.NoError(t, err)
	require.Equal(t, 200, resp.StatusCode)
	require.Contains(t, string(readAll(t, resp)), "ok")
	req, err := http.NewRequest("POST", url+create, strings.NewReader(strings.Repeat("x", 11<<20)))
	require.NoError(t, err)
	req.Header.Set("Authorization", "Bearer "+e.key)
	resp, err = c.Do(req)
	require.NoError(t, err)
	require.Equal(t, 413, resp.StatusCode)
	_ = readAll(t, resp)
	resp, err = http.Get(e.base + "/healthz")
	if err == nil {
		require.NotEqual(t, 200, resp.StatusCode)
		_ = readAll(t, resp)
	}
}

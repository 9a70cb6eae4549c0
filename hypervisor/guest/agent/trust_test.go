package agent

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/hypervisor/guest"
)

// newCA makes the certificate of an authority.
func newCA(t *testing.T, name pkix.Name) (caPEM string, cert *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: name, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	cert, err = x509.ParseCertificate(der)
	require.NoError(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), cert
}

func TestSubjectHashIsOpenSSLs(t *testing.T) {
	for _, name := range []pkix.Name{
		{CommonName: "Stillframe egress"},
		{CommonName: "  Two   Spaces\tand a Tab ", Organization: []string{"UPPER", "lower"}},
		{CommonName: "Größe ÄÖÜ", Country: []string{"DE"}, Locality: []string{"*"}, SerialNumber: "42"},
		{},
	} {
		caPEM, cert := newCA(t, name)
		cmd := exec.CommandContext(t.Context(), "openssl", "x509", "-noout", "-hash")
		cmd.Stdin = strings.NewReader(caPEM)
		want, err := cmd.Output()
		require.NoError(t, err)
		got, err := subjectHash(cert.RawSubject)
		require.NoError(t, err)
		require.Equal(t, strings.TrimSpace(string(want)), fmt.Sprintf("%08x", got), "%s", name)
	}
}

// image is a root folder with a store like Debian's, with one authority in it.
func image(t *testing.T) (store trustStore, public string) {
	t.Helper()
	store = trustStore{root: t.TempDir(), run: t.TempDir()}
	require.NoError(t, os.MkdirAll(store.in(storeDir), 0o755))
	public, _ = newCA(t, pkix.Name{CommonName: "Public"})
	require.NoError(t, os.WriteFile(store.in(storeBundle), []byte(public), 0o644))
	return store, public
}

// contents reads all files of the store, and where its links go.
func (t trustStore) contents(tb testing.TB) map[string]string {
	tb.Helper()
	found := map[string]string{}
	for _, dir := range []string{storeDir, localDir} {
		entries, err := os.ReadDir(t.in(dir))
		require.NoError(tb, err)
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			if target, err := os.Readlink(t.in(path)); err == nil {
				found[path] = "-> " + target
				continue
			}
			raw, err := os.ReadFile(t.in(path))
			require.NoError(tb, err)
			found[path] = string(raw)
		}
	}
	return found
}

func TestInstallAuthority(t *testing.T) {
	store, public := image(t)
	first, cert := newCA(t, pkix.Name{CommonName: "First"})
	hash, err := subjectHash(cert.RawSubject)
	require.NoError(t, err)
	taken := filepath.Join(storeDir, fmt.Sprintf("%08x.0", hash))
	require.NoError(t, os.Symlink("another.pem", store.in(taken)))
	want := map[string]string{
		storeBundle:                          public + first,
		taken:                                "-> another.pem",
		strings.TrimSuffix(taken, "0") + "1": "-> stillframe.pem",
		storeDir + "/stillframe.pem":         "-> " + localDir + "/stillframe.crt",
		localDir + "/stillframe.crt":         first,
	}
	require.NoError(t, store.install(first))
	require.Equal(t, want, store.contents(t))
	raw, err := os.ReadFile(store.own())
	require.NoError(t, err)
	require.Equal(t, first, string(raw))

	// A second time nothing is written: the files are the very same.
	before, err := os.Stat(store.in(storeBundle))
	require.NoError(t, err)
	require.NoError(t, store.install(first))
	require.Equal(t, want, store.contents(t))
	after, err := os.Stat(store.in(storeBundle))
	require.NoError(t, err)
	require.True(t, os.SameFile(before, after))

	second, _ := newCA(t, pkix.Name{CommonName: "Second"})
	require.NoError(t, store.install(second))
	bundle := store.contents(t)[storeBundle]
	require.NotContains(t, bundle, first, "one authority takes the place of the other")
	require.Equal(t, strings.Join(strings.Fields(public+second), " "), strings.Join(strings.Fields(bundle), " "))
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM([]byte(bundle)))
}

// TestInstallAuthorityInterrupted does each prefix of an installation, then all of it.
func TestInstallAuthorityInterrupted(t *testing.T) {
	first, _ := newCA(t, pkix.Name{CommonName: "One"})
	second, _ := newCA(t, pkix.Name{CommonName: "Other"})
	whole, _ := image(t)
	require.NoError(t, whole.install(second))
	for _, done := range []func(trustStore) error{
		func(s trustStore) error { return os.WriteFile(s.own(), []byte(second), 0o644) },
		func(s trustStore) error {
			bundle, err := os.ReadFile(s.in(storeBundle))
			require.NoError(t, err)
			return os.WriteFile(s.in(storeBundle), withAuthority(bundle, []byte(first), []byte(second)), 0o644)
		},
		func(s trustStore) error { return os.WriteFile(s.in(localDir+"/stillframe.crt"), []byte(second), 0o644) },
		func(s trustStore) error { return os.Remove(s.in(storeDir + "/stillframe.pem")) },
	} {
		store, _ := image(t)
		require.NoError(t, store.install(first))
		require.NoError(t, done(store))
		require.NoError(t, store.install(second))
		got := store.contents(t)
		require.Equal(t, second, got[localDir+"/stillframe.crt"])
		require.Equal(t, 1, strings.Count(got[storeBundle], strings.TrimSpace(second)))
	}
}

func TestInstallAuthorityWithoutStore(t *testing.T) {
	store := trustStore{root: t.TempDir(), run: t.TempDir()}
	ca, _ := newCA(t, pkix.Name{CommonName: "Only"})
	require.NoError(t, store.install(ca))
	entries, err := os.ReadDir(store.root)
	require.NoError(t, err)
	require.Empty(t, entries, "an image without a store is not given half of one")
	require.Equal(t, store.own(), store.environ()["SSL_CERT_FILE"])
}

func TestInstallAuthorityRefuses(t *testing.T) {
	ca, _ := newCA(t, pkix.Name{CommonName: "CA"})
	for name, bad := range map[string]string{
		"nothing": "", "text": "hello", "two": ca + ca, "a key": strings.ReplaceAll(ca, "CERTIFICATE", "PRIVATE KEY"),
		"garbage": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("no DER")})),
	} {
		store, public := image(t)
		require.Equal(t, guest.CodeInvalid, guest.CodeOf(store.install(bad)), name)
		raw, err := os.ReadFile(store.in(storeBundle))
		require.NoError(t, err)
		require.Equal(t, public, string(raw))
	}
}

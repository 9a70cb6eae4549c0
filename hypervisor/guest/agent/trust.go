package agent

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"stillframe/hypervisor/guest"
)

// Where Debian, and images made like it, keep the authorities that programs trust.
const (
	storeBundle = "/etc/ssl/certs/ca-certificates.crt"
	storeDir    = "/etc/ssl/certs"                   // one file for each authority, found by a hash of its name
	localDir    = "/usr/local/share/ca-certificates" // taken into the bundle whenever it is made anew
	storeName   = "stillframe"
)

// trustStore puts the sandbox's own authority where programs look for those they trust.
type trustStore struct {
	root string // of the image; empty in a sandbox
	run  string // the agent's own folder
}

func (t trustStore) in(path string) string { return filepath.Join(t.root, path) }

// own is a file with the sandbox's authority and no other.
func (t trustStore) own() string { return filepath.Join(t.run, "ca.crt") }

// caDigest names an authority by its bytes.
func caDigest(caPEM string) string {
	sum := sha256.Sum256([]byte(caPEM))
	return hex.EncodeToString(sum[:])
}

// checkCA parses what is to be trusted: one certificate of an authority and nothing else.
func checkCA(caPEM string) (*x509.Certificate, error) {
	block, rest := pem.Decode([]byte(caPEM))
	if block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, guest.Errorf(guest.CodeInvalid, "ca_pem is not one certificate in PEM form")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, guest.Errorf(guest.CodeInvalid, "ca_pem: %v", err)
	}
	if !cert.IsCA {
		return nil, guest.Errorf(guest.CodeInvalid, "ca_pem is not of a certificate authority")
	}
	return cert, nil
}

// install makes the image trust an authority, in place of one that was installed before. It may be repeated, and
// writes only what differs. An image without a store gets the file that the variables of environ name.
func (t trustStore) install(caPEM string) error {
	cert, err := checkCA(caPEM)
	if err != nil {
		return err
	}
	if err := replaceIfOther(t.own(), []byte(caPEM)); err != nil {
		return err
	}
	bundle, err := os.ReadFile(t.in(storeBundle))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	local := filepath.Join(localDir, storeName+".crt")
	before, err := os.ReadFile(t.in(local))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// The bundle before the local file, which is what an interrupted installation knows its predecessor by.
	if err := replaceIfOther(t.in(storeBundle), withAuthority(bundle, before, []byte(caPEM))); err != nil {
		return err
	}
	if err := os.MkdirAll(t.in(localDir), 0o755); err != nil {
		return err
	}
	if err := replaceIfOther(t.in(local), []byte(caPEM)); err != nil {
		return err
	}
	return t.link(cert, local)
}

// link makes the authority known to programs that look into the folder, under the names that Debian's own tool gives.
func (t trustStore) link(cert *x509.Certificate, local string) error {
	name, err := subjectHash(cert.RawSubject)
	if err != nil {
		return err
	}
	file := storeName + ".pem"
	if err := relink(local, t.in(filepath.Join(storeDir, file))); err != nil {
		return err
	}
	const enough = 100 // authorities whose names have one hash
	for i := range enough {
		path := t.in(filepath.Join(storeDir, fmt.Sprintf("%08x.%d", name, i)))
		target, err := os.Readlink(path)
		switch {
		case err == nil && target == file:
			return nil
		case errors.Is(err, fs.ErrNotExist):
			return os.Symlink(file, path)
		}
		// Another authority with the same hash has this number.
	}
	return fmt.Errorf("%s has no free name for %08x", storeDir, name)
}

// relink makes path a symbolic link to target.
func relink(target, path string) error {
	if have, err := os.Readlink(path); err == nil && have == target {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(target, path)
}

// withAuthority is a bundle with ca, and without what stood in its place before.
func withAuthority(bundle, before, ca []byte) []byte {
	if before = bytes.TrimSpace(before); len(before) > 0 && !bytes.Equal(before, bytes.TrimSpace(ca)) {
		bundle = bytes.ReplaceAll(bundle, before, nil)
	}
	if bytes.Contains(bundle, bytes.TrimSpace(ca)) {
		return bundle
	}
	out := append(bytes.TrimRight(bundle, "\n"), '\n')
	return append(append(out, bytes.TrimSpace(ca)...), '\n')
}

// replaceIfOther writes a file that all may read, unless it has these contents already: what is not written takes no
// room on the sandbox's disk, nor in its snapshots.
func replaceIfOther(path string, contents []byte) error {
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, contents) {
		return nil
	}
	return replaceFile(path, contents, 0o644)
}

// environ are the variables that tell programs with stores of their own whom to trust. They name the image's store
// where there is one now, so that a store that is installed later is used.
func (t trustStore) environ() map[string]string {
	bundle := t.own()
	if st, err := os.Stat(t.in(storeBundle)); err == nil && st.Mode().IsRegular() {
		bundle = storeBundle
	}
	return map[string]string{
		"SSL_CERT_FILE": bundle, "REQUESTS_CA_BUNDLE": bundle, "CURL_CA_BUNDLE": bundle, "GIT_SSL_CAINFO": bundle,
		"AWS_CA_BUNDLE": bundle,
		// Added to the roots that the program brings itself, so without the others.
		"NODE_EXTRA_CA_CERTS": t.own(),
	}
}

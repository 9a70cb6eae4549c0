package gate

import (
	"bytes"
	"container/list"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"sync"
	"time"
)

const (
	maxLeaves   = 256
	leafBack    = 365 * 24 * time.Hour // guests that were restored have old clocks
	leafAhead   = 30 * 24 * time.Hour  // together within the 398 days that some clients accept at most
	leafRenewal = 7 * 24 * time.Hour
)

// CA is a sandbox's certificate authority. Its key never enters the guest; the guest is given CertPEM to trust.
type CA struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  []byte

	mu      sync.Mutex
	leafKey *ecdsa.PrivateKey        // one for all leaves: making keys is what costs
	leaves  map[string]*list.Element // by name
	used    list.List                // of *leaf, the last used first
}

type leaf struct {
	name string
	cert *tls.Certificate
}

// NewCAKey gives the seed of a new CA: a secret, to be kept sealed.
func NewCAKey() (seed [32]byte) {
	_, _ = rand.Read(seed[:]) // never fails: it ends the program instead
	return seed
}

// CAFromSeed gives the CA of a seed. The same seed gives the same key and the same certificate, byte for byte, on every
// node: a process in a restored guest that loaded the certificate before it was captured goes on trusting.
func CAFromSeed(seed [32]byte) (*CA, error) {
	key, err := keyFromSeed(seed)
	if err != nil {
		return nil, fmt.Errorf("sandbox CA: %w", err)
	}
	public, err := key.PublicKey.Bytes()
	if err != nil {
		return nil, fmt.Errorf("sandbox CA: %w", err)
	}
	id := sha256.Sum256(public)
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(id[:16]),
		Subject: pkix.Name{Organization: []string{"Stillframe"},
			CommonName: "Stillframe sandbox " + hex.EncodeToString(id[:6])},
		// Fixed, because no node may have a clock of its own in this; the seed's secrecy is what limits the CA.
		NotBefore: time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2049, 12, 31, 23, 59, 59, 0, time.UTC),
		SubjectKeyId: id[:20], AuthorityKeyId: id[:20],
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign, SignatureAlgorithm: x509.ECDSAWithSHA256,
	}
	der, err := x509.CreateCertificate(nil, template, template, key.Public(), deterministic{key})
	if err != nil {
		return nil, fmt.Errorf("sandbox CA: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("sandbox CA: %w", err)
	}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("sandbox CA: %w", err)
	}
	return &CA{
		key: key, cert: cert, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		leafKey: leafKey, leaves: map[string]*list.Element{},
	}, nil
}

// keyFromSeed takes the first of a sequence of scalars that is one of the curve; all but one in 2^32 are.
func keyFromSeed(seed [32]byte) (*ecdsa.PrivateKey, error) {
	for i := range 256 {
		scalar, err := hkdf.Key(sha256.New, seed[:], nil, fmt.Sprintf("stillframe sandbox CA P-256 %d", i), 32)
		if err != nil {
			return nil, err
		}
		if key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar); err == nil {
			return key, nil
		}
	}
	return nil, fmt.Errorf("no key can be made of the seed")
}

// deterministic signs as RFC 6979 says, whatever randomness it is offered.
type deterministic struct{ key *ecdsa.PrivateKey }

func (d deterministic) Public() crypto.PublicKey { return d.key.Public() }

func (d deterministic) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return d.key.Sign(nil, digest, opts)
}

// CertPEM gives the certificate, for the guest to trust.
func (ca *CA) CertPEM() []byte { return bytes.Clone(ca.pem) }

// leaf gives a certificate for exactly this canonical name, made at need and kept for later.
func (ca *CA) leaf(name string, now time.Time) (*tls.Certificate, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if at, ok := ca.leaves[name]; ok {
		kept, _ := at.Value.(*leaf)
		if now.Add(leafRenewal).Before(kept.cert.Leaf.NotAfter) && now.After(kept.cert.Leaf.NotBefore) {
			ca.used.MoveToFront(at)
			return kept.cert, nil
		}
		ca.drop(at)
	}
	cert, err := ca.makeLeaf(name, now)
	if err != nil {
		return nil, fmt.Errorf("certificate for %s: %w", name, err)
	}
	ca.leaves[name] = ca.used.PushFront(&leaf{name: name, cert: cert})
	if ca.used.Len() > maxLeaves {
		ca.drop(ca.used.Back())
	}
	return cert, nil
}

func (ca *CA) drop(at *list.Element) {
	if old, ok := ca.used.Remove(at).(*leaf); ok {
		delete(ca.leaves, old.name)
	}
}

func (ca *CA) makeLeaf(name string, now time.Time) (*tls.Certificate, error) {
	var serial [16]byte
	_, _ = rand.Read(serial[:])
	serial[0] &= 0x7f
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial[:]),
		NotBefore:    now.Add(-leafBack), NotAfter: now.Add(leafAhead),
		DNSNames: []string{name}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	if len(name) <= 64 { // the longest common name that X.509 allows; clients look at DNSNames
		template.Subject = pkix.Name{CommonName: name}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, ca.leafKey.Public(), ca.key)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: ca.leafKey, Leaf: parsed}, nil
}

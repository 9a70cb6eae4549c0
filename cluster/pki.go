package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"stillframe/cluster/seal"
	"stillframe/fsm"
)

// fileCAKey lies beside the nodes' folders and goes to no node: who holds it can make members.
const fileCAKey = "ca.key"

// How long certificates are good. Clocks of nodes may differ: one is good from some time before it was made.
const (
	caLife   = 10 * 365 * 24 * time.Hour
	nodeLife = 2 * 365 * 24 * time.Hour
	skew     = time.Hour
)

// The URI that names a node in its certificate: stillframe://node/<id>.
const (
	uriScheme = "stillframe"
	uriHost   = "node"
)

var memberName = regexp.MustCompile(`\A[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\z`)

// checkMember makes sure that a member can be dialled, and that its id and name are fit for URLs and file names.
func checkMember(m Member) error {
	if !memberName.MatchString(m.Name) || !memberName.MatchString(string(m.ID)) {
		return fmt.Errorf("member %q: id and name must be 1 to 63 lower-case letters, digits and inner dashes", m.Name)
	}
	host, port, err := net.SplitHostPort(m.Addr)
	if err != nil {
		return fmt.Errorf("member %q: %w", m.Name, err)
	}
	if ip := net.ParseIP(host); host == "" || port == "" || (ip != nil && ip.IsUnspecified()) {
		return fmt.Errorf("member %q: %s is not an address that others can dial", m.Name, m.Addr)
	}
	return nil
}

// Init makes a new cluster: a CA in dir, and for each member a folder dir/NAME with its identity (see OpenIdentity),
// which is what goes to that member's host, and in each the keys for secrets of the state (see package seal). dir must
// not hold a cluster yet. Folders are readable by their owner only.
func Init(dir string, members []Member) error {
	if len(members) == 0 {
		return errors.New("make a cluster: no members")
	}
	for _, m := range members {
		if err := (memberList{Version: memberListVersion, ID: m.ID, Members: members}).check(); err != nil {
			return fmt.Errorf("make a cluster: %w", err)
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make a cluster: %w", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, fileCAKey)); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("make a cluster: %s holds one already", dir)
	}
	if err := seal.Make(dir); err != nil {
		return fmt.Errorf("make a cluster: %w", err)
	}
	ca, err := newCA()
	if err != nil {
		return fmt.Errorf("make a cluster: %w", err)
	}
	for _, m := range members {
		list := memberList{Version: memberListVersion, ID: m.ID, Members: members}
		if err := ca.writeMember(filepath.Join(dir, m.Name), list); err != nil {
			return fmt.Errorf("make a cluster: member %s: %w", m.Name, err)
		}
	}
	// Last, so that an Init which was cut off can be repeated.
	if err := ca.write(dir); err != nil {
		return fmt.Errorf("make a cluster: %w", err)
	}
	return nil
}

// Add makes the identity folder dir/NAME of a node that is to join the cluster whose CA is in dir. The node joins at
// its first start: it finds the others by the member lists of the folders that are in dir.
func Add(dir string, m Member) error {
	ca, err := readCA(dir)
	if err != nil {
		return fmt.Errorf("add a member: %w", err)
	}
	folder := filepath.Join(dir, m.Name)
	if _, err := os.Lstat(folder); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("add a member: there is a folder %s already", folder)
	}
	members, err := knownMembers(dir)
	if err != nil {
		return fmt.Errorf("add a member: %w", err)
	}
	list := memberList{Version: memberListVersion, ID: m.ID, Members: append(members, m), Join: true}
	if err := list.check(); err != nil {
		return fmt.Errorf("add a member: %w", err)
	}
	// Made beside its place, so that an Add which was cut off can be repeated.
	made := folder + ".tmp"
	if err := errors.Join(os.RemoveAll(made), ca.writeMember(made, list), os.Rename(made, folder)); err != nil {
		return fmt.Errorf("add a member: %w", err)
	}
	return nil
}

// knownMembers gathers the members of the folders in dir, each as its own folder has it.
func knownMembers(dir string) ([]Member, error) {
	lists, err := filepath.Glob(filepath.Join(dir, "*", fileMembers))
	if err != nil {
		return nil, err
	}
	var out []Member
	for _, path := range lists {
		raw, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		var list memberList
		if err := json.Unmarshal(raw, &list); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		for _, m := range list.Members {
			if m.ID == list.ID {
				out = append(out, m)
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s holds no folder of a member", dir)
	}
	return out, nil
}

// Renew makes a new certificate and key for the member whose identity folder is dir/name, with the CA in dir. A running
// node takes them up by itself.
func Renew(dir, name string) error {
	ca, err := readCA(dir)
	if err != nil {
		return fmt.Errorf("renew certificate: %w", err)
	}
	folder := filepath.Join(dir, name)
	raw, err := os.ReadFile(filepath.Join(folder, fileMembers))
	if err != nil {
		return fmt.Errorf("renew certificate: %w", err)
	}
	var list memberList
	if err := json.Unmarshal(raw, &list); err != nil {
		return fmt.Errorf("renew certificate: %s: %w", fileMembers, err)
	}
	if err := ca.writeCertificate(folder, list.ID); err != nil {
		return fmt.Errorf("renew certificate: %w", err)
	}
	return nil
}

// authority is a CA with its key.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newCA() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "Stillframe cluster CA"},
		NotBefore: now.Add(-skew), NotAfter: now.Add(caLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &authority{cert, key}, err
}

func readCA(dir string) (*authority, error) {
	certPEM, err := readPEM(filepath.Join(dir, fileCA))
	if err != nil {
		return nil, err
	}
	keyPEM, err := readPEM(filepath.Join(dir, fileCAKey))
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(certPEM)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", fileCA, err)
	}
	key, err := x509.ParseECPrivateKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", fileCAKey, err)
	}
	return &authority{cert, key}, nil
}

func readPEM(path string) ([]byte, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM", path)
	}
	return block.Bytes, nil
}

func (ca *authority) certPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})
}

func (ca *authority) write(dir string) error {
	if err := writeFile(filepath.Join(dir, fileCA), ca.certPEM(), 0o644); err != nil {
		return err
	}
	return writeKey(filepath.Join(dir, fileCAKey), ca.key)
}

// RotateSecrets adds a key for the secrets of the state to the cluster whose files are in dir, and to the folders of
// its members there. Nodes on other hosts get it with their folder's seal.FileName, for which there is time until the
// key is used. It gives the key's id and that time. One that was cut off is finished by the next.
func RotateSecrets(dir string, useAfter time.Time) (id string, from time.Time, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", time.Time{}, fmt.Errorf("rotate the keys for secrets: %w", err)
	}
	var folders []string
	for _, e := range entries {
		folder := filepath.Join(dir, e.Name())
		if _, err := os.Stat(filepath.Join(folder, fileMembers)); err == nil {
			folders = append(folders, folder)
		}
	}
	if len(folders) == 0 {
		return "", time.Time{}, fmt.Errorf("rotate the keys for secrets: %s holds no cluster", dir)
	}
	if id, from, err = seal.Rotate(dir, folders, useAfter); err != nil {
		err = fmt.Errorf("rotate the keys for secrets: %w", err)
	}
	return id, from, err
}

// writeMember writes a member's folder, which lies beside the CA's files.
func (ca *authority) writeMember(dir string, list memberList) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	raw, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return err
	}
	_, err = seal.Copy(filepath.Dir(dir), dir)
	return errors.Join(err,
		writeFile(filepath.Join(dir, fileMembers), append(raw, '\n'), 0o644),
		writeFile(filepath.Join(dir, fileCA), ca.certPEM(), 0o644),
		ca.writeCertificate(dir, list.ID),
	)
}

// writeCertificate makes a new key and certificate. A reader between the two renames finds a pair that does not match,
// and looks again at the next connection.
func (ca *authority) writeCertificate(dir string, id fsm.NodeID) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "Stillframe node " + string(id)},
		NotBefore: now.Add(-skew), NotAfter: now.Add(nodeLife),
		URIs:        []*url.URL{{Scheme: uriScheme, Host: uriHost, Path: "/" + string(id)}},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		return err
	}
	if err := writeKey(filepath.Join(dir, fileKey), key); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, fileCert), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return writeFile(path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}

func serial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: the runtime aborts instead
	b[0] &= 0x7f           // positive
	return new(big.Int).SetBytes(b[:])
}

// nodeOf reads the node's id from a certificate.
func nodeOf(cert *x509.Certificate) (fsm.NodeID, error) {
	if len(cert.URIs) != 1 || cert.URIs[0].Scheme != uriScheme || cert.URIs[0].Host != uriHost ||
		len(cert.URIs[0].Path) < 2 {
		return "", errors.New("the certificate names no node")
	}
	return fsm.NodeID(cert.URIs[0].Path[1:]), nil
}

package cluster

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"stillframe/cluster/seal"
	"stillframe/fsm"
)

// The files of a node's identity folder.
const (
	fileMembers = "cluster.json"
	fileCA      = "ca.crt" // one certificate or several: a change of CA has both for a while
	fileCert    = "node.crt"
	fileKey     = "node.key"
)

// Member is a node of the cluster as its identity folders list it.
type Member struct {
	ID   fsm.NodeID `json:"id"`   // made once, a UUID; never changes
	Name string     `json:"name"` // for people
	Addr string     `json:"addr"` // host:port for other nodes
}

// memberList is the content of cluster.json: who this node is, and who the members are.
type memberList struct {
	Version int        `json:"version"`
	ID      fsm.NodeID `json:"id"`
	Members []Member   `json:"members"`
	// Join: the node was made for a cluster that there is. It founds none, whatever the others say.
	Join bool `json:"join,omitempty"`
}

const memberListVersion = 1

// Identity is what a node shows to others and knows them by: a folder with its certificate, the CAs it trusts and the
// members' addresses. Files that change are read again, before the next connection; what cannot be read then leaves the
// last good content in force.
type Identity struct {
	dir string
	log *slog.Logger

	mu   sync.Mutex // guards what follows
	read identityFiles
	seen map[string]stamp // of the files when they were last read, well or not
}

// identityFiles is a folder's content.
type identityFiles struct {
	list memberList
	cert *tls.Certificate
	cas  *x509.CertPool
}

// stamp tells one version of a file from the next.
type stamp struct {
	size    int64
	changed time.Time
}

// OpenIdentity reads a folder that Init has written. The certificate must be of the node that the member list names.
func OpenIdentity(dir string, log *slog.Logger) (*Identity, error) {
	id := &Identity{dir: dir, log: log}
	var err error
	if id.seen, err = id.stamps(); err == nil {
		id.read, err = readIdentity(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("identity folder %s: %w", dir, err)
	}
	return id, nil
}

// SecretsFile is the path of the keys for secrets of the state.
func (id *Identity) SecretsFile() string { return filepath.Join(id.dir, seal.FileName) }

// ID is the node's own id. It never changes.
func (id *Identity) ID() fsm.NodeID { return id.current().list.ID }

// Self is this node's own entry of the member list.
func (id *Identity) Self() Member {
	m, _ := id.Member(id.ID())
	return m
}

// Members are the nodes of the cluster as listed now.
func (id *Identity) Members() []Member { return slices.Clone(id.current().list.Members) }

// Member finds a node in the list.
func (id *Identity) Member(node fsm.NodeID) (Member, bool) {
	for _, m := range id.current().list.Members {
		if m.ID == node {
			return m, true
		}
	}
	return Member{}, false
}

// Voters is the member list as Config.Voters wants it: empty for a node that was made for a cluster that there is.
func (id *Identity) Voters() []Server {
	if id.current().list.Join {
		return nil
	}
	var voters []Server
	for _, m := range id.Members() {
		voters = append(voters, Server{ID: m.ID, Addr: m.Addr})
	}
	return voters
}

// ValidUntil is when the node's certificate expires.
func (id *Identity) ValidUntil() time.Time { return id.current().cert.Leaf.NotAfter }

// current gives the folder's content, read anew when a file has changed.
func (id *Identity) current() identityFiles {
	id.mu.Lock()
	defer id.mu.Unlock()
	seen, err := id.stamps()
	if err != nil || sameStamps(seen, id.seen) {
		return id.read // a file that is missing just now is being replaced
	}
	id.seen = seen
	next, err := readIdentity(id.dir)
	if err == nil && next.list.ID != id.read.list.ID {
		err = fmt.Errorf("it is now of another node, %s", next.list.ID)
	}
	if err != nil {
		id.log.Error("changed identity folder not taken; the last good content stays in force", "folder", id.dir,
			"error", err)
		return id.read
	}
	id.log.Info("identity folder read again", "folder", id.dir, "valid_until", next.cert.Leaf.NotAfter)
	id.read = next
	return id.read
}

func (id *Identity) stamps() (map[string]stamp, error) {
	out := map[string]stamp{}
	for _, name := range []string{fileMembers, fileCA, fileCert, fileKey} {
		st, err := os.Stat(filepath.Join(id.dir, name))
		if err != nil {
			return nil, err
		}
		out[name] = stamp{st.Size(), st.ModTime()}
	}
	return out, nil
}

func sameStamps(a, b map[string]stamp) bool {
	for name, s := range a {
		if t, ok := b[name]; !ok || s.size != t.size || !s.changed.Equal(t.changed) {
			return false
		}
	}
	return true
}

func readIdentity(dir string) (identityFiles, error) {
	var f identityFiles
	raw, err := os.ReadFile(filepath.Join(dir, fileMembers))
	if err != nil {
		return f, err
	}
	if err := json.Unmarshal(raw, &f.list); err != nil {
		return f, fmt.Errorf("%s: %w", fileMembers, err)
	}
	if err := f.list.check(); err != nil {
		return f, fmt.Errorf("%s: %w", fileMembers, err)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, fileCert), filepath.Join(dir, fileKey))
	if err != nil {
		return f, err
	}
	f.cert = &pair
	pem, err := os.ReadFile(filepath.Join(dir, fileCA))
	if err != nil {
		return f, err
	}
	f.cas = x509.NewCertPool()
	if !f.cas.AppendCertsFromPEM(pem) {
		return f, fmt.Errorf("%s holds no certificate", fileCA)
	}
	named, err := nodeOf(pair.Leaf)
	if err != nil {
		return f, fmt.Errorf("%s: %w", fileCert, err)
	}
	if named != f.list.ID {
		return f, fmt.Errorf("%s is of node %s, %s of node %s", fileCert, named, fileMembers, f.list.ID)
	}
	return f, nil
}

func (l memberList) check() error {
	if l.Version != memberListVersion {
		return fmt.Errorf("version %d is not known to this program", l.Version)
	}
	self := false
	ids, names, addrs := map[fsm.NodeID]bool{}, map[string]bool{}, map[string]bool{}
	for _, m := range l.Members {
		if err := checkMember(m); err != nil {
			return err
		}
		if ids[m.ID] || names[m.Name] || (addrs[m.Addr] && !freePort(m.Addr)) {
			return fmt.Errorf("member %q: its id, name or address is another's too", m.Name)
		}
		ids[m.ID], names[m.Name], addrs[m.Addr] = true, true, true
		self = self || m.ID == l.ID
	}
	if !self {
		return errors.New("the node itself is not among the members")
	}
	return nil
}

// freePort tells whether an address leaves the port to the kernel, as that of a cluster of one may.
func freePort(addr string) bool {
	_, port, err := net.SplitHostPort(addr)
	return err == nil && port == "0"
}

// writeFile writes a file whole or not at all.
func writeFile(path string, content []byte, mode fs.FileMode) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, content, mode); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

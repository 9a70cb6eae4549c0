package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"stillframe/fsm"
)

// A sealed value is printable: prefix, the key's id, a colon, then the nonce and the sealed bytes in base64.
const (
	prefix   = "sealed1:"
	maxKeyID = 32
)

// Ring seals and opens with the keys of a file. A file that changes is read again before the next use; what cannot be
// read then leaves the last good keys in force. It is safe for use by several goroutines.
type Ring struct {
	path string
	log  *slog.Logger

	mu   sync.Mutex // guards what follows
	keys keys
	seen stamp
}

// keys is a file's content, ready for use.
type keys struct {
	request [keyBytes]byte
	all     []usableKey // the newest first
}

type usableKey struct {
	id       string
	aead     cipher.AEAD
	useAfter time.Time
}

// stamp tells one version of a file from the next.
type stamp struct {
	size    int64
	changed time.Time
}

// Open reads a file of keys.
func Open(path string, log *slog.Logger) (*Ring, error) {
	r := &Ring{path: path, log: log}
	seen, err := stampOf(path)
	if err == nil {
		r.keys, err = readKeys(path)
	}
	if err != nil {
		return nil, fmt.Errorf("keys for secrets: %w", err)
	}
	r.seen = seen
	return r, nil
}

func stampOf(path string) (stamp, error) {
	st, err := os.Stat(path)
	if err != nil {
		return stamp{}, err
	}
	return stamp{st.Size(), st.ModTime()}, nil
}

func readKeys(path string) (keys, error) {
	f, _, err := readFile(path)
	if err != nil {
		return keys{}, err
	}
	out := keys{request: [keyBytes]byte(f.RequestKey)}
	for _, k := range f.Keys {
		block, err := aes.NewCipher(k.Key)
		if err != nil {
			return keys{}, err
		}
		aead, err := cipher.NewGCM(block)
		if err != nil {
			return keys{}, err
		}
		out.all = append(out.all, usableKey{k.ID, aead, k.UseAfter})
	}
	return out, nil
}

// current gives the keys, read anew when the file has changed.
func (r *Ring) current() keys {
	r.mu.Lock()
	defer r.mu.Unlock()
	seen, err := stampOf(r.path)
	if err != nil || (seen.size == r.seen.size && seen.changed.Equal(r.seen.changed)) {
		return r.keys // a file that is missing just now is being replaced
	}
	r.seen = seen
	next, err := readKeys(r.path)
	if err != nil {
		r.log.Error("changed keys for secrets not taken; the last good ones stay in force", "error", err)
		return r.keys
	}
	r.log.Info("keys for secrets read again", "newest", next.all[0].id, "keys", len(next.all))
	r.keys = next
	return r.keys
}

// sealing is the newest key that is in use.
func (k keys) sealing(now time.Time) usableKey {
	for _, key := range k.all {
		if !key.useAfter.After(now) {
			return key
		}
	}
	return k.all[len(k.all)-1]
}

func (k keys) find(id string) (usableKey, bool) {
	for _, key := range k.all {
		if key.id == id {
			return key, true
		}
	}
	return usableKey{}, false
}

// SealingKey is the id of the key with which values are sealed now.
func (r *Ring) SealingKey() string { return r.current().sealing(time.Now()).id }

// KeyIDs are the ids of the keys that the node has, the newest first.
func (r *Ring) KeyIDs() []string {
	var ids []string
	for _, k := range r.current().all {
		ids = append(ids, k.id)
	}
	return ids
}

// RequestHash makes of the hash of a request one that says nothing about secrets in it to who has not the key. It is
// the same on every node.
func (r *Ring) RequestHash(hash [32]byte) [32]byte {
	k := r.current()
	mac := hmac.New(sha256.New, k.request[:])
	mac.Write(hash[:])
	return [32]byte(mac.Sum(nil))
}

// place is what a value is sealed for: organization, purpose and what else tells one place of a value from another.
type place []string

func headerPlace(org fsm.OrgID, domain, header string) place {
	return place{string(org), "header", strings.ToLower(domain), strings.ToLower(header)}
}

func caPlace(org fsm.OrgID) place { return place{string(org), "ca"} }

// bind is the data that is authenticated with a value: every part with its length, so that no two places run together.
func (p place) bind(keyID string) []byte {
	var out []byte
	for _, part := range append([]string{prefix, keyID}, p...) {
		out = binary.BigEndian.AppendUint32(out, uint32(len(part)))
		out = append(out, part...)
	}
	return out
}

func (k usableKey) seal(p place, value []byte) string {
	nonce := make([]byte, k.aead.NonceSize())
	_, _ = rand.Read(nonce) // never fails: the runtime aborts instead
	sealed := k.aead.Seal(nonce, nonce, value, p.bind(k.id))
	return prefix + k.id + ":" + base64.RawStdEncoding.EncodeToString(sealed)
}

// KeyOf is the id of the key with which a value was sealed; empty for what is no sealed value.
func KeyOf(sealed string) string {
	rest, ok := strings.CutPrefix(sealed, prefix)
	if !ok {
		return ""
	}
	id, _, ok := strings.Cut(rest, ":")
	if !ok || len(id) > maxKeyID {
		return ""
	}
	return id
}

var errDamaged = fsm.Errorf(fsm.KindInternal,
	"a sealed value cannot be opened: it is damaged, or was sealed for another place")

// open is total: whatever the state holds, it gives the value or an error without one.
func (k keys) open(p place, sealed string) ([]byte, error) {
	id := KeyOf(sealed)
	if id == "" {
		return nil, errDamaged
	}
	key, ok := k.find(id)
	if !ok {
		return nil, fsm.Errorf(fsm.KindUnavailable, "this node has no key %s, with which a secret was sealed: its file %s "+
			"is older than the others'", printable(id), FileName)
	}
	raw, err := base64.RawStdEncoding.Strict().DecodeString(sealed[len(prefix)+len(id)+1:])
	if n := key.aead.NonceSize(); err == nil && len(raw) >= n {
		value, err := key.aead.Open(nil, raw[:n], raw[n:], p.bind(id))
		if err == nil {
			return value, nil
		}
	}
	return nil, errDamaged
}

// printable keeps odd bytes of a damaged id out of messages.
func printable(id string) string {
	return strings.Map(func(r rune) rune {
		if r < '!' || r > '~' {
			return '?'
		}
		return r
	}, id)
}

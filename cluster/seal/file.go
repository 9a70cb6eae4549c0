package seal

import (
	"bytes"
	"crypto/rand"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// FileName is what a file of keys is called: in a node's identity folder, and where those folders are made.
const FileName = "secrets.json"

const fileVersion = 1

// file is the content of a file of keys.
type file struct {
	Version int `json:"version"`
	// RequestKey makes the hash of a request useless for guessing the secrets in it. It never changes, since hashes under
	// another could not be compared.
	RequestKey []byte `json:"request_key"`
	Keys       []key  `json:"keys"` // the newest first
}

type key struct {
	ID  string `json:"id"`
	Key []byte `json:"key"` // 32 bytes
	// UseAfter is from when on values are sealed with this key. Until then there is time to bring it to every node.
	UseAfter time.Time `json:"use_after"`
}

const keyBytes = 32

func newKey(useAfter time.Time) key {
	var id [5]byte
	_, _ = rand.Read(id[:]) // never fails: the runtime aborts instead
	encoding := base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567")
	return key{ID: "k-" + encoding.EncodeToString(id[:]), Key: randomKey(), UseAfter: useAfter.UTC().Truncate(time.Second)}
}

func randomKey() []byte {
	b := make([]byte, keyBytes)
	_, _ = rand.Read(b)
	return b
}

func (f file) check() error {
	if f.Version != fileVersion {
		return fmt.Errorf("version %d is not known to this program", f.Version)
	}
	if len(f.RequestKey) != keyBytes || len(f.Keys) == 0 {
		return errors.New("a key is missing")
	}
	ids := map[string]bool{}
	for _, k := range f.Keys {
		if k.ID == "" || len(k.ID) > maxKeyID || ids[k.ID] || len(k.Key) != keyBytes {
			return fmt.Errorf("key %q is malformed or there twice", k.ID)
		}
		ids[k.ID] = true
	}
	return nil
}

// readFile reads a file of keys. Its errors hold nothing of the content.
func readFile(path string) (file, []byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return file{}, nil, err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return file{}, nil, fmt.Errorf("%s can be read by others (mode %04o): chmod 600 it, and rotate its keys if "+
			"others may have", path, st.Mode().Perm())
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return file{}, nil, err
	}
	var f file
	if json.Unmarshal(raw, &f) != nil { // its error could quote a key
		return file{}, nil, fmt.Errorf("%s is not a file of keys", path)
	}
	if err := f.check(); err != nil {
		return file{}, nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, raw, nil
}

// write puts a file of keys in place whole or not at all, and on the disk: what is sealed with a key that a power cut
// takes away is lost.
func write(path string, raw []byte) error {
	tmp := path + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err // what an earlier run left could have another mode
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (f file) encode() ([]byte, error) {
	raw, err := json.MarshalIndent(f, "", "  ")
	return append(raw, '\n'), err
}

// Make sees to the file of keys in dir, from which those of the nodes are copied: made with one key if there is none.
func Make(dir string) error {
	path := filepath.Join(dir, FileName)
	if _, _, err := readFile(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f := file{Version: fileVersion, RequestKey: randomKey(), Keys: []key{newKey(time.Unix(0, 0))}}
	raw, err := f.encode()
	if err != nil {
		return err
	}
	return write(path, raw)
}

// Copy brings the file of keys of dir to a node's identity folder, and tells whether that changed it. A folder whose
// file has a key that dir's has not is left as it is: what was sealed with that key would be lost.
func Copy(dir, folder string) (changed bool, err error) {
	from, raw, err := readFile(filepath.Join(dir, FileName))
	if err != nil {
		return false, err
	}
	path := filepath.Join(folder, FileName)
	to, was, err := readFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return true, write(path, raw)
	case err != nil:
		return false, err
	case bytes.Equal(raw, was):
		return false, nil
	}
	for _, k := range to.Keys {
		if !from.has(k.ID) {
			return false, fmt.Errorf("%s has key %s, which %s has not", path, k.ID, filepath.Join(dir, FileName))
		}
	}
	return true, write(path, raw)
}

func (f file) has(id string) bool {
	for _, k := range f.Keys {
		if k.ID == id {
			return true
		}
	}
	return false
}

// Rotate adds a key to dir's file and brings the file to the nodes' folders. One that was cut off is finished, without
// another key, by the next. It gives the id of the newest key and from when on it is used.
func Rotate(dir string, folders []string, useAfter time.Time) (id string, from time.Time, err error) {
	if err := Make(dir); err != nil {
		return "", time.Time{}, err
	}
	path := filepath.Join(dir, FileName)
	f, _, err := readFile(path)
	if err != nil {
		return "", time.Time{}, err
	}
	unfinished := false
	for _, folder := range folders {
		changed, err := Copy(dir, folder)
		if err != nil {
			return "", time.Time{}, err
		}
		unfinished = unfinished || changed
	}
	if !unfinished {
		f.Keys = append([]key{newKey(useAfter)}, f.Keys...)
		raw, err := f.encode()
		if err != nil {
			return "", time.Time{}, err
		}
		if err := write(path, raw); err != nil {
			return "", time.Time{}, err
		}
		for _, folder := range folders {
			if _, err := Copy(dir, folder); err != nil {
				return "", time.Time{}, err
			}
		}
	}
	return f.Keys[0].ID, f.Keys[0].UseAfter, nil
}

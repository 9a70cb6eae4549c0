package cluster

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"

	"stillframe/cluster/seal"
	"stillframe/fsm"
)

// fileSeed, in an identity folder, is the backup that the new cluster starts from.
const fileSeed = "restore.backup"

// seedKey is where a node's log says which backup it was started from: the digest at the end of that file.
var seedKey = []byte("stillframe-seed")

// seedTerm is the term of the first entry of a cluster, made new or from a backup.
const seedTerm = 1

// Restore makes a new cluster, as Init does, that starts from a backup: every member has the backup in its identity
// folder, and takes it into its log when it starts with an empty one, all of them to the same state (see
// fsm.State.Rehome). Members that have the id of a node in the backup stand for that node. secrets is a folder with the
// old cluster's keys for what is sealed in the state (see package seal); empty: it is given up, and new keys are made.
// Repeating a Restore that was cut off completes it.
func Restore(dir string, members []Member, backup, secrets string) error {
	b, err := ReadBackup(backup)
	if err != nil {
		return err
	}
	if _, err := b.rehomed(members); err != nil {
		return fmt.Errorf("restore backup %s: %w", backup, err)
	}
	if _, err := os.Lstat(filepath.Join(dir, fileCAKey)); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("restore backup %s: %s holds a cluster already", backup, dir)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("restore backup %s: %w", backup, err)
	}
	if secrets != "" {
		if _, err := seal.Copy(secrets, dir); err != nil {
			return fmt.Errorf("restore backup %s: %w", backup, err)
		}
	}
	// Before the certificates, without which nobody can start: no member may start empty.
	for _, m := range members {
		if err := checkMember(m); err != nil {
			return fmt.Errorf("restore backup %s: %w", backup, err)
		}
		folder := filepath.Join(dir, m.Name)
		if err := os.MkdirAll(folder, 0o700); err != nil {
			return fmt.Errorf("restore backup %s: %w", backup, err)
		}
		if err := copyFile(filepath.Join(folder, fileSeed), backup); err != nil {
			return fmt.Errorf("restore backup %s: %w", backup, err)
		}
	}
	return Init(dir, members)
}

// copyFile makes a copy that is there whole or not at all.
func copyFile(to, from string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // read only
	out, err := os.OpenFile(to+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err = errors.Join(err, out.Sync(), out.Close()); err != nil {
		return err
	}
	return os.Rename(to+".tmp", to)
}

// rehomed is the backup's state as the members take it over.
func (b *Backup) rehomed(members []Member) (*fsm.State, error) {
	var ids []fsm.NodeID
	for _, m := range members {
		ids = append(ids, m.ID)
	}
	return b.state.Rehome(fsm.At(b.Header.MadeAt), ids)
}

// seed starts an empty log from the backup in the identity folder, where there is one. A log that is not empty must
// have been started from that very backup: one that was not is another cluster's, and taking part with it would mix two
// histories.
func (n *Node) seed(logs raft.LogStore, snaps raft.SnapshotStore) error {
	path := filepath.Join(n.cfg.Identity.dir, fileSeed)
	digest, err := seedDigest(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("backup to start from: %w", err)
	}
	from, err := n.store.Get(seedKey)
	if err != nil && err.Error() != errNoKey {
		return err
	}
	empty, err := emptyLog(logs, snaps)
	switch {
	case err != nil:
		return err
	case empty:
		return n.plant(path, digest, snaps)
	case !bytes.Equal(from, digest):
		return fmt.Errorf("the log is not empty and was not started from %s: a backup is restored into a new cluster, "+
			"whose nodes have empty data folders or at least no log in them", path)
	}
	return nil
}

// errNoKey is all that the store tells of a key that is not there.
const errNoKey = "not found"

func emptyLog(logs raft.LogStore, snaps raft.SnapshotStore) (bool, error) {
	last, err := logs.LastIndex()
	if err != nil {
		return false, err
	}
	kept, err := snaps.List()
	return last == 0 && len(kept) == 0, err
}

// seedDigest reads the digest at the end of a backup.
func seedDigest(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	if _, err := f.Seek(-sha256.Size, io.SeekEnd); err != nil {
		return nil, fmt.Errorf("%w: it is cut short", errDamagedBackup)
	}
	digest := make([]byte, sha256.Size)
	_, err = io.ReadFull(f, digest)
	return digest, err
}

// plant writes the first snapshot of the log. The snapshot is what ends it: cut off before, it is done again.
func (n *Node) plant(path string, digest []byte, snaps raft.SnapshotStore) error {
	b, err := ReadBackup(path)
	if err != nil {
		return err
	}
	state, err := b.rehomed(n.cfg.Identity.Members())
	if err != nil {
		return err
	}
	if err := n.store.Set(seedKey, digest); err != nil {
		return err
	}
	if err := n.store.SetUint64([]byte("CurrentTerm"), seedTerm); err != nil { // as the library's bootstrap does
		return err
	}
	index := b.Header.Position + 1 // past what any index of the old cluster's state could be confused with
	sink, err := snaps.Create(raft.SnapshotVersionMax, index, seedTerm, n.members(), index, n.trans)
	if err != nil {
		return err
	}
	n.log.Info("starting from a backup", "made_at", b.Header.MadeAt, "position", b.Header.Position,
		"sandboxes", b.Header.Sandboxes, "snapshots", b.Header.Snapshots)
	return snapshot{&view{state: state, touched: index}}.Persist(sink)
}

package hypervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"stillframe/fsm"
)

// Peers reaches the other nodes of the cluster.
type Peers interface {
	// SnapshotFile opens a file of a snapshot on the node that holds it; what is read is what SendSnapshotFile wrote
	// there. The caller closes it. A stream that stalls fails by itself. Errors of kind unavailable name the node.
	SnapshotFile(ctx context.Context, holder fsm.NodeID, id fsm.SnapshotID, name string) (io.ReadCloser, error)
}

// copies are this node's copies of snapshots that other nodes hold, made when one is restored here and kept until the
// snapshot is deleted, so that the next restore need not fetch it again. A copy's folder has its final name only when
// every file is whole, verified by the manifest in the log, and synced. A snapshot is not deleted while a sandbox that
// was restored from it exists, so that no copy goes while it is read; busy keeps making and removing one apart.
type copies struct {
	dir string

	mu   sync.Mutex
	busy map[fsm.SnapshotID]*turn
	have map[fsm.SnapshotID]bool // folders with a final name
}

// turn lets one at a time use a copy. It is there while anybody has it or waits for it.
type turn struct {
	free  chan struct{} // of one element, which whoever has the turn has taken
	users int
}

func newCopies(dir string) *copies {
	return &copies{dir: dir, busy: map[fsm.SnapshotID]*turn{}, have: map[fsm.SnapshotID]bool{}}
}

func (c *copies) path(id fsm.SnapshotID) string { return filepath.Join(c.dir, string(id)) }

// claim waits until nobody else makes or removes a copy.
func (c *copies) claim(ctx context.Context, id fsm.SnapshotID) (release func(), err error) {
	c.mu.Lock()
	t := c.busy[id]
	if t == nil {
		t = &turn{free: make(chan struct{}, 1)}
		t.free <- struct{}{}
		c.busy[id] = t
	}
	t.users++
	c.mu.Unlock()
	leave := func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(c.busy, id)
		}
	}
	select {
	case <-t.free:
		return func() { t.free <- struct{}{}; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

func (c *copies) set(id fsm.SnapshotID, there bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if there {
		c.have[id] = true
	} else {
		delete(c.have, id)
	}
}

func (c *copies) list() []fsm.SnapshotID {
	c.mu.Lock()
	defer c.mu.Unlock()
	var ids []fsm.SnapshotID
	for id := range c.have {
		ids = append(ids, id)
	}
	return ids
}

// load finds the copies of an earlier run and removes what that run did not finish.
func (c *copies) load() error {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.Contains(e.Name(), ".") {
			err = errors.Join(err, os.RemoveAll(filepath.Join(c.dir, e.Name())))
			continue
		}
		c.set(fsm.SnapshotID(e.Name()), true)
	}
	return err
}

// remove gives up a copy. The folder loses its final name first.
func (c *copies) remove(id fsm.SnapshotID) error {
	c.set(id, false)
	doomed := c.path(id) + ".gone"
	if err := os.RemoveAll(doomed); err != nil {
		return err
	}
	if err := os.Rename(c.path(id), doomed); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.RemoveAll(doomed)
}

// dropCopies removes the copies of snapshots that are no more. It is called at every change of the state, and mostly
// finds nothing to do.
func (o *Owner) dropCopies(ctx context.Context, state *fsm.State) {
	for _, id := range o.copies.list() {
		if sn, ok := state.Snapshot(id); ok && sn.State == fsm.SnapshotReady && sn.Owner != o.cfg.Node {
			continue
		}
		o.copies.set(id, false) // nobody else is sent for it
		o.workers.Go(func() {
			release, err := o.copies.claim(ctx, id)
			if err != nil {
				return // the next start removes it
			}
			defer release()
			if err := o.copies.remove(id); err != nil {
				o.log.Error("a copy of a deleted snapshot could not be removed; the next start tries again", "snapshot", id,
					"error", err)
				return
			}
			o.log.Info("copy of a deleted snapshot removed", "snapshot", id)
		})
	}
}

// localCopy sees to a copy of a snapshot on this node and gives its files. It may be killed anywhere: what is not whole
// has another name, and is made anew.
func (o *Owner) localCopy(ctx context.Context, sn fsm.Snapshot) (snapshotFiles, error) {
	release, err := o.copies.claim(ctx, sn.ID)
	if err != nil {
		return snapshotFiles{}, err
	}
	defer release()
	final := o.copies.path(sn.ID)
	if _, err := readManifest(final); err == nil {
		o.copies.set(sn.ID, true)
		return snapshotFiles{final}, nil
	}
	tmp := snapshotFiles{final + ".tmp"}
	if err := errors.Join(os.RemoveAll(tmp.dir), o.copies.remove(sn.ID)); err != nil {
		return snapshotFiles{}, err
	}
	if err := o.fetch(ctx, sn, tmp); err != nil {
		return snapshotFiles{}, errors.Join(err, os.RemoveAll(tmp.dir))
	}
	if err := o.files.Publish(tmp.dir, final); err != nil {
		return snapshotFiles{}, errors.Join(err, os.RemoveAll(tmp.dir))
	}
	o.copies.set(sn.ID, true)
	return snapshotFiles{final}, nil
}

// fetch makes the files of a snapshot in a new folder.
func (o *Owner) fetch(ctx context.Context, sn fsm.Snapshot, to snapshotFiles) error {
	if o.cfg.Peers == nil {
		return fsm.Errorf(fsm.KindUnavailable, "snapshot %s is on another node, and this one has no way to any", sn.Name)
	}
	need := int64(minimumSpace)
	for _, f := range sn.Manifest.Files {
		need += f.Stored
	}
	if err := o.files.EnsureSpace(o.copies.dir, need); err != nil {
		return err
	}
	if err := os.Mkdir(to.dir, 0o700); err != nil {
		return err
	}
	for _, f := range sn.Manifest.Files {
		if err := o.fetchFile(ctx, sn, f, to.dir); err != nil {
			return err
		}
	}
	raw, err := json.MarshalIndent(sn.Manifest, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(to.manifest(), raw, 0o600)
}

func (o *Owner) fetchFile(ctx context.Context, sn fsm.Snapshot, f fsm.File, dir string) error {
	if f.Name != filepath.Base(f.Name) || !slices.Contains(dataFiles, f.Name) {
		return fsm.Errorf(fsm.KindInternal, "the manifest of snapshot %s names a file that no snapshot has", sn.Name)
	}
	body, err := o.cfg.Peers.SnapshotFile(ctx, sn.Owner, sn.ID, f.Name)
	if err != nil {
		return err
	}
	defer body.Close() //nolint:errcheck // read to its end or given up
	path := filepath.Join(dir, f.Name)
	stats, err := o.files.Receive(ctx, body, path, f.Size)
	var known *fsm.Error
	if errors.As(err, &known) {
		return err
	}
	if err != nil {
		return fsm.Wrap(fsm.KindUnavailable, err, "snapshot %s could not be fetched from the node that holds it", sn.Name)
	}
	digest, err := o.digestOf(ctx, path, f.Digest)
	if err != nil {
		return err
	}
	if digest != f.Digest {
		return fsm.Errorf(fsm.KindInternal, "file %s of snapshot %s is not what was taken: the node that holds it has "+
			"damaged data", f.Name, sn.Name)
	}
	o.log.Info("file of a snapshot fetched", "snapshot", sn.ID, "file", f.Name, "bytes", stats.Bytes,
		"took", stats.Duration)
	return nil
}

// digestOf digests a file in the way in which like was made.
func (o *Owner) digestOf(ctx context.Context, path, like string) (string, error) {
	if strings.HasPrefix(like, "sha256:") {
		f, err := describeSmall(filepath.Dir(path), filepath.Base(path))
		return f.Digest, err
	}
	return o.files.Digest(ctx, path)
}

// SendSnapshotFile writes a file of a snapshot that this node holds, for another node to restore it there.
func (o *Owner) SendSnapshotFile(ctx context.Context, id fsm.SnapshotID, name string, w io.Writer) error {
	sn, ok := o.cfg.Log.State().Snapshot(id)
	if !ok || sn.Owner != o.cfg.Node || sn.State != fsm.SnapshotReady {
		return fsm.Errorf(fsm.KindNotFound, "this node holds no snapshot %s", id)
	}
	if !slices.Contains(dataFiles, name) {
		return fsm.Errorf(fsm.KindNotFound, "snapshots have no file %q", name)
	}
	stats, err := o.files.Send(ctx, filepath.Join(o.snapshotDir(id), name), w)
	if err != nil {
		return fmt.Errorf("send %s of snapshot %s: %w", name, id, err)
	}
	o.log.Info("file of a snapshot sent", "snapshot", id, "file", name, "bytes", stats.Bytes, "took", stats.Duration)
	return nil
}

package cluster

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"time"

	"stillframe/fsm"
)

// A backup is backupMagic, its format and the length of its header in four bytes each, the header as JSON, the state's
// stream, and the SHA-256 of all that came before. The state's stream has a digest of its own; the backup's covers the
// header too, and tells a backup that was cut off.
var backupMagic = []byte("stillframe backup\n")

const (
	backupFormat    = 1
	maxBackupHeader = 1 << 20
)

// ErrNewerBackup says that a backup is of a program newer than this one.
var ErrNewerBackup = errors.New("the backup was made by a newer program")

// errDamagedBackup says that a file is no backup, or not the whole of one.
var errDamagedBackup = errors.New("damaged backup")

// BackupHeader describes a backup. Position and Term are those of the state in the old cluster's log.
type BackupHeader struct {
	MadeAt    time.Time    `json:"made_at"`
	Program   string       `json:"program"` // the version that made it
	Node      fsm.NodeID   `json:"node"`    // that made it
	Term      uint64       `json:"term"`
	Position  uint64       `json:"position"`
	Level     int          `json:"level"` // see fsm.Level: what a program must know to read it
	Nodes     []BackupNode `json:"nodes"`
	Orgs      int          `json:"orgs"`
	Sandboxes int          `json:"sandboxes"`
	Snapshots int          `json:"snapshots"`
}

// BackupNode is a node of the old cluster.
type BackupNode struct {
	ID   fsm.NodeID `json:"id"`
	Name string     `json:"name"`
}

// Backup is the state of one instant, ready to be written.
type Backup struct {
	Header BackupHeader
	state  *fsm.State
}

// Backup takes a backup of the whole state, with everything that was acknowledged before the call. program is the
// version of the calling program. It takes no time in proportion to the state: writing it does. Its errors are those of
// Linearizable.
func (n *Node) Backup(ctx context.Context, program string) (*Backup, error) {
	if _, err := n.Linearizable(ctx); err != nil {
		return nil, err
	}
	v := n.machine.view.Load() // at least as new as that read, with its position
	size := v.state.Size()
	b := &Backup{state: v.state, Header: BackupHeader{
		MadeAt: time.Now().UTC(), Program: program, Node: n.id, Term: n.raft.CurrentTerm(), Position: v.touched,
		Level: fsm.Level, Orgs: size.Orgs, Sandboxes: size.Sandboxes, Snapshots: size.Snapshots,
	}}
	for _, known := range v.state.Nodes() {
		b.Header.Nodes = append(b.Header.Nodes, BackupNode{known.ID, known.Name})
	}
	return b, nil
}

// WriteTo implements io.WriterTo. What was written is a backup only when there is no error.
func (b *Backup) WriteTo(w io.Writer) (int64, error) {
	header, err := json.Marshal(b.Header)
	if err != nil {
		return 0, fmt.Errorf("write backup: %w", err)
	}
	out := &countingHash{w: w, sum: sha256.New()}
	head := binary.BigEndian.AppendUint32(bytes.Clone(backupMagic), backupFormat)
	head = binary.BigEndian.AppendUint32(head, uint32(len(header)))
	_, err = out.Write(append(head, header...))
	if err == nil {
		_, err = b.state.WriteTo(out)
	}
	if err == nil {
		_, err = out.Write(out.sum.Sum(nil))
	}
	if err != nil {
		return out.n, fmt.Errorf("write backup: %w", err)
	}
	return out.n, nil
}

// countingHash passes bytes on, counted and hashed.
type countingHash struct {
	w   io.Writer
	sum hash.Hash
	n   int64
}

func (c *countingHash) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.sum.Write(b[:n])
	c.n += int64(n)
	return n, err
}

// ReadBackup reads a backup from a file and verifies all of it: digests, and that the state can be taken over. The
// error is ErrNewerBackup where it is beyond this program.
func ReadBackup(path string) (*Backup, error) {
	b, err := readBackup(path)
	if err != nil {
		return nil, fmt.Errorf("read backup %s: %w", path, err)
	}
	return b, nil
}

func readBackup(path string) (*Backup, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	sum := sha256.New()
	body := bufio.NewReaderSize(io.TeeReader(io.LimitReader(f, max(0, info.Size()-sha256.Size)), sum), 1<<20)
	b := &Backup{}
	if b.Header, err = readBackupHeader(body); err != nil {
		return nil, err
	}
	var unreadable error
	if b.state, unreadable = fsm.Read(body); unreadable != nil {
		// A digest that is right says that the fault is not the file's.
		if _, err := io.Copy(io.Discard, body); err != nil {
			return nil, err
		}
	}
	var want [sha256.Size]byte
	if _, err := io.ReadFull(f, want[:]); err != nil {
		return nil, fmt.Errorf("%w: it is cut short", errDamagedBackup)
	}
	if !bytes.Equal(sum.Sum(nil), want[:]) {
		return nil, fmt.Errorf("%w: its digest does not match", errDamagedBackup)
	}
	return b, unreadable
}

func readBackupHeader(r io.Reader) (BackupHeader, error) {
	var header BackupHeader
	head := make([]byte, len(backupMagic)+8)
	if _, err := io.ReadFull(r, head); err != nil {
		return header, fmt.Errorf("%w: it is cut short", errDamagedBackup)
	}
	numbers, ok := bytes.CutPrefix(head, backupMagic)
	if !ok {
		return header, fmt.Errorf("%w: it does not begin as one", errDamagedBackup)
	}
	if format := binary.BigEndian.Uint32(numbers); format != backupFormat {
		return header, fmt.Errorf("%w: format %d; this one reads %d", ErrNewerBackup, format, backupFormat)
	}
	length := binary.BigEndian.Uint32(numbers[4:])
	if length > maxBackupHeader {
		return header, fmt.Errorf("%w: a header of %d bytes", errDamagedBackup, length)
	}
	raw := make([]byte, length)
	if _, err := io.ReadFull(r, raw); err != nil {
		return header, fmt.Errorf("%w: it is cut short", errDamagedBackup)
	}
	if err := json.Unmarshal(raw, &header); err != nil {
		return header, fmt.Errorf("%w: its header: %w", errDamagedBackup, err)
	}
	if header.Level > fsm.Level {
		return header, fmt.Errorf("%w, %s: level %d; this one knows %d", ErrNewerBackup, header.Program, header.Level,
			fsm.Level)
	}
	return header, nil
}

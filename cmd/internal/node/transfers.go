package node

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"stillframe/cluster"
	"stillframe/fsm"
	"stillframe/hypervisor"
)

// transfers bring the files of a snapshot from the node that holds it to one that restores it: one call for each file,
// over the port between nodes, streamed. However long a file takes, a connection that brings nothing for a while is
// given up.
type transfers struct{ log *cluster.Node }

const (
	transferPattern = "GET /snapshot/{snapshot}/{file}"
	// transferStall is how long nothing may pass. The owner reads and the receiver writes disks that others use too.
	transferStall = 30 * time.Second
	// transferBuffer gathers the headers of small pieces.
	transferBuffer = 256 << 10
)

// SnapshotFile implements hypervisor.Peers.
func (t transfers) SnapshotFile(
	ctx context.Context, holder fsm.NodeID, id fsm.SnapshotID, name string,
) (io.ReadCloser, error) {
	conn, err := t.log.DialCall(ctx, holder)
	if err != nil {
		return nil, t.unreachable(holder, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	file, err := askForFile(conn, holder, id, name)
	if err != nil {
		stop()
		_ = conn.Close()
		var refused *fsm.Error
		if errors.As(err, &refused) {
			return nil, refused
		}
		return nil, t.unreachable(holder, err)
	}
	file.stop = stop
	return file, nil
}

func (t transfers) unreachable(holder fsm.NodeID, err error) *fsm.Error {
	return fsm.Wrap(fsm.KindUnavailable, errors.New(err.Error()), "node %s, which holds the snapshot, cannot be reached",
		nodeLabel(t.log, holder))
}

func askForFile(conn net.Conn, holder fsm.NodeID, id fsm.SnapshotID, name string) (*incoming, error) {
	// The context is the connection's: no client carries the request.
	target := "http://" + string(holder) + "/snapshot/" + url.PathEscape(string(id)) + "/" + url.PathEscape(name)
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, target, nil)
	if err != nil {
		return nil, err
	}
	req.Close = true
	live := stalling{conn}
	if err := req.Write(live); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(bufio.NewReaderSize(live, transferBuffer), req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return &incoming{ReadCloser: resp.Body, conn: conn}, nil
	}
	defer resp.Body.Close() //nolint:errcheck // there is no file
	return nil, readRefusal(resp)
}

// incoming is a file on its way here.
type incoming struct {
	io.ReadCloser
	conn net.Conn
	stop func() bool
}

func (f *incoming) Close() error {
	f.stop()
	return errors.Join(f.ReadCloser.Close(), f.conn.Close())
}

// stalling is a connection on which every read and write has its own deadline.
type stalling struct{ net.Conn }

func (s stalling) Read(b []byte) (int, error) {
	if err := s.SetReadDeadline(time.Now().Add(transferStall)); err != nil {
		return 0, err
	}
	return s.Conn.Read(b)
}

func (s stalling) Write(b []byte) (int, error) {
	if err := s.SetWriteDeadline(time.Now().Add(transferStall)); err != nil {
		return 0, err
	}
	return s.Conn.Write(b)
}

// serve lets other nodes have the snapshots that this one holds.
func (t transfers) serve(owner *hypervisor.Owner) {
	t.log.Handle(transferPattern, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := &outgoing{w: w, control: http.NewResponseController(w)}
		buffered := bufio.NewWriterSize(out, transferBuffer)
		err := owner.SendSnapshotFile(r.Context(), fsm.SnapshotID(r.PathValue("snapshot")), r.PathValue("file"), buffered)
		if err == nil {
			err = buffered.Flush()
		}
		switch {
		case err == nil:
		case !out.begun:
			refuse(w, err, "the snapshot cannot be sent")
		default:
			panic(http.ErrAbortHandler) // the only way to break off an answer that has begun
		}
	}))
}

// outgoing is an answer that may take as long as it goes on.
type outgoing struct {
	w       http.ResponseWriter
	control *http.ResponseController
	begun   bool
}

func (o *outgoing) Write(b []byte) (int, error) {
	o.begun = true
	if err := o.control.SetWriteDeadline(time.Now().Add(transferStall)); err != nil {
		return 0, err
	}
	return o.w.Write(b)
}

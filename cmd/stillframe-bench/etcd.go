package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
	"google.golang.org/protobuf/encoding/protowire"
)

// etcdCluster is three etcd processes on the loopback, as they come but for a larger quota, without TLS and without
// authentication: what a reference does with less to do. Its gRPC calls are framed here, since one message of its API
// is all that is needed.
type etcdCluster struct {
	nodes   []*process
	urls    []string
	clients []*http.Client // a connection for each
}

// errNoEtcd says that there is nothing to compare with.
var errNoEtcd = errors.New("etcd is not installed: apt-get install etcd-server")

func startEtcd(ctx context.Context, dir string, clients int) (_ *etcdCluster, err error) {
	program, err := exec.LookPath("etcd")
	if err != nil {
		return nil, errNoEtcd
	}
	ports, err := freePorts(6)
	if err != nil {
		return nil, err
	}
	e := &etcdCluster{}
	defer func() {
		if err != nil {
			e.stop()
		}
	}()
	var members []string
	for i := range 3 {
		members = append(members, fmt.Sprintf("e%d=http://%s", i, ports[i]))
	}
	for i := range 3 {
		peer, api := "http://"+ports[i], "http://"+ports[3+i]
		p, err := start(filepath.Join(dir, fmt.Sprintf("etcd%d.log", i)), program, "--name", fmt.Sprint("e", i),
			"--data-dir", filepath.Join(dir, fmt.Sprint("etcd", i)), "--listen-peer-urls", peer,
			"--initial-advertise-peer-urls", peer, "--listen-client-urls", api, "--advertise-client-urls", api,
			"--initial-cluster", strings.Join(members, ","), "--quota-backend-bytes", "8000000000",
			"--logger", "zap", "--log-level", "error")
		if err != nil {
			return nil, err
		}
		e.nodes, e.urls = append(e.nodes, p), append(e.urls, api)
	}
	for range clients {
		plain := &http.Protocols{}
		plain.SetUnencryptedHTTP2(true)
		e.clients = append(e.clients, &http.Client{Transport: &http.Transport{Protocols: plain}})
	}
	for i, n := range e.nodes {
		if err := n.await(ctx, func() error { return e.createIfAbsent(i, 0, []byte("x")) }); err != nil {
			return nil, err
		}
	}
	return e, nil
}

func (e *etcdCluster) stop() {
	for _, n := range e.nodes {
		n.kill()
	}
}

// leader finds the node that leads.
func (e *etcdCluster) leader() (int, error) {
	for i, url := range e.urls {
		resp, err := http.Get(url + "/metrics") //nolint:noctx // a process of this run
		if err != nil {
			return 0, err
		}
		raw, err := io.ReadAll(resp.Body)
		if err = errors.Join(err, resp.Body.Close()); err != nil {
			return 0, err
		}
		if bytes.Contains(raw, []byte("\netcd_server_is_leader 1")) {
			return i, nil
		}
	}
	return 0, errors.New("etcd has no leader")
}

// createIfAbsent is the equivalent of an accepted intent: a value under a new key, if there is none under it yet.
func (e *etcdCluster) createIfAbsent(node, client int, value []byte) error {
	key := []byte("/intents/" + uuid.NewString())
	const createRevision = 1 // etcdserverpb.Compare.CompareTarget CREATE; the result EQUAL and the revision 0 are zero
	compare := protowire.AppendVarint(protowire.AppendTag(nil, 2, protowire.VarintType), createRevision)
	compare = protowire.AppendBytes(protowire.AppendTag(compare, 3, protowire.BytesType), key)
	compare = protowire.AppendVarint(protowire.AppendTag(compare, 5, protowire.VarintType), 0)
	put := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), key)
	put = protowire.AppendBytes(protowire.AppendTag(put, 2, protowire.BytesType), value)
	op := protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), put)
	txn := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), compare)
	txn = protowire.AppendBytes(protowire.AppendTag(txn, 2, protowire.BytesType), op)

	body := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(txn)))
	url := e.urls[node] + "/etcdserverpb.KV/Txn"
	body = append(body, txn...)
	req, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(body)) //nolint:noctx // ends with the run
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("TE", "trailers")
	resp, err := e.clients[client].Do(req)
	if err != nil {
		return err
	}
	raw, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return err
	}
	if status := resp.Trailer.Get("Grpc-Status"); status != "0" {
		return fmt.Errorf("etcd answers %s %s%s", status, resp.Trailer.Get("Grpc-Message"), resp.Header.Get("Grpc-Message"))
	}
	if len(raw) < 5 || !succeeded(raw[5:]) {
		return errors.New("etcd did not create the key")
	}
	return nil
}

// succeeded reads field 2 of a TxnResponse.
func succeeded(b []byte) bool {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return false
		}
		b = b[n:]
		if num == 2 && typ == protowire.VarintType {
			v, n := protowire.ConsumeVarint(b)
			return n > 0 && v == 1
		}
		if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
			return false
		}
		b = b[n:]
	}
	return false
}

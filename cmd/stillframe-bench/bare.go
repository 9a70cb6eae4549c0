package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// bareRole is the first argument of a process that is one node of the baseline: hashicorp/raft over its own TCP
// transport and raft-boltdb as they come, with a state machine that does nothing. The first node leads, and puts load
// on itself when its standard input says "CLIENTS SECONDS"; the answer is one line of JSON.
const bareRole = "bare-raft"

func bareNode(args []string, in io.Reader, out io.Writer) error {
	flags := flag.NewFlagSet(bareRole, flag.ContinueOnError)
	addrs := flags.String("addrs", "", "all nodes")
	self := flags.Int("self", 0, "which one this is")
	dir := flags.String("dir", "", "data folder")
	size := flags.Int("size", 300, "bytes of an entry")
	if err := flags.Parse(args); err != nil {
		return err
	}
	r, err := openBare(strings.Split(*addrs, ","), *self, *dir)
	if err != nil {
		return err
	}
	if *self != 0 {
		_, err := io.Copy(io.Discard, in) // until the run ends
		return err
	}
	for r.State() != raft.Leader {
		time.Sleep(time.Millisecond)
	}
	for lines := bufio.NewScanner(in); lines.Scan(); {
		var clients, seconds int
		if _, err := fmt.Sscan(lines.Text(), &clients, &seconds); err != nil {
			return err
		}
		entry := make([]byte, *size)
		res := load(clients, time.Duration(seconds)*time.Second, func(int) error {
			return r.Apply(entry, time.Minute).Error()
		})
		if err := json.NewEncoder(out).Encode(res); err != nil {
			return err
		}
	}
	return nil
}

func openBare(addrs []string, self int, dir string) (*raft.Raft, error) {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(addrs[self])
	c.Logger = hclog.NewNullLogger()
	// As long as the service's, so that neither elects in the middle on a busy machine.
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = 3*time.Second, 3*time.Second, 1500*time.Millisecond
	if self == 0 {
		c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = time.Second, time.Second, time.Second // leads
	}
	store, err := raftboltdb.NewBoltStore(filepath.Join(dir, "raft.db"))
	if err != nil {
		return nil, err
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(dir, 1, c.Logger)
	if err != nil {
		return nil, err
	}
	trans, err := raft.NewTCPTransportWithLogger(addrs[self], nil, 3, 10*time.Second, c.Logger)
	if err != nil {
		return nil, err
	}
	var members raft.Configuration
	for _, addr := range addrs {
		members.Servers = append(members.Servers, raft.Server{ID: raft.ServerID(addr), Address: raft.ServerAddress(addr)})
	}
	if err := raft.BootstrapCluster(c, store, store, snaps, trans, members); err != nil {
		return nil, err
	}
	return raft.NewRaft(c, nothing{}, store, store, snaps, trans)
}

// nothing is a state machine without a state.
type nothing struct{}

func (nothing) Apply(*raft.Log) any                 { return nil }
func (nothing) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.New("there is nothing") }
func (nothing) Restore(io.ReadCloser) error         { return nil }

// bareCluster is three such processes.
type bareCluster struct {
	nodes  []*exec.Cmd
	orders io.WriteCloser
	answer *bufio.Scanner
}

func startBare(dir string, size int) (_ *bareCluster, err error) {
	addrs, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	b := &bareCluster{}
	defer func() {
		if err != nil {
			b.stop()
		}
	}()
	for i := range addrs {
		data := filepath.Join(dir, fmt.Sprint("bare", i))
		if err := os.MkdirAll(data, 0o700); err != nil {
			return nil, err
		}
		args := []string{
			bareRole, "-addrs", strings.Join(addrs, ","), "-self", fmt.Sprint(i), "-dir", data, "-size", fmt.Sprint(size),
		}
		cmd := exec.Command("/proc/self/exe", args...) //nolint:noctx // it ends with its standard input, and with stop
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe() // whose end ends the node
		if err != nil {
			return nil, err
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		if i == 0 {
			b.orders, b.answer = in, bufio.NewScanner(out)
		}
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		b.nodes = append(b.nodes, cmd)
	}
	return b, nil
}

func (b *bareCluster) run(clients, seconds int) (loadResult, error) {
	var res loadResult
	if _, err := fmt.Fprintln(b.orders, clients, seconds); err != nil {
		return res, err
	}
	if !b.answer.Scan() {
		return res, errors.New("the bare leader has ended")
	}
	err := json.Unmarshal(b.answer.Bytes(), &res)
	return res, errors.Join(err, res.err())
}

func (b *bareCluster) stop() {
	for _, cmd := range b.nodes {
		_ = cmd.Process.Kill() // it may have ended by itself
		_ = cmd.Wait()
	}
}

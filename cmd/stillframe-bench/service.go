package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"stillframe/cluster"
	"stillframe/cmd/internal/node"
	"stillframe/fsm"
	"stillframe/hypervisor"
)

// benchTemplate is what everything here boots: small, so that it is memory that is measured.
const benchTemplate = "system/busybox"

// service is a whole node in this process, spoken to over HTTP where the API is what is measured, and through its log
// where sizes are needed that the API does not offer.
type service struct {
	node *node.Node
	key  string
	org  fsm.OrgID
	http *http.Client
}

func startService(ctx context.Context, dir string, b *bench) (*service, error) {
	over := hypervisor.DefaultOvercommit
	over.VCPU = max(over.VCPU, b.clones+2) // a source, all clones at once, and one to spare, on however few CPUs
	n, err := node.Start(ctx, node.Config{
		DataDir: dir, Listen: "127.0.0.1:0", Images: b.images, Logger: b.log, Version: "bench", Overcommit: over,
	})
	if err != nil {
		return nil, err
	}
	s := &service{node: n, http: &http.Client{Timeout: 5 * time.Minute}}
	env, err := n.WriteDevEnv(ctx)
	if err != nil {
		return nil, errors.Join(err, s.stop())
	}
	if s.key, err = readKey(env); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	org, ok := n.Log().State().OrgByName("dev")
	if !ok {
		return nil, errors.Join(errors.New("no organization dev"), s.stop())
	}
	s.org = org.ID
	return s, nil
}

func readKey(path string) (string, error) {
	raw, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return "", err
	}
	for lines := bufio.NewScanner(bytes.NewReader(raw)); lines.Scan(); {
		if key, ok := strings.CutPrefix(lines.Text(), "LEAP0_API_KEY="); ok {
			return key, nil
		}
	}
	return "", fmt.Errorf("no key in %s", path)
}

// stop deletes what a measurement that failed has left, for virtual machines outlive their node, and stops the node.
func (s *service) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var err error
	for _, sb := range s.node.Log().State().SandboxesOn(s.node.ID()) {
		err = errors.Join(err, s.remove(ctx, sb.ID))
	}
	return errors.Join(err, s.node.Stop(ctx))
}

// create makes a sandbox through the log.
func (s *service) create(ctx context.Context, mib int) (fsm.SandboxID, error) {
	id := cluster.NewSandboxID()
	in, err := s.intent(ctx, fsm.CreateSandbox{
		Now: fsm.At(time.Now()), Intent: cluster.NewIntentID(), Org: s.org, Sandbox: id, TemplateName: benchTemplate,
		VCPU: 1, MemoryMiB: int64(mib), DiskMiB: 10240, TimeoutSec: 28800,
	})
	return in.Sandbox, err
}

func (s *service) snapshot(ctx context.Context, of fsm.SandboxID, name string) (fsm.Snapshot, error) {
	in, err := s.intent(ctx, fsm.CreateSnapshot{
		Now: fsm.At(time.Now()), Intent: cluster.NewIntentID(), Org: s.org, Sandbox: of, Snapshot: cluster.NewSnapshotID(),
		Name: name, GeneratedName: name,
	})
	if err != nil {
		return fsm.Snapshot{}, err
	}
	return *in.ResultSnapshot, nil
}

func (s *service) restore(ctx context.Context, name string) (fsm.SandboxID, error) {
	in, err := s.intent(ctx, fsm.RestoreSnapshot{
		Now: fsm.At(time.Now()), Intent: cluster.NewIntentID(), Org: s.org, Sandbox: cluster.NewSandboxID(),
		SnapshotName: name, TimeoutSec: 28800,
	})
	return in.Sandbox, err
}

func (s *service) remove(ctx context.Context, id fsm.SandboxID) error {
	_, err := s.intent(ctx, fsm.DeleteSandbox{
		Now: fsm.At(time.Now()), Intent: cluster.NewIntentID(), Org: s.org, Sandbox: id,
	})
	return err
}

func (s *service) removeSnapshot(ctx context.Context, id fsm.SnapshotID) error {
	_, err := s.intent(ctx, fsm.DeleteSnapshot{
		Now: fsm.At(time.Now()), Intent: cluster.NewIntentID(), Org: s.org, Snapshot: id,
	})
	return err
}

// intent proposes and waits, as a handler does.
func (s *service) intent(ctx context.Context, c fsm.Command) (fsm.Intent, error) {
	r, err := s.node.Log().Apply(ctx, c)
	if err != nil {
		return fsm.Intent{}, err
	}
	in, err := s.node.Log().WaitIntent(ctx, r.Intent.ID)
	if err == nil && in.Error != nil {
		err = in.Error
	}
	return in, err
}

// guest gives the tools in a sandbox.
func (s *service) guest(ctx context.Context, id fsm.SandboxID) (probe, error) {
	c, err := s.node.Owner().Guest(ctx, id)
	return probe{c}, err
}

// call makes one HTTP call of the API and times it.
func (s *service) call(
	ctx context.Context, method, path string, body any, want int,
) (map[string]any, time.Duration, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, 0, err
	}
	req, err := http.NewRequestWithContext(ctx, method, s.node.URL()+path, bytes.NewReader(raw))
	if err != nil {
		return nil, 0, err
	}
	req.Header.Set("Authorization", "Bearer "+s.key)
	req.Header.Set("Content-Type", "application/json")
	began := time.Now()
	resp, err := s.http.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	answer, err := io.ReadAll(resp.Body)
	took := time.Since(began)
	if err != nil {
		return nil, took, err
	}
	if resp.StatusCode != want {
		return nil, took, fmt.Errorf("%s %s: %d %s", method, path, resp.StatusCode, answer)
	}
	var decoded map[string]any
	if len(answer) > 0 {
		err = json.Unmarshal(answer, &decoded)
	}
	return decoded, took, err
}

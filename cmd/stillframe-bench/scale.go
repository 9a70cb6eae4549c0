package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"stillframe/fsm"
)

// scale measures a state with many snapshots, and a tenth as many sandboxes, made by the commands that make them in a
// cluster: what it takes in memory, how long a start takes to read it, how long a snapshot of it takes to write, and
// what a proposal that is applied meanwhile notices of that.
func (b *bench) scale(ctx context.Context) error {
	g := &generator{state: fsm.New(), now: fsm.At(time.Now())}
	empty := heapMiB()
	if err := g.fill(ctx, b.snapshots); err != nil {
		return err
	}
	stream := &bytes.Buffer{}
	alone := g.applyTimes(20_000)
	writing := make(chan error, 1)
	began := time.Now()
	var wrote time.Duration
	snapshot := g.state // taking a snapshot of the state machine is this
	go func() {
		_, err := snapshot.WriteTo(stream)
		wrote = time.Since(began)
		writing <- err
	}()
	beside := g.applyTimes(20_000)
	if err := <-writing; err != nil {
		return err
	}
	began = time.Now()
	_ = sha256.Sum256(stream.Bytes())
	hashed := time.Since(began)
	size := float64(stream.Len()) / (1 << 20)
	memory := heapMiB() - empty - float64(stream.Cap())/(1<<20)
	n := fmt.Sprintf("%d snapshots: ", b.snapshots)
	b.add(Result{Name: n + "memory", Value: memory, Baseline: size, Unit: "MiB", Note: "heap ÷ the state on disk"})
	b.add(Result{
		Name: n + "write a snapshot", Value: ms(wrote), Baseline: ms(hashed), Unit: "ms",
		Note: "÷ SHA-256 over the same bytes; commands go on beside it",
	})
	b.add(Result{
		Name: n + "apply while writing, p99", Value: ms(beside), Baseline: ms(alone), Unit: "ms", Note: "÷ p99 alone",
	})
	return b.scaleStart(g, stream, snapshot, n, hashed)
}

// scaleStart measures reading the state, and lists of it.
func (b *bench) scaleStart(
	g *generator, stream *bytes.Buffer, snapshot *fsm.State, n string, hashed time.Duration,
) error {
	want := snapshot.Digest()
	*g = generator{}
	began := time.Now()
	state, err := fsm.Read(bytes.NewReader(stream.Bytes()))
	read := time.Since(began)
	if err != nil {
		return err
	}
	if state.Digest() != want {
		return errors.New("what was read is not what was written")
	}
	b.add(Result{
		Name: n + "start-up", Value: ms(read), Baseline: ms(hashed), Unit: "ms",
		Note: "the state read, verified and indexed ÷ SHA-256 over it",
	})
	page := fsm.Page{Offset: b.snapshots / 2, Limit: 100, NewestFirst: true}
	plain := timeOf(func() { state.ListSnapshots("org-a", fsm.SnapshotQuery{}, page) })
	search := timeOf(func() { state.ListSnapshots("org-a", fsm.SnapshotQuery{NamePart: "-77"}, page) })
	b.add(Result{
		Name: n + "search of all names", Value: ms(search), Baseline: ms(plain), Unit: "ms",
		Note: "÷ a page of 100 from the middle, with the total",
	})
	return nil
}

func timeOf(f func()) time.Duration {
	took, _ := median(5, func() (time.Duration, error) {
		began := time.Now()
		f()
		return time.Since(began), nil
	})
	return took
}

func heapMiB() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / (1 << 20)
}

// generator makes a state by commands, each through its encoding as in a log.
type generator struct {
	state *fsm.State
	now   fsm.Time
	made  int
}

func (g *generator) do(cmd fsm.Command) (fsm.Result, error) {
	raw, err := fsm.Encode(cmd)
	if err != nil {
		return fsm.Result{}, err
	}
	if cmd, err = fsm.Decode(raw); err != nil {
		return fsm.Result{}, err
	}
	var res fsm.Result
	if g.state, res = g.state.Apply(cmd); res.Err != nil {
		return res, res.Err
	}
	return res, nil
}

const digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func id(prefix string, n int) string { return fmt.Sprintf("%s-%026d", prefix, n) }

func (g *generator) fill(ctx context.Context, snapshots int) error {
	room := fsm.Capacity{VCPU: 1 << 20, MemoryMiB: 1 << 40, DiskMiB: 1 << 40}
	cmds := []fsm.Command{
		fsm.PutOrg{Now: g.now, Org: fsm.Org{ID: "org-a", Name: "a"}},
		fsm.PutTemplate{Now: g.now, Template: fsm.Template{ID: "tpl-1", Name: benchTemplate, Digest: digest}},
	}
	for i := range 3 {
		cmds = append(cmds, fsm.RegisterNode{Now: g.now, Node: fsm.Node{
			ID: fsm.NodeID(fmt.Sprintf("6f1e1cf0-0000-4000-8000-%012d", i)), Name: fmt.Sprint("n", i), Capacity: room,
			Templates: []string{digest}, Level: fsm.Level,
		}})
	}
	for _, c := range cmds {
		if _, err := g.do(c); err != nil {
			return err
		}
	}
	sandboxes := snapshots / 10
	for i := range sandboxes {
		res, err := g.do(fsm.CreateSandbox{
			Now: g.now, Intent: fsm.IntentID(id("int", i)), Org: "org-a", Sandbox: fsm.SandboxID(id("sbx", i)),
			TemplateName: benchTemplate, VCPU: 1, MemoryMiB: 512, DiskMiB: 1024, TimeoutSec: 28800,
		})
		if err == nil {
			_, err = g.do(fsm.Complete{Now: g.now, Intent: res.Intent.ID, Owner: res.Intent.Owner, Epoch: res.Intent.Epoch})
		}
		if err != nil {
			return err
		}
	}
	for i := range snapshots {
		if err := g.snapshot(i, i%sandboxes); err != nil {
			return err
		}
		if i%10_000 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// snapshot takes one, as an owner would, and lets time pass so that closed intents go.
func (g *generator) snapshot(n, sandbox int) error {
	g.now += fsm.Time(time.Second)
	res, err := g.do(fsm.CreateSnapshot{
		Now: g.now, Intent: fsm.IntentID(id("ins", n)), Org: "org-a", Sandbox: fsm.SandboxID(id("sbx", sandbox)),
		Snapshot: fsm.SnapshotID(id("snap", n)), Name: fmt.Sprintf("snapshot-%d", n), GeneratedName: "none",
	})
	if err != nil {
		return err
	}
	m := &fsm.Manifest{
		Version: 1, VMM: "cloud-hypervisor", VMMVersion: "cloud-hypervisor v52.0.0", CPUFingerprint: "0123456789abcdef",
		TemplateDigest: digest, CloneMethod: "reflink", PauseNanos: 12_345_678, TakenAt: g.now,
	}
	for i, f := range []string{"config.json", "state.json", "ram", "disk"} {
		m.Files = append(m.Files, fsm.File{Name: f, Size: 1 << 29, Stored: 1 << 20, Digest: fmt.Sprintf("xxh3:%032x", n*4+i)})
	}
	_, err = g.do(fsm.Complete{
		Now: g.now, Intent: res.Intent.ID, Owner: res.Intent.Owner, Epoch: res.Intent.Epoch, Manifest: m,
	})
	if err != nil || n%1000 != 0 {
		return err
	}
	_, err = g.do(fsm.Tick{Now: g.now})
	return err
}

// applyTimes applies commands as a client's would be, and gives the 99th percentile of how long one took.
func (g *generator) applyTimes(n int) time.Duration {
	took := make([]time.Duration, n)
	for i := range took {
		g.made++
		began := time.Now()
		_, _ = g.do(fsm.BeginRequest{Now: g.now, Org: "org-a", Request: fsm.Request{Key: id("key", g.made)}})
		took[i] = time.Since(began)
	}
	slices.Sort(took)
	return took[n*99/100]
}

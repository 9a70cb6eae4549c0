package fsm

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"
)

func scaleState(tb testing.TB, sandboxes, snapshots int) *State {
	s := New()
	now := Time(1_700_000_000_000_000_000)
	do := func(c Command) Result {
		var r Result
		s, r = s.Apply(c)
		if r.Err != nil {
			tb.Fatal(r.Err)
		}
		return r
	}
	do(PutOrg{Now: now, Org: Org{ID: "org-a", Name: "a"}})
	for i := range 3 {
		do(RegisterNode{Now: now, Node: Node{ID: NodeID(fmt.Sprintf("6f1e1cf0-0000-4000-8000-00000000000%d", i)), Name: "n", Capacity: Capacity{1 << 20, 1 << 40, 1 << 40}}})
	}
	do(PutTemplate{Now: now, Template: Template{ID: "tpl-1", Name: "system/debian:bookworm", Digest: "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"}})
	m := Manifest{Version: 1, VMM: "cloud-hypervisor", VMMVersion: "cloud-hypervisor v52.0.0", CPUFingerprint: "0123456789abcdef", TemplateDigest: "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", CloneMethod: "reflink", PauseNanos: 12345678, TakenAt: now}
	id := func(p string, i int) string { return fmt.Sprintf("%s-%026d", p, i) }
	for i := range sandboxes {
		in := do(CreateSandbox{Now: now, Intent: IntentID(id("int", i)), Org: "org-a", Sandbox: SandboxID(id("sbx", i)), TemplateName: "system/debian:bookworm", VCPU: 1, MemoryMiB: 512, DiskMiB: 1024, TimeoutSec: 28800}).Intent
		do(Complete{Now: now, Intent: in.ID, Owner: in.Owner, Epoch: in.Epoch})
	}
	for i := range snapshots {
		now += 1000
		in := do(CreateSnapshot{Now: now, Intent: IntentID(id("ins", i)), Org: "org-a", Sandbox: SandboxID(id("sbx", i%sandboxes)), Snapshot: SnapshotID(id("snap", i*7919%snapshots)), Name: "snap-" + strconv.Itoa(i), GeneratedName: "g"}).Intent
		mm := m
		for _, f := range []string{"config.json", "state.json", "ram", "disk", "manifest"} {
			mm.Files = append(mm.Files, File{Name: f, Size: 1 << 29, Stored: 1 << 20, Digest: fmt.Sprintf("xxh3:%032x", i)})
		}
		raw, _ := Encode(Complete{Now: now, Intent: in.ID, Owner: in.Owner, Epoch: in.Epoch, Manifest: &mm})
		c, _ := Decode(raw)
		do(c)
		if i%10000 == 0 {
			do(Tick{Now: now + IntentRetention + 1})
		}
	}
	do(Tick{Now: now + IntentRetention + 1})
	return s
}

func heap() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / (1 << 20)
}

func TestScale(t *testing.T) {
	n, _ := strconv.Atoi(os.Getenv("SCALE"))
	if n == 0 {
		t.Skip()
	}
	began := time.Now()
	s := scaleState(t, n/10, n)
	t.Logf("build %v, heap %.0f MiB", time.Since(began), heap())
	began = time.Now()
	var buf bytes.Buffer
	_, err := s.WriteTo(&buf)
	t.Logf("write %v %v, %d MiB", time.Since(began), err, buf.Len()>>20)
	began = time.Now()
	s.WriteTo(io.Discard)
	t.Logf("write discard %v", time.Since(began))
	runtime.KeepAlive(s)
	s = nil
	h0 := heap()
	began = time.Now()
	s2, err := Read(bytes.NewReader(buf.Bytes()))
	took := time.Since(began)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("read %v, heap %.0f MiB (was %.0f)", took, heap(), h0)
	began = time.Now()
	k := 0
	for range s2.Snapshots("org-a") {
		k++
	}
	t.Logf("list all %v %d", time.Since(began), k)
}

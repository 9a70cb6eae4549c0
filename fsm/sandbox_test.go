package fsm

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestCreateSandbox(t *testing.T) {
	w := newWorld(t)
	c := w.create("sbx-1")
	c.EnvVars = map[string]string{"A": "1", "B": "2"}
	c.NetworkPolicy = &NetworkPolicy{Mode: "deny-all"}
	c.AutoPause = true
	in := w.ok(c).Intent
	require.Equal(t, Intent{
		ID: "int-create-sbx-1", Kind: IntentCreate, Org: "org-a", Sandbox: "sbx-1", Owner: "node-1", Epoch: 1,
		State: IntentOpen, CreatedAt: t0, KeepUntil: t0 + IntentRetention,
	}, in)
	sb := w.sandbox("sbx-1")
	require.Equal(t, Sandbox{
		ID: "sbx-1", Org: "org-a", Template: "tpl-1", TemplateName: "system/debian", TemplateDigest: "sha256:aa",
		VCPU: 1, MemoryMiB: 1024, DiskMiB: 10240, TimeoutSec: 300, AutoPause: true,
		EnvVars: c.EnvVars, NetworkPolicy: c.NetworkPolicy,
		State: SandboxStarting, Owner: "node-1", Epoch: 1, Intent: in.ID, CreatedAt: t0, UpdatedAt: t0, StateAt: t0,
	}, sb)
	require.Equal(t, []Intent{in}, w.s.OpenIntents("node-1"))
	require.Equal(t, Capacity{VCPU: 1, MemoryMiB: 1024, DiskMiB: 10240}, w.s.Used("node-1"))

	w.pass(4 * time.Second)
	closed := w.done(in, nil)
	require.Equal(t, IntentDone, closed.State)
	sb = w.sandbox("sbx-1")
	require.Equal(t, SandboxRunning, sb.State)
	require.Equal(t, w.now, sb.LaunchedAt)
	require.Equal(t, w.now.Add(300*time.Second), sb.TimeoutAt)
	require.Equal(t, &sb, closed.ResultSandbox)
	require.Empty(t, w.s.OpenIntents("node-1"))
}

func TestCreateSandboxRefusals(t *testing.T) {
	long := strings.Repeat("x", 256)
	for _, c := range []struct {
		name   string
		change func(*CreateSandbox)
		kind   Kind
		text   string
	}{
		{"no time", func(c *CreateSandbox) { c.Now = 0 }, KindInvalid, "time"},
		{"time out of range", func(c *CreateSandbox) { c.Now = -5 }, KindInvalid, "time"},
		{"no organization", func(c *CreateSandbox) { c.Org = "" }, KindInvalid, "organization"},
		{"unknown organization", func(c *CreateSandbox) { c.Org = "org-x" }, KindNotFound, "org-x"},
		{"no intent", func(c *CreateSandbox) { c.Intent = "" }, KindInvalid, "intent"},
		{"no id", func(c *CreateSandbox) { c.Sandbox = "" }, KindInvalid, "sandbox"},
		{"id with a slash", func(c *CreateSandbox) { c.Sandbox = "../x" }, KindInvalid, "sandbox"},
		{"id too long", func(c *CreateSandbox) { c.Sandbox = SandboxID(long[:129]) }, KindInvalid, "sandbox"},
		{"no vcpu", func(c *CreateSandbox) { c.VCPU = 0 }, KindInvalid, "vcpu"},
		{"much memory", func(c *CreateSandbox) { c.MemoryMiB = 1 << 62 }, KindInvalid, "memory"},
		{"negative disk", func(c *CreateSandbox) { c.DiskMiB = -1 }, KindInvalid, "disk"},
		{"no timeout", func(c *CreateSandbox) { c.TimeoutSec = 0 }, KindInvalid, "timeout"},
		{"long timeout", func(c *CreateSandbox) { c.TimeoutSec = 1 << 40 }, KindInvalid, "timeout"},
		{"no template", func(c *CreateSandbox) { c.TemplateName = "" }, KindInvalid, "template_name"},
		{"unknown template", func(c *CreateSandbox) { c.TemplateName = "nope" }, KindNotFound, `"nope"`},
		{"id in use", func(c *CreateSandbox) { c.Sandbox = "sbx-there" }, KindConflict, "sbx-there already exists"},
		{"intent in use", func(c *CreateSandbox) { c.Intent = "int-create-sbx-there" }, KindConflict, "already exists"},
		{"bad key", func(c *CreateSandbox) { c.Request.Key = "a b" }, KindInvalid, "Idempotency-Key"},
		{"long key", func(c *CreateSandbox) { c.Request.Key = long }, KindInvalid, "Idempotency-Key"},
		{"too big", func(c *CreateSandbox) { c.VCPU = 4 }, KindUnavailable, "4 vCPU"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.running("sbx-there")
			cmd := w.create("sbx-1")
			c.change(&cmd)
			w.refused(cmd, c.kind, c.text)
		})
	}
}

func TestCreateFails(t *testing.T) {
	w := newWorld(t)
	in := w.ok(w.create("sbx-1")).Intent
	closed := w.fail(in, "the VMM did not start")
	require.Equal(t, IntentFailed, closed.State)
	require.Equal(t, &Error{Kind: KindInternal, Message: "the VMM did not start"}, closed.Error)
	_, ok := w.s.Sandbox("sbx-1")
	require.False(t, ok)
	require.Zero(t, w.s.Used("node-1"))
	require.Empty(t, slices.Collect(w.s.Sandboxes("org-a")))
}

func TestPlacement(t *testing.T) {
	w := newWorld(t) // node-1: 4 vCPU, 4096 MiB
	node := func(id NodeID, vcpu int, memory, disk int64) {
		w.ok(RegisterNode{Now: w.now, Node: Node{
			ID: id, Capacity: Capacity{VCPU: vcpu, MemoryMiB: memory, DiskMiB: disk},
		}})
	}
	node("node-0", 4, 4096, 40960)  // as free as node-1, before it by id
	node("node-2", 0, 65536, 40960) // no vCPU
	node("node-3", 8, 65536, 1024)  // no disk
	w.ok(RegisterNode{Now: w.now, Node: Node{
		ID: "node-4", Drained: true, Capacity: Capacity{VCPU: 64, MemoryMiB: 1 << 20, DiskMiB: 1 << 20},
	}})
	var owners []NodeID
	for i := range 8 {
		owners = append(owners, w.running(fmt.Sprint("sbx-", i)).Owner)
	}
	require.Equal(t, []NodeID{
		"node-0", "node-1", "node-0", "node-1", "node-0", "node-1", "node-0", "node-1",
	}, owners, "most free memory first, ties by id")
	res := w.refused(w.create("sbx-8"), KindUnavailable, "1 vCPU, 1024 MiB of memory and 10240 MiB of disk")
	require.Contains(t, res.Err.Message, "node-2, has 0 vCPU, 65536 MiB of memory and 40960 MiB of disk")

	w.ok(DeleteSandbox{Now: w.now, Intent: "int-d", Org: "org-a", Sandbox: "sbx-1"})
	w.refused(w.create("sbx-8"), KindUnavailable, "no node has room")
	in, _ := w.s.Intent("int-d")
	w.done(in, nil)
	require.Equal(t, NodeID("node-1"), w.running("sbx-8").Owner, "a deleted sandbox makes room, not before it is gone")
}

func TestPlacementWithoutNodes(t *testing.T) {
	w := &world{t: t, s: New(), now: t0}
	w.ok(PutOrg{Now: w.now, Org: Org{ID: "org-a", Name: "alpha"}})
	w.ok(PutTemplate{Now: w.now, Template: Template{ID: "tpl-1", Name: "system/debian", Digest: "d"}})
	w.refused(w.create("sbx-1"), KindUnavailable, "no node is registered")
	w.ok(RegisterNode{Now: w.now, Node: Node{ID: "n", Drained: true}})
	w.refused(w.create("sbx-1"), KindUnavailable, "drained")
}

func TestNodeThatShrinks(t *testing.T) {
	w := newWorld(t)
	w.running("sbx-1")
	w.ok(RegisterNode{Now: w.now, Node: Node{
		ID: "node-1", Capacity: Capacity{VCPU: 1, MemoryMiB: 512, DiskMiB: 40960},
	}})
	w.refused(w.create("sbx-2"), KindUnavailable, "-512 MiB of memory")
}

func TestSandboxLimit(t *testing.T) {
	w := newWorld(t)
	w.ok(PutOrg{Now: w.now, Org: Org{ID: "org-a", Name: "alpha", MaxSandboxes: 2}})
	w.running("sbx-1")
	in := w.ok(w.create("sbx-2")).Intent
	w.refused(w.create("sbx-3"), KindLimit, "2 of at most 2 sandboxes")
	w.fail(in, "no")
	w.ok(w.create("sbx-3"))
}

func TestDeleteSandbox(t *testing.T) {
	w := newWorld(t)
	del := func(id SandboxID, org OrgID) DeleteSandbox {
		return DeleteSandbox{Now: w.now, Intent: IntentID("int-del-" + id), Org: org, Sandbox: id}
	}
	in := w.ok(w.create("sbx-1")).Intent
	w.refused(del("sbx-1", "org-a"), KindConflict, "sandbox sbx-1 is starting")
	w.done(in, nil)
	w.refused(del("sbx-1", "org-b"), KindNotFound, "sandbox sbx-1 not found")
	w.refused(del("sbx-9", "org-a"), KindNotFound, "sandbox sbx-9 not found")
	w.refused(del("", "org-a"), KindInvalid, "sandbox")

	in = w.ok(del("sbx-1", "org-a")).Intent
	require.Equal(t, uint64(2), in.Epoch)
	require.Equal(t, SandboxDeleting, w.sandbox("sbx-1").State)
	again := del("sbx-1", "org-a")
	again.Intent = "int-again"
	w.refused(again, KindConflict, "is deleting")

	closed := w.fail(in, "busy")
	sb := w.sandbox("sbx-1")
	require.Equal(t, SandboxStopped, sb.State)
	require.Equal(t, "deletion failed: busy", sb.StateReason)
	require.Equal(t, &sb, closed.ResultSandbox)
	require.Equal(t, Capacity{DiskMiB: 10240}, w.s.Used("node-1"), "a stopped sandbox keeps its disk")

	in = w.ok(again).Intent
	require.Equal(t, uint64(3), in.Epoch, "each intent has its own epoch")
	w.done(in, nil)
	_, ok := w.s.Sandbox("sbx-1")
	require.False(t, ok)
	require.Zero(t, w.s.Used("node-1"))
}

func TestReportStopped(t *testing.T) {
	w := newWorld(t)
	sb := w.running("sbx-1")
	report := ReportStopped{Now: w.now, Sandbox: "sbx-1", Owner: "node-1", Epoch: sb.Epoch, Reason: "the VM ended"}
	for _, change := range []func(*ReportStopped){
		func(c *ReportStopped) { c.Owner = "node-2" },
		func(c *ReportStopped) { c.Epoch++ },
		func(c *ReportStopped) { c.Sandbox = "sbx-2" },
	} {
		c := report
		change(&c)
		w.refused(c, KindSuperseded, string(c.Sandbox))
	}
	w.ok(report)
	sb = w.sandbox("sbx-1")
	require.Equal(t, SandboxStopped, sb.State)
	require.Equal(t, "the VM ended", sb.StateReason)
	w.refused(report, KindSuperseded, "not running")
	w.ok(DeleteSandbox{Now: w.now, Intent: "int-d", Org: "org-a", Sandbox: "sbx-1"})
}

func TestListsAreOrderedByAge(t *testing.T) {
	w := newWorld(t)
	for _, id := range []string{"sbx-c", "sbx-a", "sbx-b"} {
		w.running(id)
		w.pass(time.Second)
	}
	ids := func() (out []SandboxID) {
		for sb := range w.s.Sandboxes("org-a") {
			out = append(out, sb.ID)
		}
		return out
	}
	require.Equal(t, []SandboxID{"sbx-c", "sbx-a", "sbx-b"}, ids())
	for sb := range w.s.Sandboxes("org-a") {
		require.Equal(t, SandboxID("sbx-c"), sb.ID)
		break // a reader may stop early
	}
	on := w.s.SandboxesOn("node-1")
	require.Equal(t, []SandboxID{"sbx-a", "sbx-b", "sbx-c"}, []SandboxID{on[0].ID, on[1].ID, on[2].ID})
	require.Empty(t, slices.Collect(w.s.Sandboxes("org-b")))
}

package fsm

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// world is a state that tests drive command by command. Every step is checked: the invariants hold, a refusal changes
// nothing, the state that went in is not written, and what WriteTo writes reads back to the same.
type world struct {
	t   *testing.T
	s   *State
	now Time
	log [][]byte // the commands so far, encoded
}

// t0 is the first clock reading of every test.
var t0 = At(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))

// newWorld has two organizations, two keys, a node with room for four small sandboxes, and a template.
func newWorld(t *testing.T) *world {
	w := &world{t: t, s: New(), now: t0}
	w.ok(PutOrg{Now: w.now, Org: Org{ID: "org-a", Name: "alpha"}})
	w.ok(PutOrg{Now: w.now, Org: Org{ID: "org-b", Name: "beta"}})
	w.ok(PutKey{Now: w.now, Key: APIKey{ID: "key-a", Org: "org-a", Label: "laptop", Hash: [32]byte{1}}})
	w.ok(RegisterNode{Now: w.now, Node: Node{
		ID: "node-1", Name: "first", Capacity: Capacity{VCPU: 4, MemoryMiB: 4096, DiskMiB: 40960},
	}})
	w.ok(PutTemplate{Now: w.now, Template: Template{ID: "tpl-1", Name: "system/debian", Digest: "sha256:aa"}})
	return w
}

// apply takes the world through a command as the log would carry it.
func (w *world) apply(cmd Command) Result {
	w.t.Helper()
	b, err := Encode(cmd)
	require.NoError(w.t, err)
	decoded, err := Decode(b)
	require.NoError(w.t, err)
	before := w.s.Digest()
	next, res := w.s.Apply(decoded)
	require.Equal(w.t, before, w.s.Digest(), "the state that went in changed")
	require.NoError(w.t, next.Check())
	if res.Err != nil && res.Request.Key == "" {
		require.Equal(w.t, before, next.Digest(), "a refusal changed the state")
	}
	w.log = append(w.log, b)
	w.s = next
	return res
}

func (w *world) ok(cmd Command) Result {
	w.t.Helper()
	res := w.apply(cmd)
	require.Nil(w.t, res.Err, "%+v", cmd)
	return res
}

// refused applies a command that must be refused with a kind, and a message that has a text.
func (w *world) refused(cmd Command, kind Kind, text string) Result {
	w.t.Helper()
	res := w.apply(cmd)
	require.NotNil(w.t, res.Err, "%+v", cmd)
	require.Equal(w.t, kind, res.Err.Kind, res.Err.Message)
	require.Contains(w.t, res.Err.Message, text)
	return res
}

func (w *world) create(id string) CreateSandbox {
	return CreateSandbox{
		Now: w.now, Intent: IntentID("int-create-" + id), Org: "org-a", Sandbox: SandboxID(id),
		TemplateName: "system/debian", VCPU: 1, MemoryMiB: 1024, DiskMiB: 10240, TimeoutSec: 300,
	}
}

// running makes a running sandbox.
func (w *world) running(id string) Sandbox {
	w.t.Helper()
	in := w.ok(w.create(id)).Intent
	return *w.done(in, nil).ResultSandbox
}

func (w *world) snap(sandbox, id, name string) CreateSnapshot {
	return CreateSnapshot{
		Now: w.now, Intent: IntentID("int-snap-" + id), Org: "org-a", Sandbox: SandboxID(sandbox),
		Snapshot: SnapshotID(id), Name: name, GeneratedName: "quiet-otter",
	}
}

// ready makes a ready snapshot of a running sandbox.
func (w *world) ready(sandbox, id, name string) Snapshot {
	w.t.Helper()
	in := w.ok(w.snap(sandbox, id, name)).Intent
	return *w.done(in, &testManifest).ResultSnapshot
}

func (w *world) restore(name, id string) RestoreSnapshot {
	return RestoreSnapshot{
		Now: w.now, Intent: IntentID("int-restore-" + id), Org: "org-a", Sandbox: SandboxID(id), SnapshotName: name,
		TimeoutSec: 60,
	}
}

// setPolicy replaces a sandbox's policy by one with a secret.
func (w *world) setPolicy(sandbox SandboxID, intent IntentID) SetNetworkPolicy {
	return SetNetworkPolicy{
		Now: w.now, Intent: intent, Org: "org-a", Sandbox: sandbox, Policy: NetworkPolicy{
			Mode: PolicyCustom, AllowDomains: []string{"a.example"}, Transforms: []Transform{{
				Domain: "api.example", InjectHeaders: map[string]string{"x-a": "sealed-a", "x-b": "sealed-b"},
			}},
		},
	}
}

// done completes an intent as its owner does.
func (w *world) done(in Intent, m *Manifest) Intent {
	w.t.Helper()
	return w.ok(w.complete(in, m)).Intent
}

func (w *world) complete(in Intent, m *Manifest) Complete {
	return Complete{Now: w.now, Intent: in.ID, Owner: in.Owner, Epoch: in.Epoch, Manifest: m}
}

func (w *world) fail(in Intent, message string) Intent {
	w.t.Helper()
	c := w.complete(in, nil)
	c.Error = Errorf(KindInternal, "%s", message)
	return w.ok(c).Intent
}

func (w *world) sandbox(id SandboxID) Sandbox {
	w.t.Helper()
	sb, ok := w.s.Sandbox(id)
	require.True(w.t, ok, "sandbox %s", id)
	return sb
}

func (w *world) snapshot(id SnapshotID) Snapshot {
	w.t.Helper()
	sn, ok := w.s.Snapshot(id)
	require.True(w.t, ok, "snapshot %s", id)
	return sn
}

// pass lets time pass on the proposer's clock.
func (w *world) pass(d time.Duration) { w.now = w.now.Add(d) }

var testManifest = Manifest{
	Version: 1, VMM: "cloud-hypervisor", VMMVersion: "v52.0", CPUFingerprint: "cpu", TemplateDigest: "sha256:aa",
	CloneMethod: "reflink", PauseNanos: 12_000_000, TakenAt: t0,
	Files: []File{{Name: "ram", Size: 1 << 30, Stored: 3<<20 + 1, Digest: "xxh3:1"}, {Name: "state.json", Digest: "x"}},
}

// roundTrip gives what reading back the state's stream gives, and requires that it is the same.
func roundTrip(t *testing.T, s *State) *State {
	t.Helper()
	var buf bytes.Buffer
	n, err := s.WriteTo(&buf)
	require.NoError(t, err)
	require.EqualValues(t, buf.Len(), n)
	first := bytes.Clone(buf.Bytes())
	back, err := Read(&buf)
	require.NoError(t, err)
	require.NoError(t, back.Check())
	var again bytes.Buffer
	_, err = back.WriteTo(&again)
	require.NoError(t, err)
	require.True(t, bytes.Equal(first, again.Bytes()), "the state read back is another one")
	return back
}

// replay applies encoded commands to an empty state.
func replay(t *testing.T, log [][]byte) *State {
	t.Helper()
	s := New()
	for _, b := range log {
		cmd, err := Decode(b)
		require.NoError(t, err)
		s, _ = s.Apply(cmd)
	}
	return s
}

package fsm

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

// chooser makes the choices of a random run: a seeded generator, or a fuzzer's bytes.
type chooser interface{ choose(n int) int }

type randomChooser struct{ *rand.Rand }

func (r randomChooser) choose(n int) int { return r.IntN(n) }

// byteChooser takes its choices from bytes; at their end every choice is the first.
type byteChooser struct{ b []byte }

func (c *byteChooser) choose(n int) int {
	if len(c.b) == 0 {
		return 0
	}
	v := int(c.b[0]) % n
	c.b = c.b[1:]
	return v
}

func pick[T any](c chooser, of ...T) T { return of[c.choose(len(of))] }

// script makes commands that are often possible and sometimes nonsense. Names come from small sets, so that they meet.
type script struct {
	chooser
	now Time
	n   int // for ids that are new
}

func (g *script) org() OrgID           { return pick(g, OrgID("org-a"), "org-a", "org-a", "org-b", "", "org-x") }
func (g *script) sandbox() SandboxID   { return SandboxID(fmt.Sprint("sbx-", g.choose(12))) }
func (g *script) snapshot() SnapshotID { return SnapshotID(fmt.Sprint("snap-", g.choose(8))) }
func (g *script) name() string         { return pick(g, "base", "other", "third", "", "a/b") }
func (g *script) epoch() uint64        { return uint64(g.choose(6)) }
func (g *script) node() NodeID         { return pick(g, NodeID("node-1"), "node-2", "node-1", "") }

func (g *script) intent() IntentID {
	if g.choose(16) == 0 {
		return pick(g, "", IntentID("int-1"), "bad id")
	}
	g.n++
	return IntentID(fmt.Sprint("int-", g.n))
}

func (g *script) request() Request {
	if g.choose(3) != 0 {
		return Request{}
	}
	return Request{Key: fmt.Sprint("k", g.choose(6)), BodyHash: [32]byte{byte(g.choose(2))}}
}

func (g *script) policy() *NetworkPolicy {
	return pick(g, nil, &NetworkPolicy{Mode: "allow-all"}, &NetworkPolicy{Transforms: []Transform{{
		InjectHeaders: map[string]string{"b": "1", "a": "2"},
	}}})
}

func (g *script) ca() []byte { return pick(g, nil, []byte("ca-1"), []byte("ca-2")) }

// runningIn is mostly a sandbox that is running.
func (g *script) runningIn(s *State) SandboxID {
	there := slices.DeleteFunc(all(s.sandboxes), func(sb Sandbox) bool { return sb.State != SandboxRunning })
	if len(there) == 0 || g.choose(4) == 0 {
		return g.sandbox()
	}
	return there[g.choose(len(there))].ID
}

// setPolicy is mostly possible.
func (g *script) setPolicy(s *State) Command {
	return SetNetworkPolicy{
		Now: g.now, Request: g.request(), Intent: g.intent(), Org: g.org(), Sandbox: g.runningIn(s),
		Policy: NetworkPolicy{Mode: pick(g, PolicyCustom, PolicyDenyAll, ""), Transforms: []Transform{{
			Domain: "a", InjectHeaders: map[string]string{"a": fmt.Sprint(g.choose(3)), "b": "1"},
		}}},
	}
}

// reseal mostly names a thing that has something sealed, and what it has.
func (g *script) reseal(s *State) Command {
	c := Reseal{Now: g.now, Headers: []SealSwap{{Was: fmt.Sprint(g.choose(4)), Is: fmt.Sprint(g.choose(4))}}}
	there := s.Sealed()
	if len(there) == 0 || g.choose(8) == 0 {
		c.Sandbox, c.Intent = g.sandbox(), pick(g, "", "int-1", IntentID("int-9"))
		return c
	}
	v := there[g.choose(len(there))]
	c.Sandbox, c.Snapshot, c.Intent = v.Sandbox, v.Snapshot, v.Intent
	if len(v.CA) > 0 {
		c.CA = &SealSwapCA{Was: v.CA, Is: g.ca()}
	}
	if v.Policy.injects() {
		c.Headers[0].Was = v.Policy.Transforms[0].InjectHeaders["a"]
	} else if g.choose(2) == 0 {
		c.Headers = nil
	}
	return c
}

// nameIn is mostly the name of a snapshot that is there.
func (g *script) nameIn(s *State) string {
	there := all(s.snapshots)
	if len(there) == 0 || g.choose(4) == 0 {
		return g.name()
	}
	return there[g.choose(len(there))].Name
}

// snapshotIn is mostly a snapshot that is there.
func (g *script) snapshotIn(s *State) SnapshotID {
	there := all(s.snapshots)
	if len(there) == 0 || g.choose(4) == 0 {
		return g.snapshot()
	}
	return there[g.choose(len(there))].ID
}

// next makes the next command for a state.
func (g *script) next(s *State) Command {
	g.now += Time(1e9 * pick(g, 0, 1, 1, 20, 300, -2))
	switch g.choose(27) {
	case 0:
		return PutOrg{Now: g.now, Org: Org{
			ID: g.org(), Name: pick(g, "alpha", "beta", "gamma"),
			MaxSandboxes: pick(g, 0, 10, 4), MaxSnapshots: pick(g, 0, 3),
		}}
	case 1:
		return PutKey{Now: g.now, Key: APIKey{
			ID: KeyID(fmt.Sprint("key-", g.choose(4))), Org: g.org(), Hash: [32]byte{byte(g.choose(4))},
		}}
	case 2:
		return RevokeKey{Now: g.now, ID: KeyID(fmt.Sprint("key-", g.choose(4)))}
	case 3:
		return RegisterNode{Now: g.now, Node: Node{ID: g.node(), Drained: g.choose(8) == 0, Capacity: Capacity{
			VCPU: pick(g, 32, 16, 16, 4, 0), MemoryMiB: pick(g, int64(65536), 65536, 8192, 0), DiskMiB: 100_000,
		}}}
	case 4:
		return PutTemplate{Now: g.now, Template: Template{
			ID: TemplateID(fmt.Sprint("tpl-", g.choose(3))), Org: pick(g, "", OrgID("org-a")),
			Name: pick(g, "system/debian", "mine"), Digest: fmt.Sprint("sha256:", g.choose(2)),
		}}
	case 5, 6, 7:
		return CreateSandbox{
			Now: g.now, Request: g.request(), Intent: g.intent(), Org: g.org(), Sandbox: g.sandbox(),
			TemplateName: pick(g, "system/debian", "system/debian", "mine"), VCPU: g.choose(3), MemoryMiB: 1024,
			DiskMiB: 1024, TimeoutSec: int64(1 + g.choose(600)), EnvVars: map[string]string{"B": "1", "A": "2"},
			NetworkPolicy: g.policy(), CA: g.ca(),
		}
	case 8, 9:
		return RestoreSnapshot{
			Now: g.now, Request: g.request(), Intent: g.intent(), Org: g.org(), Sandbox: g.sandbox(),
			SnapshotName: g.nameIn(s), TimeoutSec: int64(1 + g.choose(600)), NetworkPolicy: g.policy(), CA: g.ca(),
		}
	case 10, 11:
		return CreateSnapshot{
			Now: g.now, Request: g.request(), Intent: g.intent(), Org: g.org(), Sandbox: g.runningIn(s),
			Snapshot: g.snapshot(), Name: g.name(), GeneratedName: pick(g, "otter", "badger"),
			KillAfter: g.choose(3) == 0,
		}
	case 12:
		return DeleteSandbox{Now: g.now, Intent: g.intent(), Org: g.org(), Sandbox: g.sandbox()}
	case 13:
		return DeleteSnapshot{Now: g.now, Intent: g.intent(), Org: g.org(), Snapshot: g.snapshotIn(s)}
	case 14, 15, 16, 22, 23, 24:
		return g.complete(s)
	case 17:
		return g.stopped(s)
	case 18:
		return pick[Command](g,
			BeginRequest{Now: g.now, Org: g.org(), Request: g.request()},
			FinishRequest{Now: g.now, Org: g.org(), Key: fmt.Sprint("k", g.choose(6)), Response: Response{Status: 200}})
	case 19, 20:
		return g.setPolicy(s)
	case 21:
		if g.choose(4) == 0 {
			limit := g.choose(12)
			return SetOrgLimits{Now: g.now, Org: g.org(), MaxSandboxes: pick(g, nil, &limit), MaxSnapshots: pick(g, nil, &limit)}
		}
		return g.reseal(s)
	case 25:
		return g.aboutNodes(s)
	default:
		g.now += pick(g, Time(0), 0, 0, 0, 0, 0, 0, 0, 0, 3600e9, RequestRetention/2)
		return Tick{Now: g.now, IntentIDs: []IntentID{g.intent(), g.intent()}}
	}
}

// stopped is mostly the word of a sandbox's owner.
func (g *script) stopped(s *State) Command {
	c := ReportStopped{Now: g.now, Sandbox: g.sandbox(), Owner: g.node(), Epoch: g.epoch(), Reason: "gone"}
	if there := all(s.sandboxes); len(there) > 0 && g.choose(2) == 0 {
		sb := there[g.choose(len(there))]
		c.Sandbox, c.Owner, c.Epoch = sb.ID, sb.Owner, sb.Epoch-uint64(g.choose(8)/7)
	}
	return c
}

// aboutNodes is mostly the leader's opinion of a node, as of now.
func (g *script) aboutNodes(s *State) Command {
	id := g.node()
	n, _ := s.Node(id)
	switch g.choose(8) {
	case 0:
		return DrainNode{Now: g.now, Node: id, Drained: g.choose(2) == 0}
	case 1:
		return PutMember{Now: g.now, Node: pick(g, id, "node-3"), Name: pick(g, "x", ""), Addr: pick(g, "a:1", "b:1")}
	case 2:
		return RemoveNode{Now: g.now, Node: pick(g, NodeID("node-3"), "node-3", "node-4", "node-2"), Force: g.choose(4) == 0}
	}
	return MarkNode{Now: g.now, Node: id, Lost: g.choose(5) == 0, Epoch: n.Epoch - uint64(g.choose(8)/7)}
}

// complete mostly completes an intent that is open.
func (g *script) complete(s *State) Command {
	c := Complete{Now: g.now, Intent: g.intent(), Owner: g.node(), Epoch: g.epoch(), NextIntent: g.intent()}
	open := append(s.OpenIntents("node-1"), s.OpenIntents("node-2")...)
	if len(open) > 0 && g.choose(8) != 0 {
		in := open[g.choose(len(open))]
		c.Intent, c.Owner, c.Epoch = in.ID, in.Owner, in.Epoch
	}
	if g.choose(4) == 0 {
		c.Error = Errorf(KindInternal, "no")
	}
	if g.choose(6) != 0 {
		c.Manifest = &Manifest{Version: 1, Files: []File{{Name: "ram", Stored: int64(g.choose(5)) << 19}}}
	}
	if g.choose(6) == 0 {
		c.SandboxStopped = "the VM ended"
	}
	c.PolicyFellBack = c.Error != nil && g.choose(4) == 0
	return c
}

// checkStep tests what holds between two states: a sandbox's epoch never goes back.
func checkStep(tb testing.TB, s *State, before map[SandboxID]uint64) map[SandboxID]uint64 {
	now := map[SandboxID]uint64{}
	for _, sb := range all(s.sandboxes) {
		now[sb.ID] = sb.Epoch
		if sb.State != SandboxStarting {
			require.GreaterOrEqual(tb, sb.Epoch, before[sb.ID], "epoch of %s", sb.ID)
		}
	}
	return now
}

// setup is what every script starts with, so that most of it is possible.
func setup(g *script, tb testing.TB) [][]byte {
	g.now = t0
	var log [][]byte
	for _, cmd := range []Command{
		PutOrg{Now: g.now, Org: Org{ID: "org-a", Name: "alpha"}},
		RegisterNode{Now: g.now, Node: Node{
			ID: "node-1", Capacity: Capacity{VCPU: 16, MemoryMiB: 16384, DiskMiB: 1 << 20},
		}},
		PutTemplate{Now: g.now, Template: Template{ID: "tpl-0", Name: "system/debian", Digest: "sha256:0"}},
	} {
		b, err := Encode(cmd)
		require.NoError(tb, err)
		log = append(log, b)
	}
	return log
}

// TestRandomCommands runs scripts under a new seed each time; STILLFRAME_SEED repeats a run.
func TestRandomCommands(t *testing.T) {
	seed := rand.Uint64()
	if text := os.Getenv("STILLFRAME_SEED"); text != "" {
		var err error
		seed, err = strconv.ParseUint(text, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("STILLFRAME_SEED=%d", seed)
	for i := range uint64(3) {
		testScript(t, seed, i, map[string]int{})
	}
}

// TestFixedScripts runs scripts under seeds that are known to get everywhere, and requires that they still do.
func TestFixedScripts(t *testing.T) {
	reached := map[string]int{}
	for i := range uint64(10) {
		testScript(t, 3, i, reached)
	}
	for _, want := range []string{
		"intent create done", "intent create failed", "intent restore done", "intent restore failed",
		"intent snapshot done", "intent snapshot failed", "intent delete done", "intent delete failed",
		"intent delete-snapshot done", "intent delete-snapshot failed", "replayed",
		"intent set-policy open", "intent set-policy done", "intent set-policy failed", "stopped under a new policy",
		"fell back", "resealed sandbox", "resealed snapshot", "resealed intent",
		"superseded", "gone at once",
	} {
		require.NotZero(t, reached[want], "the scripts are too tame: %q never happened; got %v", want,
			slices.Sorted(maps.Keys(reached)))
	}
}

// testScript runs one script: the invariants hold after every command, and replaying its log gives the same bytes, also
// from a state that was written and read in the middle.
func testScript(t *testing.T, seed, stream uint64, reached map[string]int) {
	g := &script{chooser: randomChooser{rand.New(rand.NewPCG(seed, stream))}}
	s, log := runScript(t, g, 1200, reached)
	require.Equal(t, s.Digest(), replay(t, log).Digest())
	middle := roundTrip(t, replay(t, log[:len(log)/2]))
	for _, b := range log[len(log)/2:] {
		cmd, err := Decode(b)
		require.NoError(t, err)
		middle, _ = middle.Apply(cmd)
	}
	var a, b bytes.Buffer
	_, err := s.WriteTo(&a)
	require.NoError(t, err)
	_, err = middle.WriteTo(&b)
	require.NoError(t, err)
	require.True(t, bytes.Equal(a.Bytes(), b.Bytes()))
}

// runScript applies n commands of a script, checking the invariants after each, notes what was reached, and gives the
// state and its log.
func runScript(tb testing.TB, g *script, n int, reached map[string]int) (*State, [][]byte) {
	log := setup(g, tb)
	s := New()
	for _, b := range log {
		cmd, err := Decode(b)
		require.NoError(tb, err)
		s, _ = s.Apply(cmd)
	}
	epochs := map[SandboxID]uint64{}
	for i := range n {
		cmd := g.next(s)
		b, err := Encode(cmd)
		require.NoError(tb, err)
		decoded, err := Decode(b)
		require.NoError(tb, err)
		log = append(log, b)
		next, res := s.Apply(decoded)
		require.NoError(tb, next.Check(), "command %d: %+v: %v", i, cmd, res.Err)
		epochs = checkStep(tb, next, epochs)
		if res.Replayed {
			reached["replayed"]++
		}
		if m, ok := cmd.(MarkNode); ok && m.Lost && res.Err == nil && len(s.OpenIntents(m.Node)) > 0 {
			reached["superseded"]++
		}
		if _, completes := cmd.(Complete); !completes && res.Intent.State == IntentDone && !res.Replayed {
			reached["gone at once"]++
		}
		if res.Intent.State != "" && res.Err == nil {
			reached[fmt.Sprintf("intent %s %s", res.Intent.Kind, res.Intent.State)]++
		}
		if res.Err == nil {
			noteReached(s, cmd, reached)
		}
		s = next
	}
	return s, log
}

// noteReached notes what a command that was applied to a state did, where its result does not say.
func noteReached(s *State, cmd Command, reached map[string]int) {
	switch c := cmd.(type) {
	case ReportStopped:
		if sb, _ := s.Sandbox(c.Sandbox); sb.Intent != "" {
			reached["stopped under a new policy"]++
		}
	case Complete:
		if c.PolicyFellBack {
			reached["fell back"]++
		}
	case Reseal:
		switch {
		case c.Sandbox != "":
			reached["resealed sandbox"]++
		case c.Snapshot != "":
			reached["resealed snapshot"]++
		default:
			reached["resealed intent"]++
		}
	}
}

// FuzzApply runs scripts whose choices the fuzzer makes.
func FuzzApply(f *testing.F) {
	for seed := range uint64(4) {
		b := make([]byte, 400)
		r := rand.New(rand.NewPCG(seed, seed))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		b = b[:min(len(b), 2000)]
		g := &script{chooser: &byteChooser{b}}
		s, log := runScript(t, g, len(b)/8, map[string]int{})
		if s.Digest() != replay(t, log).Digest() {
			t.Fatal("replaying the log gives another state")
		}
		roundTrip(t, s)
	})
}

// FuzzDecode decodes bytes and applies what they mean to a state with everything in it. Whatever decodes must encode,
// decode to the same again, and be applied without a panic and without breaking an invariant.
func FuzzDecode(f *testing.F) {
	for _, b := range goldenCommands(f) {
		f.Add(b)
	}
	var full bytes.Buffer
	b, err := os.ReadFile("testdata/state-2.golden")
	require.NoError(f, err)
	full.Write(b)
	state, err := Read(&full)
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, b []byte) {
		cmd, err := Decode(b)
		if err != nil {
			require.ErrorIs(t, err, ErrUnknownCommand)
			return
		}
		again, err := Encode(cmd)
		if err != nil {
			require.Greater(t, len(b), MaxCommandBytes/2) // a small one always encodes
			return
		}
		back, err := Decode(again)
		require.NoError(t, err)
		next, res := state.Apply(cmd)
		next2, res2 := state.Apply(back)
		require.Equal(t, res, res2)
		require.NoError(t, next.Check())
		require.Equal(t, next.Digest(), next2.Digest())
		roundTrip(t, next)
	})
}

// FuzzRead reads bytes as a state: it never panics, and what it takes is what WriteTo would have written.
func FuzzRead(f *testing.F) {
	b, err := os.ReadFile("testdata/state-1.golden")
	require.NoError(f, err)
	f.Add(b)
	f.Add(b[:len(b)/2])
	b, err = os.ReadFile("testdata/state-2.golden")
	require.NoError(f, err)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Read(bytes.NewReader(b))
		if err != nil {
			require.Nil(t, s)
			return
		}
		s.Digest()
	})
}

package fsm

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew; what they held is in old logs: add to it only")

// everyCommand has one command of each type with every field set, in the order of the types.
func everyCommand() []Command {
	rq := Request{Key: "retry-1", BodyHash: [32]byte{1, 2, 3}}
	policy := &NetworkPolicy{
		Mode: "custom", AllowDomains: []string{"*.example.com"}, AllowCIDRs: []string{"10.0.0.0/8"},
		Transforms: []Transform{{
			Domain: "api.example.com", InjectHeaders: map[string]string{"x-b": "2", "x-a": "1"},
			StripHeaders: []string{"cookie"},
		}},
	}
	now := Time(1_700_000_000_123_456_789)
	limits := []int{7, 8, 9}
	return []Command{
		PutOrg{Now: now, Org: Org{
			ID: "org-a", Name: "alpha", CreatedAt: 5, MaxSandboxes: 10, MaxSnapshots: 300, MaxRequests: 600,
		}},
		PutKey{Now: now, Key: APIKey{
			ID: "key-a", Org: "org-a", Label: "laptop", Hash: [32]byte{9}, CreatedAt: 5, RevokedAt: 6,
		}},
		RevokeKey{Now: now, ID: "key-a"},
		RegisterNode{Now: now, Node: Node{
			ID: "node-1", Name: "first", APIAddr: "127.0.0.1:8080",
			Capacity: Capacity{VCPU: 8, MemoryMiB: 65536, DiskMiB: 1 << 20},
			VMM:      "cloud-hypervisor", VMMVersion: "v52.0", CPUFingerprint: "f00d",
			CloneMethod: "reflink", Drained: true, RegisteredAt: 7,
		}},
		PutTemplate{Now: now, Template: Template{
			ID: "tpl-1", Org: "org-a", Name: "mine", Digest: "sha256:aa", CreatedAt: 8,
		}},
		CreateSandbox{
			Now: now, Request: rq, Intent: "int-1", Org: "org-a", Sandbox: "sbx-1", TemplateName: "system/debian",
			VCPU: 2, MemoryMiB: 1024, DiskMiB: 10240, TimeoutSec: 300, AutoPause: true,
			EnvVars: map[string]string{"B": "2", "A": "1", "C": "3"}, NetworkPolicy: policy, CA: []byte{7, 8},
		},
		RestoreSnapshot{
			Now: now, Request: rq, Intent: "int-2", Org: "org-a", Sandbox: "sbx-2", SnapshotName: "base",
			TimeoutSec: 300, AutoPause: true, NetworkPolicy: policy, CA: []byte{7, 8},
		},
		CreateSnapshot{
			Now: now, Request: rq, Intent: "int-3", Org: "org-a", Sandbox: "sbx-1", Snapshot: "snap-1", Name: "base",
			GeneratedName: "quiet-otter", KillAfter: true,
		},
		DeleteSandbox{Now: now, Intent: "int-4", Org: "org-a", Sandbox: "sbx-1"},
		DeleteSnapshot{Now: now, Intent: "int-5", Org: "org-a", Snapshot: "snap-1"},
		Complete{
			Now: now, Intent: "int-3", Owner: "node-1", Epoch: 3,
			Error:    &Error{Kind: KindInternal, Message: "no", Field: "name"},
			Manifest: &testManifest, SandboxStopped: "gone", NextIntent: "int-6", PolicyFellBack: true,
		},
		ReportStopped{Now: now, Sandbox: "sbx-1", Owner: "node-1", Epoch: 3, Reason: "gone"},
		BeginRequest{Now: now, Org: "org-a", Request: rq},
		FinishRequest{Now: now, Org: "org-a", Key: "retry-1", Response: Response{
			Status: 200, TooLarge: true, ContentType: "application/json", Body: []byte("{}"),
		}},
		Tick{Now: now, IntentIDs: []IntentID{"int-7", "int-8"}},
		SetNetworkPolicy{Now: now, Request: rq, Intent: "int-9", Org: "org-a", Sandbox: "sbx-1", Policy: *policy},
		Reseal{
			Now: now, Sandbox: "sbx-1", Snapshot: "snap-1", Intent: "int-9",
			Headers: []SealSwap{{Was: "sealed-1", Is: "sealed-2"}}, CA: &SealSwapCA{Was: []byte{1}, Is: []byte{2}},
		},
		MarkNode{Now: now, Node: "node-1", Lost: true, Epoch: 4},
		PutMember{Now: now, Node: "node-1", Name: "first", Addr: "10.0.0.1:7071"},
		RemoveNode{Now: now, Node: "node-1", Force: true},
		DrainNode{Now: now, Node: "node-1", Drained: true},
		SetOrgLimits{
			Now: now, Org: "org-a", MaxSandboxes: &limits[0], MaxSnapshots: &limits[1], MaxRequests: &limits[2],
		},
	}
}

func TestEveryTypeIsCovered(t *testing.T) {
	cmds := everyCommand()
	require.Len(t, cmds, len(decoders))
	seen := map[CommandType]bool{}
	for _, cmd := range cmds {
		require.False(t, seen[cmd.commandType()], "two types have number %d", cmd.commandType())
		seen[cmd.commandType()] = true
	}
}

// TestGoldenCommands pins the bytes of every command, filled and empty: today's encoder writes them, and a decoder of
// any later version must read them. What earlier encoders wrote stays in the file.
func TestGoldenCommands(t *testing.T) {
	path := filepath.Join("testdata", "commands.golden")
	var lines []string
	for _, cmd := range everyCommand() {
		for _, c := range []Command{cmd, zeroOf(cmd)} {
			b, err := Encode(c)
			require.NoError(t, err)
			lines = append(lines, fmt.Sprintf("%T %s", c, hex.EncodeToString(b)))
			got, err := Decode(b)
			require.NoError(t, err)
			require.Equal(t, c, got)
		}
	}
	kept, err := os.ReadFile(path)
	require.NoError(t, err)
	pinned := strings.Split(strings.TrimSuffix(string(kept), "\n"), "\n")
	for _, line := range lines {
		if *rewrite && !slices.Contains(pinned, line) {
			pinned = append(pinned, line)
		}
		require.Contains(t, pinned, line)
	}
	if *rewrite {
		require.NoError(t, os.WriteFile(path, []byte(strings.Join(pinned, "\n")+"\n"), 0o644))
	}
	for _, b := range goldenCommands(t) {
		cmd, err := Decode(b)
		require.NoError(t, err)
		again, err := Encode(cmd)
		require.NoError(t, err)
		require.Equal(t, b, again, "what an older program wrote means the same")
	}
}

// zeroOf gives the zero command of a command's type, by way of the decoder.
func zeroOf(cmd Command) Command {
	zero, err := Decode([]byte{envelopeFormat, byte(cmd.commandType()), 1, 0x80}) // an empty map
	if err != nil {
		panic(err)
	}
	return zero
}

func TestDecodeRejects(t *testing.T) {
	good, err := Encode(everyCommand()[0])
	require.NoError(t, err)
	with := func(i int, b byte) []byte {
		out := bytes.Clone(good)
		out[i] = b
		return out
	}
	for name, b := range map[string][]byte{
		"nothing":        nil,
		"half a header":  good[:2],
		"no body":        good[:3],
		"other format":   with(0, 2),
		"type zero":      with(1, 0),
		"unknown type":   with(1, 200),
		"version zero":   with(2, 0),
		"newer version":  with(2, 3),
		"cut short":      good[:len(good)-1],
		"garbage behind": append(bytes.Clone(good), 0),
		"other body":     with(1, byte(TypeTick)),
		"unknown field":  {envelopeFormat, byte(TypeTick), 1, 0x81, 0xa2, 'z', 'z', 1},
		"huge length":    {envelopeFormat, byte(TypeTick), 1, 0x81, 0xa2, 'i', 'n', 0xdd, 0xff, 0xff, 0xff, 0xff},
		"huge string":    {envelopeFormat, byte(TypeRevokeKey), 1, 0x81, 0xa2, 'i', 'd', 0xdb, 0xff, 0xff, 0xff, 0xff},
	} {
		t.Run(name, func(t *testing.T) {
			cmd, err := Decode(b)
			require.ErrorIs(t, err, ErrUnknownCommand)
			require.Nil(t, cmd)
		})
	}
}

func TestEncodeRejects(t *testing.T) {
	for _, cmd := range []Command{nil, &Tick{}, (*Tick)(nil)} {
		_, err := Encode(cmd)
		require.ErrorContains(t, err, "is not a command")
		next, res := New().Apply(cmd)
		require.Equal(t, KindInternal, res.Err.Kind)
		require.Equal(t, New().Digest(), next.Digest())
	}
	_, err := Encode(FinishRequest{Response: Response{Body: make([]byte, MaxCommandBytes)}})
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, KindTooLarge, e.Kind)
	_, err = Encode(FinishRequest{Key: strings.Repeat("k", 255), Response: Response{Body: make([]byte, MaxKeptBody)}})
	require.NoError(t, err, "the longest body that is kept fits")
}

func TestEncodingIsCanonical(t *testing.T) {
	env := map[string]string{}
	for i := range 100 {
		env[fmt.Sprint("K", i)] = "v"
	}
	first, err := Encode(CreateSandbox{EnvVars: env})
	require.NoError(t, err)
	for range 20 { // Go's order of maps differs from one iteration to the next
		again, err := Encode(CreateSandbox{EnvVars: env})
		require.NoError(t, err)
		require.Equal(t, first, again)
	}
}

// goldenCommands reads the pinned commands as bytes, for seeds.
func goldenCommands(tb testing.TB) [][]byte {
	tb.Helper()
	f, err := os.Open(filepath.Join("testdata", "commands.golden"))
	require.NoError(tb, err)
	defer func() { _ = f.Close() }()
	var out [][]byte
	for sc := bufio.NewScanner(f); sc.Scan(); {
		_, text, _ := strings.Cut(sc.Text(), " ")
		b, err := hex.DecodeString(text)
		require.NoError(tb, err)
		out = append(out, b)
	}
	return out
}

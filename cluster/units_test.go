package cluster

import (
	"bytes"
	"errors"
	"log/slog"
	"regexp"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"

	"stillframe/fsm"
)

// TestProposalErrors is the table at Apply, but for what only a running library answers.
func TestProposalErrors(t *testing.T) {
	for _, c := range []struct {
		err   error
		index uint64
		want  fsm.Kind
	}{
		{raft.ErrEnqueueTimeout, 0, fsm.KindUnavailable},
		{raft.ErrNotLeader, 0, fsm.KindUnavailable},
		{raft.ErrLeadershipTransferInProgress, 0, fsm.KindUnavailable},
		{raft.ErrRaftShutdown, 0, fsm.KindUnavailable},
		{raft.ErrRaftShutdown, 7, fsm.KindUnknown},
		{raft.ErrLeadershipLost, 7, fsm.KindUnknown},
		{raft.ErrAbortedByRestore, 7, fsm.KindUnknown},
		{errors.New("no space left on device"), 7, fsm.KindUnknown},
	} {
		got := proposalError(c.err, c.index)
		require.Equal(t, c.want, got.Kind, "%v at %d", c.err, c.index)
		require.NotContains(t, got.Message, "space", "the cause is for the log only")
	}
}

func TestIDs(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		for prefix, id := range map[string]string{
			"org": string(NewOrgID()), "key": string(NewKeyID()), "tpl": string(NewTemplateID()),
			"sbx": string(NewSandboxID()), "snap": string(NewSnapshotID()), "int": string(NewIntentID()),
		} {
			require.Regexp(t, regexp.MustCompile("^"+prefix+"-[a-z2-7]{26}$"), id)
			require.False(t, seen[id])
			seen[id] = true
		}
	}
}

func TestRaftLogger(t *testing.T) {
	var buf bytes.Buffer
	l := newRaftLogger(slog.New(slog.NewTextHandler(&buf, &slog.HandlerOptions{Level: slog.LevelInfo})))
	args := []any{"servers", hclog.Fmt("%d of %s", 3, "five")}
	l.Named("net").With("peer", "b").Warn("slow", args...)
	line := buf.String()
	for _, want := range []string{"level=WARN", "msg=slow", "component=raft",
		"part=net", "peer=b", `servers="3 of five"`} {
		require.Contains(t, line, want)
	}
	require.IsType(t, hclog.Format{}, args[1], "the caller's arguments stay as they were")
	buf.Reset()
	l.Debug("quiet")
	l.Trace("quiet")
	require.Empty(t, buf.String())
	require.False(t, l.IsDebug())
	require.True(t, l.IsInfo())
	require.Equal(t, hclog.Info, l.GetLevel())
	l.StandardLogger(nil).Print("plain")
	require.Contains(t, buf.String(), "plain")
}

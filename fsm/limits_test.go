package fsm

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSetOrgLimits(t *testing.T) {
	w := newWorld(t)
	one, two, none, below := 1, 2, 0, -1
	w.refused(SetOrgLimits{Now: w.now, Org: "org-x", MaxSandboxes: &one}, KindNotFound, "org-x")
	w.refused(SetOrgLimits{Now: w.now, Org: "org-a", MaxSandboxes: &one, MaxRequests: &below}, KindInvalid, "negative")
	w.refused(SetOrgLimits{Org: "org-a"}, KindInvalid, "time")
	w.ok(SetOrgLimits{Now: w.now, Org: "org-a", MaxSandboxes: &one, MaxRequests: &two})
	w.ok(SetOrgLimits{Now: w.now, Org: "org-a", MaxSnapshots: &two})
	org, _ := w.s.Org("org-a")
	require.Equal(t, Org{
		ID: "org-a", Name: "alpha", CreatedAt: t0, MaxSandboxes: 1, MaxSnapshots: 2, MaxRequests: 2,
	}, org)

	w.running("sbx-1")
	w.refused(w.create("sbx-2"), KindLimit, "1 of at most 1 sandboxes")
	w.ready("sbx-1", "snap-1", "one")
	w.ok(SetOrgLimits{Now: w.now, Org: "org-a", MaxSandboxes: &none, MaxSnapshots: &one})
	w.running("sbx-2")
	w.refused(w.snap("sbx-1", "snap-2", "two"), KindLimit, "1 of at most 1 snapshots")
	sandboxes, snapshots := w.s.OrgUse("org-a")
	require.Equal(t, 2, sandboxes)
	require.Equal(t, 1, snapshots)
	w.ok(SetOrgLimits{Now: w.now, Org: "org-a", MaxSandboxes: &one})
	require.Equal(t, SandboxRunning, w.sandbox("sbx-2").State, "a lower bound takes nothing away")
	w.refused(w.create("sbx-3"), KindLimit, "2 of at most 1 sandboxes")
}

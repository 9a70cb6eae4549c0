package fsm

import (
	"bytes"
	"fmt"
	"slices"
)

// Check tests the invariants of the package comment and gives the first that is broken. It takes time in proportion to
// the state and is meant for tests and for diagnosis: Apply keeps the invariants without it.
func (s *State) Check() error {
	for _, check := range []func(*State) error{
		checkIndexes, checkSandboxes, checkSnapshots, checkIntents, checkRequests, checkReferences, checkNodes,
	} {
		if err := check(s); err != nil {
			return err
		}
	}
	return nil
}

// checkIndexes derives every index again from the tables and compares (invariants 1, 2 and 7).
func checkIndexes(s *State) error {
	d := New().draft()
	each(s.orgs, d.putOrg)
	each(s.keys, d.putKey)
	each(s.nodes, d.putNode)
	each(s.templates, d.putTemplate)
	each(s.sandboxes, d.putSandbox)
	each(s.snapshots, d.putSnapshot)
	each(s.intents, d.putIntent)
	each(s.requests, d.putRequest)
	want := &d.State
	for _, err := range []error{
		same("orgNames", s.orgNames, want.orgNames), same("keyHashes", s.keyHashes, want.keyHashes),
		same("orgKeys", s.orgKeys, want.orgKeys), same("templateNames", s.templateNames, want.templateNames),
		sameRows("orgSandboxes", s.orgSandboxes, want.orgSandboxes, s.sandboxes, sandboxKey),
		same("nodeSandboxes", s.nodeSandboxes, want.nodeSandboxes),
		same("snapshotSandboxes", s.snapshotSandboxes, want.snapshotSandboxes),
		same("sandboxTimeouts", s.sandboxTimeouts, want.sandboxTimeouts),
		same("snapshotNames", s.snapshotNames, want.snapshotNames),
		sameRows("readySnapshots", s.readySnapshots, want.readySnapshots, s.snapshots, snapshotKey),
		same("nodeSnapshots", s.nodeSnapshots, want.nodeSnapshots),
		same("openIntents", s.openIntents, want.openIntents),
		same("closedIntents", s.closedIntents, want.closedIntents),
		same("requestExpiries", s.requestExpiries, want.requestExpiries),
		same("nodeUse", s.nodeUse, want.nodeUse), same("orgCounts", s.orgCounts, want.orgCounts),
	} {
		if err != nil {
			return err
		}
	}
	if a, b := s.snapshots.Len(), s.snapshotNames.Len(); a != b {
		return fmt.Errorf("%d snapshots hold %d names", a, b)
	}
	if a, b := s.orgs.Len(), s.orgNames.Len(); a != b {
		return fmt.Errorf("%d organizations hold %d names", a, b)
	}
	return nil
}

// sandboxIntents gives the kinds of intent that may be open in a state of a sandbox; in all but running, one must be.
func sandboxIntents(state SandboxState) []IntentKind {
	switch state {
	case SandboxStarting:
		return []IntentKind{IntentCreate, IntentRestore}
	case SandboxRunning:
		return []IntentKind{IntentSetPolicy}
	case SandboxSnapshotting:
		return []IntentKind{IntentSnapshot}
	case SandboxDeleting:
		return []IntentKind{IntentDelete}
	}
	return nil
}

// checkSandboxes tests invariant 3, and that times are set when they should be.
func checkSandboxes(s *State) error {
	for sb := range s.sandboxes.rows() {
		kinds := sandboxIntents(sb.State)
		if idle := sb.Intent == "" && sb.State == SandboxRunning; !idle && (sb.Intent != "") != (len(kinds) > 0) {
			return fmt.Errorf("sandbox %s is %s with intent %q", sb.ID, sb.State, sb.Intent)
		}
		if (sb.State == SandboxStarting) != (sb.LaunchedAt == 0) || (sb.LaunchedAt == 0) != (sb.TimeoutAt == 0) {
			return fmt.Errorf("sandbox %s is %s, launched at %d, to end at %d", sb.ID, sb.State, sb.LaunchedAt,
				sb.TimeoutAt)
		}
		if sb.Intent == "" {
			continue
		}
		in, ok := s.Intent(sb.Intent)
		if !ok || in.State != IntentOpen || in.Sandbox != sb.ID || in.Owner != sb.Owner || in.Epoch != sb.Epoch ||
			!slices.Contains(kinds, in.Kind) {
			return fmt.Errorf("sandbox %s is %s at epoch %d on %s with intent %+v", sb.ID, sb.State, sb.Epoch,
				sb.Owner, in)
		}
	}
	return nil
}

// checkSnapshots tests invariant 4.
func checkSnapshots(s *State) error {
	kinds := map[SnapshotState]IntentKind{SnapshotCreating: IntentSnapshot, SnapshotDeleting: IntentDeleteSnapshot}
	for sn := range s.snapshots.rows() {
		if (sn.Manifest == nil) != (sn.State == SnapshotCreating) {
			return fmt.Errorf("snapshot %s is %s with manifest %v", sn.ID, sn.State, sn.Manifest)
		}
		if (sn.State == SnapshotReady) != (sn.Intent == "") {
			return fmt.Errorf("snapshot %s is %s with intent %q", sn.ID, sn.State, sn.Intent)
		}
		if sn.Intent == "" {
			continue
		}
		in, ok := s.Intent(sn.Intent)
		if !ok || in.State != IntentOpen || in.Snapshot != sn.ID || in.Owner != sn.Owner || in.Epoch != sn.Epoch ||
			in.Kind != kinds[sn.State] {
			return fmt.Errorf("snapshot %s is %s at epoch %d on %s with intent %+v", sn.ID, sn.State, sn.Epoch,
				sn.Owner, in)
		}
	}
	return nil
}

// checkIntents tests invariant 5.
func checkIntents(s *State) error {
	for in := range s.intents.rows() {
		if (in.State == IntentFailed) != (in.Error != nil) || (in.State == IntentOpen) != (in.ClosedAt == 0) {
			//nolint:errorlint // a value that is described, not a cause
			return fmt.Errorf("intent %s is %s with error %v, closed at %d", in.ID, in.State, in.Error, in.ClosedAt)
		}
		if (in.Kind == IntentSetPolicy) != (in.NetworkPolicy != nil) {
			return fmt.Errorf("intent %s of kind %s has policy %v", in.ID, in.Kind, in.NetworkPolicy)
		}
		if in.State != IntentOpen {
			if err := noSecrets(*in); err != nil {
				return err
			}
			continue
		}
		if sb, _ := s.Sandbox(in.Sandbox); in.Kind != IntentDeleteSnapshot && sb.Intent != in.ID {
			return fmt.Errorf("open intent %s is not that of sandbox %q", in.ID, in.Sandbox)
		}
		onSnapshot := in.Kind == IntentSnapshot || in.Kind == IntentDeleteSnapshot
		if sn, _ := s.Snapshot(in.Snapshot); onSnapshot && sn.Intent != in.ID {
			return fmt.Errorf("open intent %s is not that of snapshot %q", in.ID, in.Snapshot)
		}
	}
	return nil
}

// noSecrets tests invariant 10 on a closed intent.
func noSecrets(in Intent) error {
	b, err := marshal(in)
	if err != nil {
		return err
	}
	bare, err := marshal(in.withoutSecrets())
	if err != nil {
		return err
	}
	if !bytes.Equal(b, bare) {
		return fmt.Errorf("closed intent %s holds sealed values", in.ID)
	}
	return nil
}

// checkRequests tests invariant 8.
func checkRequests(s *State) error {
	for r := range s.requests.rows() {
		if in, ok := s.Intent(r.Intent); r.Intent != "" && (!ok || in.KeepUntil < r.ExpiresAt) {
			return fmt.Errorf("request %q of %s outlives intent %s", r.Key, r.Org, r.Intent)
		}
		outcomes := 0
		for _, there := range []bool{r.Intent != "", r.Error != nil, r.Response != nil} {
			if there {
				outcomes++
			}
		}
		if outcomes > 1 {
			return fmt.Errorf("request %q of %s has %d outcomes", r.Key, r.Org, outcomes)
		}
	}
	return nil
}

// checkReferences tests invariant 9.
func checkReferences(s *State) error {
	exists := func(what string, org OrgID, owner NodeID, template TemplateID) error {
		_, okOrg := s.Org(org)
		_, okOwner := s.Node(owner)
		_, okTemplate := s.Template(template)
		if !okOrg || !okOwner || !okTemplate {
			return fmt.Errorf("%s refers to organization %q, node %q, template %q", what, org, owner, template)
		}
		return nil
	}
	for sb := range s.sandboxes.rows() {
		if err := exists("sandbox "+string(sb.ID), sb.Org, sb.Owner, sb.Template); err != nil {
			return err
		}
		if _, ok := s.Snapshot(sb.Snapshot); sb.Snapshot != "" && !ok {
			return fmt.Errorf("sandbox %s refers to snapshot %q", sb.ID, sb.Snapshot)
		}
	}
	for sn := range s.snapshots.rows() {
		if err := exists("snapshot "+string(sn.ID), sn.Org, sn.Owner, sn.Template); err != nil {
			return err
		}
	}
	for k := range s.keys.rows() {
		if _, ok := s.Org(k.Org); !ok {
			return fmt.Errorf("key %s refers to organization %q", k.ID, k.Org)
		}
	}
	return nil
}

// checkNodes tests invariant 10.
func checkNodes(s *State) error {
	for n := range s.nodes.rows() {
		if open := s.OpenIntents(n.ID); len(open) > 0 && (n.Lost() || n.Removed()) {
			return fmt.Errorf("node %s, lost at %d, removed at %d, has open intent %s", n.ID, n.LostAt, n.RemovedAt, open[0].ID)
		}
		if n.Removed() && len(s.SandboxesOn(n.ID))+len(s.SnapshotsOn(n.ID)) > 0 {
			return fmt.Errorf("node %s was removed and holds something", n.ID)
		}
	}
	return nil
}

func snapshotKey(sn *Snapshot) string { return string(sn.ID) }
func sandboxKey(sb *Sandbox) string   { return string(sb.ID) }

// sameRows compares two indexes that lead to rows, and makes sure that the rows are those of the table.
func sameRows[T any](name string, got, want, table *tree[T], id func(*T) string) error {
	for row := range got.rows() {
		if table.ref([]byte(id(row))) != row {
			return fmt.Errorf("index %s has a row %s that is not the table's", name, id(row))
		}
	}
	return sameBy(name, got, want, func(a, b *T) bool { return id(a) == id(b) })
}

func each[T any](t *tree[T], do func(T)) {
	for v := range t.rows() {
		do(*v)
	}
}

// same compares two indexes, entry by entry.
func same[T comparable](name string, got, want *tree[T]) error {
	return sameBy(name, got, want, func(a, b *T) bool { return *a == *b })
}

func sameBy[T any](name string, got, want *tree[T], equal func(a, b *T) bool) error {
	a, b := got.cursor(0), want.cursor(0)
	for {
		ka, va, oka := a.next()
		kb, vb, okb := b.next()
		if !oka && !okb {
			return nil
		}
		if oka != okb || ka != kb || !equal(va, vb) {
			return fmt.Errorf("index %s has %q → %v where the tables imply %q → %v", name, ka, va, kb, vb)
		}
	}
}

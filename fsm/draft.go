package fsm

import iradix "github.com/hashicorp/go-immutable-radix/v2"

// draft is a state in the making: the only thing with methods that write. It is dropped when its command is refused,
// and its State is never written again once Apply or Read has returned it.
type draft struct{ State }

func (s *State) draft() *draft { return &draft{*s} }

func put[T any](t **iradix.Tree[T], key []byte, v T) { *t, _, _ = (*t).Insert(key, v) }
func drop[T any](t **iradix.Tree[T], key []byte)     { *t, _, _ = (*t).Delete(key) }

func (d *draft) putOrg(o Org) {
	if old, ok := d.Org(o.ID); ok {
		drop(&d.orgNames, []byte(old.Name))
	}
	put(&d.orgs, []byte(o.ID), o)
	put(&d.orgNames, []byte(o.Name), o.ID)
}

func (d *draft) putKey(k APIKey) {
	put(&d.keys, []byte(k.ID), k)
	put(&d.keyHashes, append([]byte(nil), k.Hash[:]...), k.ID)
	put(&d.orgKeys, joined(string(k.Org), string(k.ID)), k.ID)
}

func (d *draft) putNode(n Node) { put(&d.nodes, []byte(n.ID), n) }

func (d *draft) putTemplate(t Template) {
	put(&d.templates, []byte(t.ID), t)
	put(&d.templateNames, joined(string(t.Org), t.Name), t.ID)
}

func (d *draft) putSandbox(sb Sandbox) {
	d.dropSandbox(sb.ID)
	put(&d.sandboxes, []byte(sb.ID), sb)
	put(&d.orgSandboxes, joinedTimed(string(sb.Org), sb.CreatedAt, string(sb.ID)), sb.ID)
	put(&d.nodeSandboxes, joined(string(sb.Owner), string(sb.ID)), sb.ID)
	if sb.Snapshot != "" {
		put(&d.snapshotSandboxes, joined(string(sb.Snapshot), string(sb.ID)), sb.ID)
	}
	if reapable(sb) {
		put(&d.sandboxTimeouts, timed(sb.TimeoutAt, string(sb.ID)), sb.ID)
	}
	d.use(sb.Owner, sandboxUse(sb), 1)
	d.count(sb.Org, counts{sandboxes: 1}, 1)
}

func (d *draft) dropSandbox(id SandboxID) {
	sb, ok := d.Sandbox(id)
	if !ok {
		return
	}
	drop(&d.sandboxes, []byte(sb.ID))
	drop(&d.orgSandboxes, joinedTimed(string(sb.Org), sb.CreatedAt, string(sb.ID)))
	drop(&d.nodeSandboxes, joined(string(sb.Owner), string(sb.ID)))
	drop(&d.snapshotSandboxes, joined(string(sb.Snapshot), string(sb.ID)))
	drop(&d.sandboxTimeouts, timed(sb.TimeoutAt, string(sb.ID)))
	d.use(sb.Owner, sandboxUse(sb), -1)
	d.count(sb.Org, counts{sandboxes: 1}, -1)
}

func (d *draft) putSnapshot(sn Snapshot) {
	d.dropSnapshot(sn.ID)
	put(&d.snapshots, []byte(sn.ID), sn)
	put(&d.snapshotNames, joined(string(sn.Org), sn.Name), sn.ID)
	put(&d.orgSnapshots, joinedTimed(string(sn.Org), sn.CreatedAt, string(sn.ID)), sn.ID)
	put(&d.nodeSnapshots, joined(string(sn.Owner), string(sn.ID)), sn.ID)
	d.use(sn.Owner, snapshotUse(sn), 1)
	d.count(sn.Org, counts{snapshots: 1}, 1)
}

func (d *draft) dropSnapshot(id SnapshotID) {
	sn, ok := d.Snapshot(id)
	if !ok {
		return
	}
	drop(&d.snapshots, []byte(sn.ID))
	drop(&d.snapshotNames, joined(string(sn.Org), sn.Name))
	drop(&d.orgSnapshots, joinedTimed(string(sn.Org), sn.CreatedAt, string(sn.ID)))
	drop(&d.nodeSnapshots, joined(string(sn.Owner), string(sn.ID)))
	d.use(sn.Owner, snapshotUse(sn), -1)
	d.count(sn.Org, counts{snapshots: 1}, -1)
}

// putIntent puts an intent, a closed one without the secrets that nobody needs any more.
func (d *draft) putIntent(in Intent) {
	d.dropIntent(in.ID)
	if in.State != IntentOpen {
		in = in.withoutSecrets()
	}
	put(&d.intents, []byte(in.ID), in)
	if in.State == IntentOpen {
		put(&d.openIntents, joinedTimed(string(in.Owner), in.CreatedAt, string(in.ID)), in.ID)
	} else {
		put(&d.closedIntents, timed(in.KeepUntil, string(in.ID)), in.ID)
	}
}

func (d *draft) dropIntent(id IntentID) {
	in, ok := d.Intent(id)
	if !ok {
		return
	}
	drop(&d.intents, []byte(in.ID))
	drop(&d.openIntents, joinedTimed(string(in.Owner), in.CreatedAt, string(in.ID)))
	drop(&d.closedIntents, timed(in.KeepUntil, string(in.ID)))
}

func (d *draft) putRequest(r RequestRecord) {
	d.dropRequest(requestKey{r.Org, r.Key})
	put(&d.requests, joined(string(r.Org), r.Key), r)
	put(&d.requestExpiries, timed(r.ExpiresAt, string(joined(string(r.Org), r.Key))), requestKey{r.Org, r.Key})
}

func (d *draft) dropRequest(k requestKey) {
	r, ok := d.Request(k.org, k.key)
	if !ok {
		return
	}
	drop(&d.requests, joined(string(r.Org), r.Key))
	drop(&d.requestExpiries, timed(r.ExpiresAt, string(joined(string(r.Org), r.Key))))
}

// use adds to what a node holds, or takes away with sign -1.
func (d *draft) use(node NodeID, c Capacity, sign int64) {
	use := d.Used(node)
	use.VCPU += int(sign) * c.VCPU
	use.MemoryMiB += sign * c.MemoryMiB
	use.DiskMiB += sign * c.DiskMiB
	if use == (Capacity{}) {
		drop(&d.nodeUse, []byte(node))
		return
	}
	put(&d.nodeUse, []byte(node), use)
}

// count adds to what an organization has, or takes away with sign -1.
func (d *draft) count(org OrgID, c counts, sign int) {
	n, _ := d.orgCounts.Get([]byte(org))
	n.sandboxes += sign * c.sandboxes
	n.snapshots += sign * c.snapshots
	if n == (counts{}) {
		drop(&d.orgCounts, []byte(org))
		return
	}
	put(&d.orgCounts, []byte(org), n)
}

// deletable says whether a delete intent may be opened on a sandbox.
func deletable(sb Sandbox) bool {
	return sb.Intent == "" && (sb.State == SandboxRunning || sb.State == SandboxStopped)
}

// reapable says whether a Tick after TimeoutAt deletes a sandbox.
func reapable(sb Sandbox) bool { return deletable(sb) && sb.TimeoutAt != 0 }

func sandboxUse(sb Sandbox) Capacity {
	if sb.State == SandboxStopped {
		return Capacity{DiskMiB: sb.DiskMiB}
	}
	return Capacity{VCPU: sb.VCPU, MemoryMiB: sb.MemoryMiB, DiskMiB: sb.DiskMiB}
}

func snapshotUse(sn Snapshot) Capacity {
	if sn.Manifest == nil {
		return Capacity{}
	}
	var stored int64 // bytes
	for _, f := range sn.Manifest.Files {
		stored += f.Stored
	}
	return Capacity{DiskMiB: (stored + 1<<20 - 1) >> 20}
}

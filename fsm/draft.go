package fsm

import "bytes"

// draft is a state in the making: the only thing with methods that write. It is dropped when its command is refused,
// and its State is never written again once Apply or Read has returned it.
type draft struct{ State }

func (s *State) draft() *draft { return &draft{*s} }

func put[T any](t **tree[T], key []byte, v T) { *t = (*t).with(string(key), &v) }
func drop[T any](t **tree[T], key []byte)     { *t = (*t).without(key) }

// move brings the entry of an index from a key to another; a nil key is none.
func move[T any](t **tree[T], from, to []byte, v T) {
	if from != nil && to != nil && bytes.Equal(from, to) {
		return
	}
	if from != nil {
		drop(t, from)
	}
	if to != nil {
		put(t, to, v)
	}
}

// moveRow is move for an index that leads to rows: a row that changes is another one, under whatever key.
func moveRow[T any](t **tree[T], from, to []byte, row *T) {
	if from != nil && (to == nil || !bytes.Equal(from, to)) {
		drop(t, from)
	}
	if to != nil {
		*t = (*t).with(string(to), row)
	}
}

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

// sandboxKeys are the keys of a sandbox in the indexes; nil where it is not in one.
type sandboxKeys struct{ org, node, snapshot, timeout []byte }

func keysOfSandbox(sb *Sandbox) (k sandboxKeys) {
	if sb == nil {
		return k
	}
	k.org = joinedTimed(string(sb.Org), sb.CreatedAt, string(sb.ID))
	k.node = joined(string(sb.Owner), string(sb.ID))
	if sb.Snapshot != "" {
		k.snapshot = joined(string(sb.Snapshot), string(sb.ID))
	}
	if reapable(*sb) {
		k.timeout = timed(sb.TimeoutAt, string(sb.ID))
	}
	return k
}

func (d *draft) putSandbox(sb Sandbox) {
	old := d.sandboxes.ref([]byte(sb.ID))
	d.sandboxes = d.sandboxes.with(string(sb.ID), &sb)
	d.indexSandbox(old, &sb)
}

func (d *draft) dropSandbox(id SandboxID) {
	if old := d.sandboxes.ref([]byte(id)); old != nil {
		drop(&d.sandboxes, []byte(id))
		d.indexSandbox(old, nil)
	}
}

// indexSandbox puts the indexes right after a sandbox became another; nil is none.
func (d *draft) indexSandbox(old, sb *Sandbox) {
	was, is := keysOfSandbox(old), keysOfSandbox(sb)
	moveRow(&d.orgSandboxes, was.org, is.org, sb)
	var id SandboxID
	if sb != nil {
		id = sb.ID
	}
	move(&d.nodeSandboxes, was.node, is.node, id)
	move(&d.snapshotSandboxes, was.snapshot, is.snapshot, id)
	move(&d.sandboxTimeouts, was.timeout, is.timeout, id)
	if old != nil && sb != nil && old.Owner == sb.Owner && old.Org == sb.Org && sandboxUse(*old) == sandboxUse(*sb) {
		return
	}
	if old != nil {
		d.use(old.Owner, sandboxUse(*old), -1)
		d.count(old.Org, counts{sandboxes: 1}, -1)
	}
	if sb != nil {
		d.use(sb.Owner, sandboxUse(*sb), 1)
		d.count(sb.Org, counts{sandboxes: 1}, 1)
	}
}

// snapshotKeys are the keys of a snapshot in the indexes; nil where it is not in one.
type snapshotKeys struct{ name, ready, node []byte }

func keysOfSnapshot(sn *Snapshot) (k snapshotKeys) {
	if sn == nil {
		return k
	}
	k.name = joined(string(sn.Org), sn.Name)
	k.node = joined(string(sn.Owner), string(sn.ID))
	if sn.State == SnapshotReady {
		k.ready = joinedTimed(string(sn.Org), sn.CreatedAt, string(sn.ID))
	}
	return k
}

func (d *draft) putSnapshot(sn Snapshot) {
	old := d.snapshots.ref([]byte(sn.ID))
	d.snapshots = d.snapshots.with(string(sn.ID), &sn)
	d.indexSnapshot(old, &sn)
}

func (d *draft) dropSnapshot(id SnapshotID) {
	if old := d.snapshots.ref([]byte(id)); old != nil {
		drop(&d.snapshots, []byte(id))
		d.indexSnapshot(old, nil)
	}
}

// indexSnapshot puts the indexes right after a snapshot became another; nil is none.
func (d *draft) indexSnapshot(old, sn *Snapshot) {
	was, is := keysOfSnapshot(old), keysOfSnapshot(sn)
	moveRow(&d.readySnapshots, was.ready, is.ready, sn)
	var id SnapshotID
	if sn != nil {
		id = sn.ID
	}
	move(&d.snapshotNames, was.name, is.name, id)
	move(&d.nodeSnapshots, was.node, is.node, id)
	if old != nil && sn != nil && old.Owner == sn.Owner && old.Org == sn.Org && snapshotUse(*old) == snapshotUse(*sn) {
		return
	}
	if old != nil {
		d.use(old.Owner, snapshotUse(*old), -1)
		d.count(old.Org, counts{snapshots: 1}, -1)
	}
	if sn != nil {
		d.use(sn.Owner, snapshotUse(*sn), 1)
		d.count(sn.Org, counts{snapshots: 1}, 1)
	}
}

// putIntent puts an intent, a closed one without the secrets that nobody needs any more.
func (d *draft) putIntent(in Intent) {
	if in.State != IntentOpen {
		in = in.withoutSecrets()
	}
	old := d.intents.ref([]byte(in.ID))
	d.intents = d.intents.with(string(in.ID), &in)
	d.indexIntent(old, &in)
}

func (d *draft) dropIntent(id IntentID) {
	if old := d.intents.ref([]byte(id)); old != nil {
		drop(&d.intents, []byte(id))
		d.indexIntent(old, nil)
	}
}

// keysOfIntent are the keys of an intent in the indexes of open and of closed ones; nil where it is not in one.
func keysOfIntent(in *Intent) (open, closed []byte) {
	switch {
	case in == nil:
		return nil, nil
	case in.State == IntentOpen:
		return joinedTimed(string(in.Owner), in.CreatedAt, string(in.ID)), nil
	}
	return nil, timed(in.KeepUntil, string(in.ID))
}

// indexIntent puts the indexes right after an intent became another; nil is none.
func (d *draft) indexIntent(old, in *Intent) {
	wasOpen, wasClosed := keysOfIntent(old)
	open, closed := keysOfIntent(in)
	var id IntentID
	if in != nil {
		id = in.ID
	}
	move(&d.openIntents, wasOpen, open, id)
	move(&d.closedIntents, wasClosed, closed, id)
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

package fsm

import (
	"fmt"
	"maps"
	"slices"
)

// loader makes a state of the rows of its stream: tables and indexes at once when all rows are there, which takes a
// fraction of the time and none of the garbage of putting them one by one.
type loader struct {
	orgs      builder[Org]
	keys      builder[APIKey]
	nodes     builder[Node]
	templates builder[Template]
	sandboxes builder[Sandbox]
	snapshots builder[Snapshot]
	intents   builder[Intent]
	requests  builder[RequestRecord]

	orgNames          builder[OrgID]
	keyHashes         builder[KeyID]
	orgKeys           builder[KeyID]
	templateNames     builder[TemplateID]
	orgSandboxes      builder[Sandbox]
	nodeSandboxes     builder[SandboxID]
	snapshotSandboxes builder[SandboxID]
	sandboxTimeouts   builder[SandboxID]
	snapshotNames     builder[SnapshotID]
	readySnapshots    builder[Snapshot]
	nodeSnapshots     builder[SnapshotID]
	openIntents       builder[IntentID]
	closedIntents     builder[IntentID]
	requestExpiries   builder[requestKey]

	use    map[NodeID]Capacity
	counts map[OrgID]counts
}

func newLoader() *loader { return &loader{use: map[NodeID]Capacity{}, counts: map[OrgID]counts{}} }

// row takes one row; its indexes follow from it.
func (l *loader) row(tag byte, row []byte) error {
	switch tag {
	case tagOrg:
		return readAs(row, l.org)
	case tagKey:
		return readAs(row, l.key)
	case tagNode:
		return readAs(row, func(n *Node) { l.nodes.add(string(n.ID), n) })
	case tagTemplate:
		return readAs(row, l.template)
	case tagSandbox:
		return readAs(row, l.sandbox)
	case tagSnapshot:
		return readAs(row, l.snapshot)
	case tagIntent:
		return readAs(row, l.intent)
	case tagRequest:
		return readAs(row, l.request)
	}
	return fmt.Errorf("table %d", tag)
}

func readAs[T any](row []byte, add func(*T)) error {
	v := new(T)
	if err := unmarshal(row, v); err != nil {
		return err
	}
	add(v)
	return nil
}

func (l *loader) org(o *Org) {
	l.orgs.add(string(o.ID), o)
	l.orgNames.add(o.Name, &o.ID)
}

func (l *loader) key(k *APIKey) {
	l.keys.add(string(k.ID), k)
	l.keyHashes.add(string(k.Hash[:]), &k.ID)
	l.orgKeys.add(string(joined(string(k.Org), string(k.ID))), &k.ID)
}

func (l *loader) template(t *Template) {
	l.templates.add(string(t.ID), t)
	l.templateNames.add(string(joined(string(t.Org), t.Name)), &t.ID)
}

func (l *loader) sandbox(sb *Sandbox) {
	sb.intern()
	keys := keysOfSandbox(sb)
	l.sandboxes.add(string(sb.ID), sb)
	l.orgSandboxes.addAt(keys.org, sb)
	l.nodeSandboxes.addAt(keys.node, &sb.ID)
	l.snapshotSandboxes.addAt(keys.snapshot, &sb.ID)
	l.sandboxTimeouts.addAt(keys.timeout, &sb.ID)
	l.count(sb.Owner, sandboxUse(*sb), sb.Org, counts{sandboxes: 1})
}

func (l *loader) snapshot(sn *Snapshot) {
	sn.intern()
	keys := keysOfSnapshot(sn)
	l.snapshots.add(string(sn.ID), sn)
	l.snapshotNames.addAt(keys.name, &sn.ID)
	l.readySnapshots.addAt(keys.ready, sn)
	l.nodeSnapshots.addAt(keys.node, &sn.ID)
	l.count(sn.Owner, snapshotUse(*sn), sn.Org, counts{snapshots: 1})
}

func (l *loader) intent(in *Intent) {
	open, closed := keysOfIntent(in)
	l.intents.add(string(in.ID), in)
	l.openIntents.addAt(open, &in.ID)
	l.closedIntents.addAt(closed, &in.ID)
}

func (l *loader) request(r *RequestRecord) {
	key := joined(string(r.Org), r.Key)
	l.requests.add(string(key), r)
	l.requestExpiries.addAt(timed(r.ExpiresAt, string(key)), &requestKey{r.Org, r.Key})
}

func (l *loader) count(node NodeID, c Capacity, org OrgID, n counts) {
	use := l.use[node]
	use.VCPU += c.VCPU
	use.MemoryMiB += c.MemoryMiB
	use.DiskMiB += c.DiskMiB
	l.use[node] = use
	has := l.counts[org]
	has.sandboxes += n.sandboxes
	has.snapshots += n.snapshots
	l.counts[org] = has
}

// state gives the state of all rows. An entry that comes twice is an error: no state has that.
func (l *loader) state() (*State, error) {
	d := New().draft()
	for _, ok := range []bool{
		build(&l.orgs, &d.orgs), build(&l.keys, &d.keys), build(&l.nodes, &d.nodes), build(&l.templates, &d.templates),
		build(&l.sandboxes, &d.sandboxes), build(&l.snapshots, &d.snapshots), build(&l.intents, &d.intents),
		build(&l.requests, &d.requests), build(&l.orgNames, &d.orgNames), build(&l.keyHashes, &d.keyHashes),
		build(&l.orgKeys, &d.orgKeys), build(&l.templateNames, &d.templateNames),
		build(&l.orgSandboxes, &d.orgSandboxes), build(&l.nodeSandboxes, &d.nodeSandboxes),
		build(&l.snapshotSandboxes, &d.snapshotSandboxes), build(&l.sandboxTimeouts, &d.sandboxTimeouts),
		build(&l.snapshotNames, &d.snapshotNames), build(&l.readySnapshots, &d.readySnapshots),
		build(&l.nodeSnapshots, &d.nodeSnapshots), build(&l.openIntents, &d.openIntents),
		build(&l.closedIntents, &d.closedIntents), build(&l.requestExpiries, &d.requestExpiries),
	} {
		if !ok {
			return nil, fmt.Errorf("%w: an entry comes twice", errDamaged)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(l.use)) {
		d.use(id, l.use[id], 1)
	}
	for _, id := range slices.Sorted(maps.Keys(l.counts)) {
		d.count(id, l.counts[id], 1)
	}
	return &d.State, nil
}

func build[T any](b *builder[T], into **tree[T]) (ok bool) {
	*into, ok = b.tree()
	return ok
}

// addAt adds under a key of an index; nil: the row is not in it.
func (b *builder[T]) addAt(key []byte, v *T) {
	if key != nil {
		b.add(string(key), v)
	}
}

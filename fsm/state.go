package fsm

import (
	"encoding/binary"
	"iter"
	"slices"

	iradix "github.com/hashicorp/go-immutable-radix/v2"
)

// State is one immutable state of the machine. The zero State is not usable; see New and Read.
type State struct {
	// Tables: what WriteTo keeps.
	orgs      *iradix.Tree[Org]           // id
	keys      *iradix.Tree[APIKey]        // id
	nodes     *iradix.Tree[Node]          // id
	templates *iradix.Tree[Template]      // id
	sandboxes *iradix.Tree[Sandbox]       // id
	snapshots *iradix.Tree[Snapshot]      // id
	intents   *iradix.Tree[Intent]        // id
	requests  *iradix.Tree[RequestRecord] // org, key

	// Indexes: implied by the tables.
	orgNames          *iradix.Tree[OrgID]      // name
	keyHashes         *iradix.Tree[KeyID]      // hash
	orgKeys           *iradix.Tree[KeyID]      // org, id
	templateNames     *iradix.Tree[TemplateID] // org or nothing, name
	orgSandboxes      *iradix.Tree[SandboxID]  // org, creation, id
	nodeSandboxes     *iradix.Tree[SandboxID]  // owner, id
	snapshotSandboxes *iradix.Tree[SandboxID]  // snapshot restored from, id
	sandboxTimeouts   *iradix.Tree[SandboxID]  // TimeoutAt, id; only what may be deleted: running or stopped
	snapshotNames     *iradix.Tree[SnapshotID] // org, name
	orgSnapshots      *iradix.Tree[SnapshotID] // org, creation, id
	nodeSnapshots     *iradix.Tree[SnapshotID] // owner, id
	openIntents       *iradix.Tree[IntentID]   // owner, creation, id
	closedIntents     *iradix.Tree[IntentID]   // KeepUntil, id
	requestExpiries   *iradix.Tree[requestKey] // ExpiresAt, org, key
	nodeUse           *iradix.Tree[Capacity]   // node; absent when nothing is used
	orgCounts         *iradix.Tree[counts]     // org; absent when it has nothing
}

// requestKey is the identity of a RequestRecord.
type requestKey struct {
	org OrgID
	key string
}

// counts is how much of what its limits bound an organization has.
type counts struct{ sandboxes, snapshots int }

// New gives the state before the first command.
func New() *State {
	return &State{
		orgs: iradix.New[Org](), keys: iradix.New[APIKey](), nodes: iradix.New[Node](),
		templates: iradix.New[Template](), sandboxes: iradix.New[Sandbox](), snapshots: iradix.New[Snapshot](),
		intents: iradix.New[Intent](), requests: iradix.New[RequestRecord](),
		orgNames: iradix.New[OrgID](), keyHashes: iradix.New[KeyID](), orgKeys: iradix.New[KeyID](),
		templateNames: iradix.New[TemplateID](), orgSandboxes: iradix.New[SandboxID](),
		nodeSandboxes: iradix.New[SandboxID](), snapshotSandboxes: iradix.New[SandboxID](),
		sandboxTimeouts: iradix.New[SandboxID](), snapshotNames: iradix.New[SnapshotID](),
		orgSnapshots: iradix.New[SnapshotID](), nodeSnapshots: iradix.New[SnapshotID](),
		openIntents: iradix.New[IntentID](), closedIntents: iradix.New[IntentID](),
		requestExpiries: iradix.New[requestKey](), nodeUse: iradix.New[Capacity](), orgCounts: iradix.New[counts](),
	}
}

// Org gives an organization.
func (s *State) Org(id OrgID) (Org, bool) { return s.orgs.Get([]byte(id)) }

// OrgByName gives the organization of a name.
func (s *State) OrgByName(name string) (Org, bool) {
	id, ok := s.orgNames.Get([]byte(name))
	if !ok {
		return Org{}, false
	}
	return s.Org(id)
}

// Orgs gives every organization, by ID.
func (s *State) Orgs() []Org { return all(s.orgs) }

// Key gives an API key, good or revoked.
func (s *State) Key(id KeyID) (APIKey, bool) { return s.keys.Get([]byte(id)) }

// KeyByHash gives the API key with this SHA-256 of its secret, good or revoked: the caller looks at RevokedAt.
func (s *State) KeyByHash(hash [32]byte) (APIKey, bool) {
	id, ok := s.keyHashes.Get(hash[:])
	if !ok {
		return APIKey{}, false
	}
	return s.Key(id)
}

// Keys gives the keys of an organization, good and revoked, by ID.
func (s *State) Keys(org OrgID) []APIKey { return follow(s.orgKeys, joined(string(org), ""), s.Key) }

// Node gives a node, also one that was removed.
func (s *State) Node(id NodeID) (Node, bool) { return s.nodes.Get([]byte(id)) }

// Nodes gives the nodes of the cluster, by ID: registered or not, but none that was removed.
func (s *State) Nodes() []Node {
	return slices.DeleteFunc(all(s.nodes), Node.Removed)
}

// Used gives what a node holds, against its Capacity: the virtual CPUs and memory of its sandboxes that are not
// stopped, the disk of all its sandboxes, and what its snapshots have stored. A snapshot that is creating counts
// nothing yet, for what it will store is not known.
func (s *State) Used(id NodeID) Capacity {
	use, _ := s.nodeUse.Get([]byte(id))
	return use
}

// Template gives a template.
func (s *State) Template(id TemplateID) (Template, bool) { return s.templates.Get([]byte(id)) }

// TemplateByName gives the template that a name means to an organization: its own, else the system's.
func (s *State) TemplateByName(org OrgID, name string) (Template, bool) {
	id, ok := s.templateNames.Get(joined(string(org), name))
	if !ok {
		id, ok = s.templateNames.Get(joined("", name))
	}
	if !ok {
		return Template{}, false
	}
	return s.Template(id)
}

// Templates gives the system's templates and then those of an organization, each by name.
func (s *State) Templates(org OrgID) []Template {
	out := follow(s.templateNames, joined("", ""), s.Template)
	if org == "" {
		return out
	}
	return append(out, follow(s.templateNames, joined(string(org), ""), s.Template)...)
}

// Sandbox gives a sandbox of any organization: the caller compares Org.
func (s *State) Sandbox(id SandboxID) (Sandbox, bool) { return s.sandboxes.Get([]byte(id)) }

// Sandboxes gives the sandboxes of an organization in every state, oldest first.
func (s *State) Sandboxes(org OrgID) iter.Seq[Sandbox] {
	return followSeq(s.orgSandboxes, joined(string(org), ""), s.Sandbox)
}

// SandboxesOn gives the sandboxes that a node owns, in every state, by ID.
func (s *State) SandboxesOn(node NodeID) []Sandbox {
	return follow(s.nodeSandboxes, joined(string(node), ""), s.Sandbox)
}

// Snapshot gives a snapshot of any organization and in any state: the caller compares Org and looks at State.
func (s *State) Snapshot(id SnapshotID) (Snapshot, bool) { return s.snapshots.Get([]byte(id)) }

// SnapshotByName gives the snapshot that holds a name, in any state.
func (s *State) SnapshotByName(org OrgID, name string) (Snapshot, bool) {
	id, ok := s.snapshotNames.Get(joined(string(org), name))
	if !ok {
		return Snapshot{}, false
	}
	return s.Snapshot(id)
}

// Snapshots gives the snapshots of an organization in every state, oldest first.
func (s *State) Snapshots(org OrgID) iter.Seq[Snapshot] {
	return followSeq(s.orgSnapshots, joined(string(org), ""), s.Snapshot)
}

// SnapshotsOn gives the snapshots whose data a node holds, in every state, by ID.
func (s *State) SnapshotsOn(node NodeID) []Snapshot {
	return follow(s.nodeSnapshots, joined(string(node), ""), s.Snapshot)
}

// Intent gives an intent, open or closed. A closed one is gone some time after its KeepUntil.
func (s *State) Intent(id IntentID) (Intent, bool) { return s.intents.Get([]byte(id)) }

// OpenIntents gives the open intents of a node, oldest first.
func (s *State) OpenIntents(node NodeID) []Intent {
	return follow(s.openIntents, joined(string(node), ""), s.Intent)
}

// Request gives the record of an idempotency key. It may be past its ExpiresAt, until a Tick drops it.
func (s *State) Request(org OrgID, key string) (RequestRecord, bool) {
	return s.requests.Get(joined(string(org), key))
}

// all gives the values of a table in the order of its keys.
func all[T any](t *iradix.Tree[T]) []T {
	out := make([]T, 0, t.Len())
	it := t.Root().Iterator()
	for _, v, ok := it.Next(); ok; _, v, ok = it.Next() {
		out = append(out, v)
	}
	return out
}

// followSeq gives what the entries of an index under a prefix lead to, in the order of the index.
func followSeq[ID, T any](index *iradix.Tree[ID], prefix []byte, get func(ID) (T, bool)) iter.Seq[T] {
	return func(yield func(T) bool) {
		it := index.Root().Iterator()
		it.SeekPrefix(prefix)
		for _, id, ok := it.Next(); ok; _, id, ok = it.Next() {
			if v, found := get(id); found && !yield(v) {
				return
			}
		}
	}
}

func follow[ID, T any](index *iradix.Tree[ID], prefix []byte, get func(ID) (T, bool)) []T {
	var out []T
	for v := range followSeq(index, prefix, get) {
		out = append(out, v)
	}
	return out
}

// joined is the key of an index over two strings. Identifiers hold no zero byte (see validate.go), so no two pairs with
// an identifier first share a key, and a prefix of one identifier ends where it does.
func joined(a, b string) []byte {
	key := make([]byte, 0, len(a)+1+len(b))
	key = append(key, a...)
	key = append(key, 0)
	return append(key, b...)
}

// timed is the key of an index ordered by time, then identity.
func timed(t Time, id string) []byte {
	key := make([]byte, 8, 8+len(id))
	binary.BigEndian.PutUint64(key, uint64(t)^1<<63) // so that bytes order as signed numbers do
	return append(key, id...)
}

// joinedTimed is the key of an index over an identifier, then time, then identity.
func joinedTimed(a string, t Time, id string) []byte { return append(joined(a, ""), timed(t, id)...) }

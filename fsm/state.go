package fsm

import (
	"encoding/binary"
	"iter"
	"slices"
)

// State is one immutable state of the machine. The zero State is not usable; see New and Read.
type State struct {
	// Tables: what WriteTo keeps.
	orgs      *tree[Org]           // id
	keys      *tree[APIKey]        // id
	nodes     *tree[Node]          // id
	templates *tree[Template]      // id
	sandboxes *tree[Sandbox]       // id
	snapshots *tree[Snapshot]      // id
	intents   *tree[Intent]        // id
	requests  *tree[RequestRecord] // org, key

	// Indexes: implied by the tables.
	orgNames          *tree[OrgID]      // name
	keyHashes         *tree[KeyID]      // hash
	orgKeys           *tree[KeyID]      // org, id
	templateNames     *tree[TemplateID] // org or nothing, name
	orgSandboxes      *tree[Sandbox]    // org, creation, id; the rows of the table
	nodeSandboxes     *tree[SandboxID]  // owner, id
	snapshotSandboxes *tree[SandboxID]  // snapshot restored from, id
	sandboxTimeouts   *tree[SandboxID]  // TimeoutAt, id; only what may be deleted: running or stopped
	snapshotNames     *tree[SnapshotID] // org, name
	readySnapshots    *tree[Snapshot]   // org, creation, id; the rows of the table that are ready
	nodeSnapshots     *tree[SnapshotID] // owner, id
	openIntents       *tree[IntentID]   // owner, creation, id
	closedIntents     *tree[IntentID]   // KeepUntil, id
	requestExpiries   *tree[requestKey] // ExpiresAt, org, key
	nodeUse           *tree[Capacity]   // node; absent when nothing is used
	orgCounts         *tree[counts]     // org; absent when it has nothing
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
		orgs: newTree[Org](), keys: newTree[APIKey](), nodes: newTree[Node](),
		templates: newTree[Template](), sandboxes: newTree[Sandbox](), snapshots: newTree[Snapshot](),
		intents: newTree[Intent](), requests: newTree[RequestRecord](),
		orgNames: newTree[OrgID](), keyHashes: newTree[KeyID](), orgKeys: newTree[KeyID](),
		templateNames: newTree[TemplateID](), orgSandboxes: newTree[Sandbox](),
		nodeSandboxes: newTree[SandboxID](), snapshotSandboxes: newTree[SandboxID](),
		sandboxTimeouts: newTree[SandboxID](), snapshotNames: newTree[SnapshotID](),
		readySnapshots: newTree[Snapshot](), nodeSnapshots: newTree[SnapshotID](),
		openIntents: newTree[IntentID](), closedIntents: newTree[IntentID](),
		requestExpiries: newTree[requestKey](), nodeUse: newTree[Capacity](), orgCounts: newTree[counts](),
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
func all[T any](t *tree[T]) []T {
	out := make([]T, 0, t.Len())
	for v := range t.rows() {
		out = append(out, *v)
	}
	return out
}

// followSeq gives what the entries of an index under a prefix lead to, in the order of the index.
func followSeq[ID, T any](index *tree[ID], prefix []byte, get func(ID) (T, bool)) iter.Seq[T] {
	return func(yield func(T) bool) {
		c := index.from(prefix)
		for _, id, ok := c.next(); ok; _, id, ok = c.next() {
			if v, found := get(*id); found && !yield(v) {
				return
			}
		}
	}
}

func follow[ID, T any](index *tree[ID], prefix []byte, get func(ID) (T, bool)) []T {
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

package fsm

import (
	"iter"
	"slices"
	"sort"
	"strings"
)

// tree is an immutable map from strings to values, ordered by key: a B+ tree whose changed paths are copied. What was
// made before a change stays as it was and shares all nodes but those on the path, so a reader needs no lock and a
// snapshot is a pointer. Every node counts what is below it: how many keys are before a given one, and which is the
// n-th, takes no longer than a look-up. The nil tree is empty.
//
// A radix tree, which this replaced, took some four times the memory (two channels and more a key) and could not
// count.
type tree[T any] struct{ root *treeNode[T] }

// treeNode is a leaf, with as many vals as keys, or an inner node, with as many kids as keys. The key of a kid is not
// greater than any below it and greater than all below the kid before; that of the first kid is not looked at.
type treeNode[T any] struct {
	count int // of values below
	keys  []string
	vals  []*T
	kids  []*treeNode[T]
}

// A node has at most maxFan entries and, but for the root and the last on its level, at least minFan.
const (
	maxFan = 32
	minFan = maxFan / 4
)

func newTree[T any]() *tree[T] { return &tree[T]{} }

// Len is the number of values.
func (t *tree[T]) Len() int {
	if t.root == nil {
		return 0
	}
	return t.root.count
}

// Get gives the value of a key.
func (t *tree[T]) Get(key []byte) (T, bool) {
	if v := t.ref(key); v != nil {
		return *v, true
	}
	var none T
	return none, false
}

// ref gives the value of a key in its place, where it must not be changed; nil: there is none.
func (t *tree[T]) ref(key []byte) *T {
	n := t.root
	for n != nil && n.kids != nil {
		n = n.kids[n.kid(key)]
	}
	if n != nil {
		if i := n.find(key); i < len(n.keys) && n.keys[i] == string(key) {
			return n.vals[i]
		}
	}
	return nil
}

// find is the place of the first key that is not before the given one.
func (n *treeNode[T]) find(key []byte) int {
	lo, hi := 0, len(n.keys)
	for lo < hi {
		if mid := (lo + hi) / 2; n.keys[mid] < string(key) {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// kid is the place of the kid that a key is below.
func (n *treeNode[T]) kid(key []byte) int {
	lo, hi := 1, len(n.keys)
	for lo < hi {
		if mid := (lo + hi) / 2; n.keys[mid] <= string(key) {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo - 1
}

// rank is how many keys are before the given one.
func (t *tree[T]) rank(key []byte) int {
	before, n := 0, t.root
	for n != nil && n.kids != nil {
		at := n.kid(key)
		for _, kid := range n.kids[:at] {
			before += kid.count
		}
		n = n.kids[at]
	}
	if n != nil {
		before += n.find(key)
	}
	return before
}

// span gives the ranks of the first key with a prefix and of the first key after all that have it. The prefix must not
// end with the byte 255.
func (t *tree[T]) span(prefix []byte) (from, to int) {
	if len(prefix) == 0 {
		return 0, t.Len()
	}
	after := slices.Clone(prefix)
	after[len(after)-1]++
	return t.rank(prefix), t.rank(after)
}

// with gives the tree that has a value under a key, in place of the one there may be.
func (t *tree[T]) with(key string, v *T) *tree[T] {
	if t.root == nil {
		return &tree[T]{leaf([]string{key}, []*T{v})}
	}
	left, right := t.root.with(key, v)
	if right == nil {
		return &tree[T]{left}
	}
	return &tree[T]{inner([]string{left.keys[0], right.keys[0]}, []*treeNode[T]{left, right})}
}

// with gives the node that replaces this one, or the two that do.
func (n *treeNode[T]) with(key string, v *T) (left, right *treeNode[T]) {
	if n.kids == nil {
		i := sort.SearchStrings(n.keys, key)
		if i < len(n.keys) && n.keys[i] == key {
			vals := slices.Clone(n.vals)
			vals[i] = v
			return leaf(n.keys, vals), nil
		}
		return splitLeaf(inserted(n.keys, i, key), inserted(n.vals, i, v))
	}
	at := n.kid([]byte(key))
	first, second := n.kids[at].with(key, v)
	kids := slices.Clone(n.kids)
	kids[at] = first
	if second == nil {
		return inner(n.keys, kids), nil
	}
	return splitInner(inserted(n.keys, at+1, second.keys[0]), inserted(kids, at+1, second))
}

// without gives the tree that has no value under a key.
func (t *tree[T]) without(key []byte) *tree[T] {
	if t.root == nil {
		return t
	}
	root := t.root.without(key)
	switch {
	case root == t.root:
		return t
	case root.count == 0:
		return &tree[T]{}
	}
	for len(root.kids) == 1 {
		root = root.kids[0]
	}
	return &tree[T]{root}
}

// without gives the node that replaces this one, which may be empty or small; itself where it does not have the key.
func (n *treeNode[T]) without(key []byte) *treeNode[T] {
	if n.kids == nil {
		i := n.find(key)
		if i == len(n.keys) || n.keys[i] != string(key) {
			return n
		}
		return leaf(removed(n.keys, i), removed(n.vals, i))
	}
	at := n.kid(key)
	kid := n.kids[at].without(key)
	switch {
	case kid == n.kids[at]:
		return n
	case kid.count == 0:
		return inner(removed(n.keys, at), removed(n.kids, at))
	case len(kid.keys) >= minFan || len(n.kids) == 1:
		kids := slices.Clone(n.kids)
		kids[at] = kid
		return inner(n.keys, kids)
	}
	return n.joined(at, kid)
}

// joined gives the node in which a kid that has become small is one with its neighbour, or shares with it.
func (n *treeNode[T]) joined(at int, small *treeNode[T]) *treeNode[T] {
	kids := slices.Clone(n.kids)
	kids[at] = small
	i := max(at-1, 0) // the two are i and i+1
	a, b := kids[i], kids[i+1]
	var left, right *treeNode[T]
	if a.kids == nil {
		left, right = splitLeaf(slices.Concat(a.keys, b.keys), slices.Concat(a.vals, b.vals))
	} else {
		keys := slices.Concat(a.keys, b.keys)
		keys[len(a.keys)] = n.keys[i+1] // what separates the two
		left, right = splitInner(keys, slices.Concat(a.kids, b.kids))
	}
	if right == nil {
		kids[i] = left
		return inner(removed(n.keys, i+1), removed(kids, i+1))
	}
	keys := slices.Clone(n.keys)
	kids[i], kids[i+1], keys[i+1] = left, right, right.keys[0]
	return inner(keys, kids)
}

func leaf[T any](keys []string, vals []*T) *treeNode[T] {
	return &treeNode[T]{count: len(keys), keys: keys, vals: vals}
}

func inner[T any](keys []string, kids []*treeNode[T]) *treeNode[T] {
	n := &treeNode[T]{keys: keys, kids: kids}
	for _, kid := range kids {
		n.count += kid.count
	}
	return n
}

// splitLeaf gives one leaf, or two where the entries are too many for one.
func splitLeaf[T any](keys []string, vals []*T) (left, right *treeNode[T]) {
	if len(keys) <= maxFan {
		return leaf(keys, vals), nil
	}
	mid := len(keys) / 2
	return leaf(slices.Clone(keys[:mid]), slices.Clone(vals[:mid])),
		leaf(slices.Clone(keys[mid:]), slices.Clone(vals[mid:]))
}

func splitInner[T any](keys []string, kids []*treeNode[T]) (left, right *treeNode[T]) {
	if len(keys) <= maxFan {
		return inner(keys, kids), nil
	}
	mid := len(keys) / 2
	return inner(slices.Clone(keys[:mid]), slices.Clone(kids[:mid])),
		inner(slices.Clone(keys[mid:]), slices.Clone(kids[mid:]))
}

func inserted[E any](s []E, i int, e E) []E {
	out := make([]E, len(s)+1)
	copy(out, s[:i])
	out[i] = e
	copy(out[i+1:], s[i:])
	return out
}

func removed[E any](s []E, i int) []E {
	out := make([]E, len(s)-1)
	copy(out, s[:i])
	copy(out[i:], s[i+1:])
	return out
}

// builder makes a tree of entries that are added in any order, at once and with full nodes. A key comes once.
type builder[T any] struct {
	keys   []string
	vals   []*T
	sorted bool // as far as it goes
}

func (b *builder[T]) add(key string, v *T) {
	if n := len(b.keys); n == 0 {
		b.sorted = true
	} else if b.keys[n-1] >= key {
		b.sorted = false
	}
	b.keys, b.vals = append(b.keys, key), append(b.vals, v)
}

// Len, Less and Swap implement sort.Interface.
func (b *builder[T]) Len() int           { return len(b.keys) }
func (b *builder[T]) Less(i, j int) bool { return b.keys[i] < b.keys[j] }
func (b *builder[T]) Swap(i, j int) {
	b.keys[i], b.keys[j] = b.keys[j], b.keys[i]
	b.vals[i], b.vals[j] = b.vals[j], b.vals[i]
}

// tree makes the tree; ok is false when a key came twice. The builder is empty afterwards.
func (b *builder[T]) tree() (t *tree[T], ok bool) {
	if !b.sorted {
		sort.Sort(b)
		for i := 1; i < len(b.keys); i++ {
			if b.keys[i-1] == b.keys[i] {
				return nil, false
			}
		}
	}
	var level []*treeNode[T]
	for i := 0; i < len(b.keys); i += maxFan {
		end := min(i+maxFan, len(b.keys))
		level = append(level, leaf(slices.Clone(b.keys[i:end]), slices.Clone(b.vals[i:end])))
	}
	b.keys, b.vals = nil, nil
	for len(level) > 1 {
		var above []*treeNode[T]
		for kids := range slices.Chunk(level, maxFan) {
			keys := make([]string, len(kids))
			for i, kid := range kids {
				keys[i] = kid.keys[0]
			}
			above = append(above, inner(keys, slices.Clone(kids)))
		}
		level = above
	}
	if len(level) == 0 {
		return newTree[T](), true
	}
	return &tree[T]{level[0]}, true
}

// cursor goes over the entries of a tree in order.
type cursor[T any] struct {
	prefix string // entries end where keys do not have it
	path   []place[T]
}

type place[T any] struct {
	node *treeNode[T]
	at   int
}

// cursor begins at the n-th entry.
func (t *tree[T]) cursor(n int) *cursor[T] {
	c := &cursor[T]{}
	if n < 0 || n >= t.Len() {
		return c
	}
	node := t.root
	for node.kids != nil {
		at := 0
		for n >= node.kids[at].count {
			n -= node.kids[at].count
			at++
		}
		c.path = append(c.path, place[T]{node, at})
		node = node.kids[at]
	}
	c.path = append(c.path, place[T]{node, n})
	return c
}

// from begins at the first entry whose key has a prefix and ends after the last.
func (t *tree[T]) from(prefix []byte) *cursor[T] {
	c := &cursor[T]{prefix: string(prefix)}
	for n := t.root; n != nil; {
		if n.kids == nil {
			c.path = append(c.path, place[T]{n, n.find(prefix)})
			break
		}
		at := n.kid(prefix)
		c.path = append(c.path, place[T]{n, at})
		n = n.kids[at]
	}
	return c
}

// next gives the entry that the cursor is at, and moves it on.
func (c *cursor[T]) next() (key string, v *T, ok bool) {
	for len(c.path) > 0 {
		last := &c.path[len(c.path)-1]
		if last.at < len(last.node.vals) {
			key, v = last.node.keys[last.at], last.node.vals[last.at]
			last.at++
			return key, v, strings.HasPrefix(key, c.prefix)
		}
		// Up to where there is a next kid, and down to its first entry.
		c.path = c.path[:len(c.path)-1]
		for len(c.path) > 0 && c.path[len(c.path)-1].at == len(c.path[len(c.path)-1].node.kids)-1 {
			c.path = c.path[:len(c.path)-1]
		}
		if len(c.path) == 0 {
			break
		}
		up := &c.path[len(c.path)-1]
		up.at++
		for n := up.node.kids[up.at]; ; n = n.kids[0] {
			c.path = append(c.path, place[T]{n, 0})
			if n.kids == nil {
				break
			}
		}
	}
	return "", nil, false
}

// previous gives the entry that the cursor is at, and moves it back. A cursor goes one way only.
func (c *cursor[T]) previous() (key string, v *T, ok bool) {
	if len(c.path) == 0 {
		return "", nil, false
	}
	last := &c.path[len(c.path)-1]
	key, v = last.node.keys[last.at], last.node.vals[last.at]
	if last.at--; last.at >= 0 {
		return key, v, true
	}
	for len(c.path) > 0 && c.path[len(c.path)-1].at <= 0 {
		c.path = c.path[:len(c.path)-1]
	}
	if len(c.path) > 0 {
		up := &c.path[len(c.path)-1]
		up.at--
		for n := up.node.kids[up.at]; ; n = n.kids[len(n.kids)-1] {
			c.path = append(c.path, place[T]{n, len(n.keys) - 1})
			if n.kids == nil {
				break
			}
		}
	}
	return key, v, true
}

// rows goes over the values in order, each in its place, where it must not be changed.
func (t *tree[T]) rows() iter.Seq[*T] {
	return func(yield func(*T) bool) {
		c := t.cursor(0)
		for _, v, ok := c.next(); ok; _, v, ok = c.next() {
			if !yield(v) {
				return
			}
		}
	}
}

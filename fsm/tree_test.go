package fsm

import (
	"fmt"
	"maps"
	"math/rand"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// checkTree holds a tree against a map, in every way of looking at it, and its nodes against their rules.
func checkTree(t *testing.T, tr *tree[int], want map[string]int) {
	t.Helper()
	keys := slices.Sorted(maps.Keys(want))
	require.Equal(t, len(keys), tr.Len())
	forth, back := tr.cursor(0), tr.cursor(len(keys)-1)
	for i, key := range keys {
		v, ok := tr.Get([]byte(key))
		require.True(t, ok, "%q", key)
		require.Equal(t, want[key], v)
		require.Equal(t, i, tr.rank([]byte(key)))
		k, at, ok := forth.next()
		require.True(t, ok)
		require.Equal(t, key, k)
		require.Equal(t, want[key], *at)
		k, _, ok = back.previous()
		require.True(t, ok)
		require.Equal(t, keys[len(keys)-1-i], k)
	}
	_, _, ok := forth.next()
	require.False(t, ok)
	_, _, ok = back.previous()
	require.False(t, ok)
	checkNode(t, tr.root, "", true)
}

func checkNode(t *testing.T, n *treeNode[int], atLeast string, root bool) int {
	t.Helper()
	if n == nil {
		return 0
	}
	require.LessOrEqual(t, len(n.keys), maxFan)
	require.NotEmpty(t, n.keys)
	require.True(t, slices.IsSorted(n.keys[1:]))
	if n.kids == nil {
		require.True(t, slices.IsSorted(n.keys))
		require.GreaterOrEqual(t, n.keys[0], atLeast)
		require.Len(t, n.vals, len(n.keys))
		require.Equal(t, len(n.keys), n.count)
		return 1
	}
	require.True(t, !root || len(n.kids) > 1)
	require.Len(t, n.kids, len(n.keys))
	count, depth := 0, 0
	for i, kid := range n.kids {
		low := atLeast
		if i > 0 {
			low = n.keys[i]
		}
		d := checkNode(t, kid, low, false)
		require.True(t, depth == 0 || d == depth, "leaves are equally deep")
		depth, count = d, count+kid.count
	}
	require.Equal(t, count, n.count)
	return depth + 1
}

// TestTreeAgainstMap grows and shrinks trees at random. What was made before a change never shows it.
func TestTreeAgainstMap(t *testing.T) {
	for seed := range int64(20) {
		rnd := rand.New(rand.NewSource(seed))
		tr, want := newTree[int](), map[string]int{}
		space := []int{10, 300, 5000}[seed%3]
		var kept *tree[int]
		var keptWant map[string]int
		for step := range 4000 {
			key := fmt.Sprintf("%0*d", 1+rnd.Intn(6), rnd.Intn(space))
			grow := 60
			if step > 2000 {
				grow = 35
			}
			if rnd.Intn(100) < grow {
				tr = tr.with(key, &step)
				want[key] = step
			} else {
				tr = tr.without([]byte(key))
				delete(want, key)
			}
			if step%1000 == 500 {
				kept, keptWant = tr, maps.Clone(want)
			}
			if step%1000 == 999 {
				checkTree(t, tr, want)
				checkTree(t, kept, keptWant)
			}
		}
		for key := range want {
			tr = tr.without([]byte(key))
			require.Same(t, tr, tr.without([]byte(key)), "nothing to take away: the same tree")
		}
		require.Zero(t, tr.Len())
	}
}

// TestTreeInOrder adds in order, as times come, and takes away from the front, as they pass.
func TestTreeInOrder(t *testing.T) {
	tr, want := newTree[int](), map[string]int{}
	for i := range 3000 {
		key := fmt.Sprintf("%06d", i)
		tr, want[key] = tr.with(key, &i), i
		if i >= 1000 {
			old := fmt.Sprintf("%06d", i-1000)
			tr = tr.without([]byte(old))
			delete(want, old)
		}
	}
	checkTree(t, tr, want)
}

// TestTreePrefixes looks for all prefixes of keys over a small alphabet, with zero and 254 bytes in it.
func TestTreePrefixes(t *testing.T) {
	rnd := rand.New(rand.NewSource(1))
	tr, want := newTree[int](), map[string]int{}
	for i := range 2000 {
		var key strings.Builder
		for range rnd.Intn(7) {
			key.WriteByte("\x00ab\xfe\xff"[rnd.Intn(5)])
		}
		tr, want[key.String()] = tr.with(key.String(), &i), i
	}
	checkTree(t, tr, want)
	for _, prefix := range []string{"", "\x00", "a", "ab", "ab\x00", "\xfe", "b\xfe", "aaaaaaaa", "a\x01"} {
		var keys []string
		for key := range want {
			if strings.HasPrefix(key, prefix) {
				keys = append(keys, key)
			}
		}
		slices.Sort(keys)
		var got []string
		c := tr.from([]byte(prefix))
		for key, _, ok := c.next(); ok; key, _, ok = c.next() {
			got = append(got, key)
		}
		require.Equal(t, keys, got, "%q", prefix)
		from, to := tr.span([]byte(prefix))
		require.Equal(t, len(keys), to-from)
		if len(keys) > 0 {
			at := rnd.Intn(len(keys))
			key, _, ok := tr.cursor(from + at).next()
			require.True(t, ok)
			require.Equal(t, keys[at], key)
		}
	}
}

// TestTreeBuilder builds of entries in any order what adding them one by one gives.
func TestTreeBuilder(t *testing.T) {
	for _, n := range []int{0, 1, maxFan, maxFan + 1, maxFan * maxFan, 5000} {
		order := rand.New(rand.NewSource(int64(n))).Perm(n)
		for range 2 {
			var b builder[int]
			want := map[string]int{}
			for _, i := range order {
				key := fmt.Sprintf("%06d", i)
				b.add(key, &i)
				want[key] = i
			}
			tr, ok := b.tree()
			require.True(t, ok)
			checkTree(t, tr, want)
			for key := range want {
				if tr = tr.without([]byte(key)); tr.Len() == n/2 {
					break
				}
				delete(want, key)
			}
			slices.Sort(order)
		}
	}
	var b builder[int]
	for _, key := range []string{"a", "b", "a"} {
		b.add(key, new(int))
	}
	_, ok := b.tree()
	require.False(t, ok, "a key came twice")
}

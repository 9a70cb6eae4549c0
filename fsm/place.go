package fsm

import (
	"fmt"
	"slices"
	"strings"
)

// place chooses the owner of a new sandbox: among the nodes that can take it (see unfit) and have room for the whole of
// need, the one with the most free memory, and of equals the one with the smallest ID. template is the digest of the
// image that it boots from.
func (s *State) place(need Capacity, template string) (NodeID, *Error) {
	var best, freest Node
	var bestFree, freestFree Capacity
	nodes := s.Nodes()
	var out unfitCounts
	for _, n := range nodes {
		if out.count(n.unfit(template)) {
			continue
		}
		free := s.free(n)
		if freest.ID == "" || free.MemoryMiB > freestFree.MemoryMiB {
			freest, freestFree = n, free
		}
		if fits(need, free) && (best.ID == "" || free.MemoryMiB > bestFree.MemoryMiB) {
			best, bestFree = n, free
		}
	}
	switch {
	case best.ID != "":
		return best.ID, nil
	case len(nodes) == 0:
		return "", Errorf(KindUnavailable, "no node is registered yet")
	case freest.ID == "":
		return "", Errorf(KindUnavailable, "no node takes sandboxes: of %d nodes%s", len(nodes), out)
	}
	return "", Errorf(KindUnavailable, "no node has room for %s; the freest of %d, %s, has %s%s",
		need, len(nodes)-out.total(), freest.label(), freestFree, out)
}

// unfit is why a node takes no sandbox of a template, whatever room it has; empty: it does.
func (n Node) unfit(template string) string {
	switch {
	case n.RegisteredAt == 0:
		return "not registered"
	case n.Lost():
		return "lost"
	case n.Drained:
		return "drained"
	case len(n.Templates) > 0 && !slices.Contains(n.Templates, template):
		return "without the template"
	}
	return ""
}

// unfitCounts counts nodes by why they are unfit, in the order in which they are told.
type unfitCounts [4]int

var unfitReasons = [4]string{"lost", "drained", "without the template", "not registered"}

// count notes a reason and says whether it is one.
func (c *unfitCounts) count(reason string) bool {
	i := slices.Index(unfitReasons[:], reason)
	if i >= 0 {
		c[i]++
	}
	return i >= 0
}

func (c *unfitCounts) total() int { return c[0] + c[1] + c[2] + c[3] }

// String tells of the nodes that were passed over, as the end of a sentence.
func (c unfitCounts) String() string {
	var out strings.Builder
	for i, n := range c {
		if n > 0 {
			fmt.Fprintf(&out, ", %d %s", n, unfitReasons[i])
		}
	}
	return out.String()
}

// levelRestoreElsewhere is the level (see Level) of programs that restore a snapshot on a node which does not hold its
// data. A cluster with an older one in it restores where the data is: all nodes must place alike.
const levelRestoreElsewhere = 2

// placeRestore chooses the node that restores a snapshot: the one that holds the data, and where that takes no sandbox
// or has no room, the one with the most free memory among those that could have written the data themselves and can
// have it from the holder.
func (s *State) placeRestore(sn Snapshot) (NodeID, *Error) {
	need := Capacity{VCPU: sn.VCPU, MemoryMiB: sn.MemoryMiB, DiskMiB: sn.DiskMiB}
	atHome := s.placeOn(sn.Owner, need)
	if atHome == nil {
		return sn.Owner, nil
	}
	if holder, ok := s.Node(sn.Owner); !ok || holder.Lost() || s.Level() < levelRestoreElsewhere {
		return "", atHome
	}
	var best Node
	var bestFree Capacity
	for _, n := range s.Nodes() {
		if n.unfit(sn.Manifest.TemplateDigest) != "" || !n.restores(*sn.Manifest) {
			continue
		}
		if free := s.free(n); fits(need, free) && (best.ID == "" || free.MemoryMiB > bestFree.MemoryMiB) {
			best, bestFree = n, free
		}
	}
	if best.ID == "" {
		return "", Errorf(KindUnavailable, "%s; and no other node that has the template, the same VMM and the same CPU "+
			"features has room", atHome.Message)
	}
	return best.ID, nil
}

// restores tells whether a node's VMM understands the data: the version that wrote it, on a CPU with the same features.
func (n Node) restores(m Manifest) bool {
	return n.VMM == m.VMM && n.VMMVersion == m.VMMVersion && n.CPUFingerprint == m.CPUFingerprint
}

// placeOn checks that the node that holds a snapshot's data takes a new sandbox.
func (s *State) placeOn(id NodeID, need Capacity) *Error {
	n, ok := s.Node(id)
	switch {
	case !ok:
		return Errorf(KindUnavailable, "node %s, which holds the data, is not known", id)
	case n.Lost():
		return Errorf(KindUnavailable, "node %s, which holds the data, does not answer", n.label())
	case n.Drained:
		return Errorf(KindUnavailable, "node %s, which holds the data, is drained", n.label())
	}
	if free := s.free(n); !fits(need, free) {
		return Errorf(KindUnavailable, "node %s, which holds the data, has no room for %s; it has %s",
			n.label(), need, free)
	}
	return nil
}

// free is what a node has left; below zero where it registered with less than it already held.
func (s *State) free(n Node) Capacity {
	use := s.Used(n.ID)
	return Capacity{
		VCPU:      n.Capacity.VCPU - use.VCPU,
		MemoryMiB: n.Capacity.MemoryMiB - use.MemoryMiB,
		DiskMiB:   n.Capacity.DiskMiB - use.DiskMiB,
	}
}

func fits(need, free Capacity) bool {
	return need.VCPU <= free.VCPU && need.MemoryMiB <= free.MemoryMiB && need.DiskMiB <= free.DiskMiB
}

// String describes a capacity, in use or free, for people.
func (c Capacity) String() string {
	return fmt.Sprintf("%d vCPU, %d MiB of memory and %d MiB of disk", c.VCPU, c.MemoryMiB, c.DiskMiB)
}

// label is what people call a node.
func (n Node) label() string {
	if n.Name != "" {
		return n.Name
	}
	return string(n.ID)
}

package fsm

import "fmt"

// place chooses the owner of a new sandbox: among the nodes that are not drained and have room for the whole of need,
// the one with the most free memory, and of equals the one with the smallest ID.
func (s *State) place(need Capacity) (NodeID, *Error) {
	var best, freest Node
	var bestFree, freestFree Capacity
	nodes, drained := 0, 0
	for _, n := range s.Nodes() {
		nodes++
		if n.Drained {
			drained++
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
	case nodes == 0:
		return "", Errorf(KindUnavailable, "no node is registered yet")
	case freest.ID == "":
		return "", Errorf(KindUnavailable, "no node takes sandboxes: %d of %d are drained", drained, nodes)
	}
	return "", Errorf(KindUnavailable, "no node has room for %s; the freest of %d, %s, has %s",
		need, nodes-drained, freest.label(), freestFree)
}

// placeOn checks that a certain node takes a new sandbox, for one whose data only that node holds.
func (s *State) placeOn(id NodeID, need Capacity) *Error {
	n, ok := s.Node(id)
	if !ok {
		return Errorf(KindUnavailable, "node %s, which holds the data, is not known", id)
	}
	if n.Drained {
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

package cluster

import (
	"errors"
	"slices"

	"stillframe/fsm"
)

// directory is what a port knows of the members. The zero directory knows none but those of the identity folder.
type directory struct {
	// addr is where a node is by the replicated member list; empty: it says nothing.
	addr func(fsm.NodeID) string
	// removed says whether a node is no member any more, whatever its certificate says.
	removed func(fsm.NodeID) bool
	// expelled is called when another member says that this node was removed. It must not block.
	expelled func(by fsm.NodeID)
}

// errExpelled says that a member takes this node for removed. A member is believed: it has shown its certificate, and
// what it says it has from the log, where a removal is for good.
var errExpelled = errors.New("this node was removed from the cluster")

// errRemoved says that a peer was removed.
var errRemoved = errors.New("the peer was removed from the cluster")

// directory gives the directory over this node's own copy of the state.
func (n *Node) directory() directory {
	return directory{
		addr: func(id fsm.NodeID) string {
			node, _ := n.State().Node(id)
			return node.Addr
		},
		removed: func(id fsm.NodeID) bool {
			node, _ := n.State().Node(id)
			return node.Removed()
		},
		expelled: func(by fsm.NodeID) {
			n.fail(fsm.Wrap(fsm.KindConflict, errExpelled, "node %s says so; its identity is no good any more: a new one is "+
				"made with \"stillframe cluster add\", for an empty data folder", n.label(by)))
		},
	}
}

// addrs lists where a node may be: as the replicated list has it, and as the identity folder does, where that differs.
// Either may be the newer one; who answers must show that it is the node.
func (p *port) addrs(node fsm.NodeID) []string {
	if node == p.id.ID() {
		return []string{p.addr()}
	}
	var out []string
	if p.book.addr != nil {
		if addr := p.book.addr(node); addr != "" {
			out = append(out, addr)
		}
	}
	if m, ok := p.id.Member(node); ok && !slices.Contains(out, m.Addr) {
		out = append(out, m.Addr)
	}
	return out
}

func (p *port) isRemoved(node fsm.NodeID) bool { return p.book.removed != nil && p.book.removed(node) }

// advertised is where others reach this node: as it was told, else as its own entry of the member list has it, unless
// that leaves the port to the kernel.
func (p *port) advertised(told string) string {
	own := p.id.Self().Addr
	switch {
	case told != "":
		return told
	case freePort(own):
		return p.addr()
	}
	return own
}

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/httpd/client"
)

// several is a cluster of three daemons, each in a network namespace with an address of its own on one bridge. The test
// itself is at the bridge's address.
type several struct {
	t     *testing.T
	nodes []*node
	args  []string
}

const (
	bridge     = "sfc-br0"
	bridgeAddr = "10.112.0.1"
)

func memberAddr(i int) string { return fmt.Sprintf("10.112.0.%d", 11+i) }

// run runs a program that must succeed.
func run(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	require.NoError(t, err, "%v: %s", args, out)
}

// newCluster brings up three nodes; args are for each of them.
func newCluster(t *testing.T, args ...string) *several {
	t.Helper()
	c := &several{t: t, args: args}
	run(t, "ip", "link", "add", bridge, "type", "bridge")
	t.Cleanup(func() { run(t, "ip", "link", "del", bridge) })
	run(t, "ip", "addr", "add", bridgeAddr+"/24", "dev", bridge)
	run(t, "ip", "link", "set", bridge, "up")
	pki, err := os.MkdirTemp(workDir, "pki")
	require.NoError(t, err)
	var members []string
	for i, name := range []string{"a", "b", "c"} {
		members = append(members, name+"="+memberAddr(i)+":7071")
		c.nodes = append(c.nodes, c.newMember(i, name, filepath.Join(pki, name)))
	}
	run(t, program, "cluster", "init", "--dir", pki, "--nodes", strings.Join(members, ","))
	for _, n := range c.nodes {
		n.launch()
	}
	for _, n := range c.nodes {
		n.awaitReady()
	}
	admin := c.nodes[0].admin()
	_, err = admin.CreateOrg(within(t), "test")
	require.NoError(t, err)
	key, err := c.nodes[1].admin().CreateKey(within(t), "test", "")
	require.NoError(t, err, "what one node acknowledged, the next one knows")
	for _, n := range c.nodes {
		n.key, n.api = key.Key, n.client(key.Key)
		n.eventually("the key is known", func() bool { _, err := n.api.Node(within(t)); return err == nil })
	}
	return c
}

// newMember prepares a node: its folders, its namespace, its address.
func (c *several) newMember(i int, name, identity string) *node {
	t := c.t
	dir, err := os.MkdirTemp(dataDir, "n")
	require.NoError(t, err)
	out, err := os.MkdirTemp(workDir, "log")
	require.NoError(t, err)
	n := &node{
		t: t, dir: dir, order: filepath.Join(out, "fault"), log: filepath.Join(out, "log"), addr: memberAddr(i) + ":7070",
		netns: "sfc-" + name, cluster: identity, args: append([]string{"--name", name}, c.args...),
	}
	require.NoError(t, os.WriteFile(n.log, nil, 0o600))
	run(t, "ip", "netns", "add", n.netns)
	t.Cleanup(func() { run(t, "ip", "netns", "del", n.netns) })
	run(t, "ip", "link", "add", n.netns, "type", "veth", "peer", "name", "eth0", "netns", n.netns)
	// Not left to the end of the namespace, which the kernel takes its time for.
	t.Cleanup(func() { run(t, "ip", "link", "del", n.netns) })
	run(t, "ip", "link", "set", n.netns, "master", bridge, "up")
	run(t, "ip", "-n", n.netns, "link", "set", "lo", "up")
	run(t, "ip", "-n", n.netns, "addr", "add", memberAddr(i)+"/24", "dev", "eth0")
	run(t, "ip", "-n", n.netns, "link", "set", "eth0", "up")
	t.Cleanup(n.remove)
	return n
}

// eventually waits for something that a node comes to by itself.
func (n *node) eventually(what string, holds func() bool) {
	n.t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(20 * time.Millisecond) {
		require.True(n.t, time.Now().Before(deadline), "%s: not in time\n%s", what, n.output())
	}
}

// self is a node's own entry in its status of the cluster.
func (n *node) self(digest bool) (client.ClusterNode, bool) {
	status, err := n.api.Cluster(within(n.t), digest)
	if err != nil {
		return client.ClusterNode{}, false
	}
	for _, m := range status.Nodes {
		if m.ID == status.Node {
			return m, true
		}
	}
	return client.ClusterNode{}, false
}

// leader waits for a node among those given that leads, by its own word.
func (c *several) leader(among ...*node) *node {
	c.t.Helper()
	var found *node
	among[0].eventually("a leader", func() bool {
		for _, n := range among {
			if m, ok := n.self(false); ok && m.Role == "leader" {
				found = n
			}
		}
		return found != nil
	})
	return found
}

// others gives the nodes but for one.
func (c *several) others(but *node) []*node {
	var out []*node
	for _, n := range c.nodes {
		if n != but {
			out = append(out, n)
		}
	}
	return out
}

// owner finds the node that a sandbox is on.
func (c *several) owner(sandbox string) *node {
	c.t.Helper()
	for _, n := range c.nodes {
		if _, err := os.Stat(filepath.Join(n.dir, "sandboxes", sandbox)); err == nil {
			return n
		}
	}
	c.t.Fatalf("sandbox %s is on no node", sandbox)
	return nil
}

// newGuestOn creates sandboxes through a node until one is on the node wanted; the others are deleted.
func (c *several) newGuestOn(owner, through *node) *guest {
	c.t.Helper()
	for range 2 * len(c.nodes) {
		sb, err := through.api.CreateSandbox(within(c.t), small(""))
		require.NoError(c.t, err, through.output())
		if c.owner(sb.ID) == owner {
			g := &guest{n: owner, id: sb.ID}
			g.furnish()
			return g
		}
		defer func() { require.NoError(c.t, through.api.DeleteSandbox(within(c.t), sb.ID)) }()
	}
	c.t.Fatal("no sandbox is placed on the node wanted")
	return nil
}

// agree waits until all nodes stand at one log entry and compares the digests of their states.
func (c *several) agree() {
	c.t.Helper()
	c.nodes[0].eventually("all nodes at one entry", func() bool {
		digests := map[uint64]string{}
		for _, n := range c.nodes {
			m, ok := n.self(true)
			if !ok {
				return false
			}
			if before, there := digests[m.Position]; there {
				require.Equal(c.t, before, m.Digest, "two nodes at entry %d have different states", m.Position)
			}
			digests[m.Position] = m.Digest
		}
		return len(digests) == 1
	})
}

// cutOff drops everything between a node and the other two, both ways; the test still reaches it. The result heals it.
func (c *several) cutOff(n *node) (heal func()) {
	c.t.Helper()
	rule := func(op string) {
		for _, peer := range c.others(n) {
			ip, _, _ := strings.Cut(peer.addr, ":")
			run(c.t, "nsenter", "--net=/run/netns/"+n.netns, "iptables", "-w", op, "INPUT", "-s", ip, "-j", "DROP")
			run(c.t, "nsenter", "--net=/run/netns/"+n.netns, "iptables", "-w", op, "OUTPUT", "-d", ip, "-j", "DROP")
		}
	}
	rule("-A")
	return func() { rule("-D") }
}

// requireWrites waits until a node can write again. Every try is a snapshot name of its own; unknown ones are let be.
func (n *node) requireWrites() {
	n.t.Helper()
	n.eventually("writes", func() bool {
		_, err := n.admin().CreateOrg(within(n.t), fmt.Sprintf("org-%d", time.Now().UnixNano()))
		if err != nil {
			require.Contains(n.t, []int{0, http.StatusServiceUnavailable}, client.Status(err), "%v", err)
		}
		return err == nil
	})
}

// requireUnavailable fails unless an error is a 503 with what to do next.
func requireUnavailable(t *testing.T, err error) {
	t.Helper()
	var answer *client.Error
	require.True(t, errors.As(err, &answer), "%v", err)
	require.Equal(t, http.StatusServiceUnavailable, answer.Status, "%v", err)
}

// soon is a context for calls that must not hang: far longer than they take, far shorter than a lost peer.
func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

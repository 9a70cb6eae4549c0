package e2e

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/httpd/client"
	"stillframe/hypervisor/vmm"
)

// template is the smallest that there is.
const template = "system/busybox"

// small asks for the smallest sandbox, with a long life.
func small(key string) client.CreateSandbox {
	return client.CreateSandbox{TemplateName: template, Memory: 512, Timeout: 3600, IdempotencyKey: key}
}

// exec runs a command in a sandbox and gives what it printed.
func (n *node) exec(id, command string) string {
	n.t.Helper()
	res, err := n.api.Exec(within(n.t), id, client.Exec{Command: command, Timeout: 60})
	require.NoError(n.t, err, "%s\n%s", command, n.output())
	require.Zero(n.t, res.ExitCode, "%s: %s%s", command, res.Stdout, res.Stderr)
	return strings.TrimSpace(res.Stdout)
}

// guest is a sandbox with something to lose: a nonce in its memory only, one on its disk, and a process that counts.
type guest struct {
	n            *node
	id           string
	memory, disk string // the nonces
}

// newGuest creates a sandbox and starts its counter.
func (n *node) newGuest() *guest {
	n.t.Helper()
	sb, err := n.api.CreateSandbox(within(n.t), small(""))
	require.NoError(n.t, err, n.output())
	g := &guest{n: n, id: sb.ID}
	g.furnish()
	return g
}

// furnish gives a guest what it has to lose.
func (g *guest) furnish() {
	g.n.t.Helper()
	g.n.exec(g.id, `head -c 16 /dev/urandom | md5sum > /dev/shm/nonce
head -c 16 /dev/urandom | md5sum > /home/user/nonce && sync
cd /dev/shm
echo 'i=0; while :; do i=$((i+1)); echo $i > count.new; mv count.new count; usleep 20000; done' > counter
setsid sh counter < /dev/null > /dev/null 2>&1 &
while ! [ -s count ]; do usleep 10000; done`)
	g.memory, g.disk = g.n.exec(g.id, "cat /dev/shm/nonce"), g.n.exec(g.id, "cat /home/user/nonce")
}

// count reads the counter.
func (g *guest) count() int {
	g.n.t.Helper()
	v, err := strconv.Atoi(g.n.exec(g.id, "cat /dev/shm/count"))
	require.NoError(g.n.t, err)
	return v
}

// requireRuns fails unless the guest's VM runs, by its VMM's word and by what happens in it, and is still itself.
func (g *guest) requireRuns() {
	g.n.t.Helper()
	require.Equal(g.n.t, vmm.StateRunning, g.n.vmState(g.id))
	sb, err := g.n.api.Sandbox(within(g.n.t), g.id)
	require.NoError(g.n.t, err)
	require.Equal(g.n.t, "running", sb.State, "%s", sb.StateReason)
	first := g.count()
	deadline := time.Now().Add(patience)
	for g.count() <= first {
		require.True(g.n.t, time.Now().Before(deadline), "the guest's counter stands still")
	}
	require.Equal(g.n.t, g.memory, g.n.exec(g.id, "cat /dev/shm/nonce"))
	require.Equal(g.n.t, g.disk, g.n.exec(g.id, "cat /home/user/nonce"))
}

// snapshot takes a snapshot of the guest under a name.
func (g *guest) snapshot(name, key string) (client.Snapshot, error) {
	return g.n.api.CreateSnapshot(g.n.t.Context(), g.id, client.CreateSnapshot{Name: name, IdempotencyKey: key})
}

// restore makes a clone from a snapshot of the guest.
func (g *guest) restore(name string) *guest {
	g.n.t.Helper()
	sb, err := g.n.api.RestoreSnapshot(within(g.n.t), client.RestoreSnapshot{SnapshotName: name, Timeout: 3600})
	require.NoError(g.n.t, err, g.n.output())
	return &guest{n: g.n, id: sb.ID, memory: g.memory, disk: g.disk}
}

func (g *guest) delete() {
	g.n.t.Helper()
	require.NoError(g.n.t, g.n.api.DeleteSandbox(within(g.n.t), g.id))
}

// requireNameFree fails unless a snapshot can be made and restored under a name; it is deleted again.
func (g *guest) requireNameFree(name string) {
	g.n.t.Helper()
	list, err := g.n.api.Snapshots(within(g.n.t), client.ListOptions{Query: name})
	require.NoError(g.n.t, err)
	require.Empty(g.n.t, list.Items, "listed although its creation failed")
	_, err = g.n.api.RestoreSnapshot(within(g.n.t), client.RestoreSnapshot{SnapshotName: name})
	require.Equal(g.n.t, http.StatusNotFound, client.Status(err), "%v", err)
	sn, err := g.snapshot(name, "")
	require.NoError(g.n.t, err, g.n.output())
	require.NoError(g.n.t, g.n.api.DeleteSnapshot(within(g.n.t), sn.ID))
}

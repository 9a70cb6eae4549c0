package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"stillframe/httpd/client"
	"stillframe/hypervisor/vmm"
	"stillframe/netpolicy"
)

// record reads how the daemon finds a sandbox's VMM again.
func (n *node) record(id string) (vmm.Record, error) {
	var rec vmm.Record
	raw, err := os.ReadFile(filepath.Join(n.dir, "sandboxes", id, "runtime.json"))
	if err == nil {
		err = json.Unmarshal(raw, &rec)
	}
	return rec, err
}

// vmmOf takes up a sandbox's VMM process beside the daemon.
func (n *node) vmmOf(id string) *vmm.Process {
	n.t.Helper()
	rec, err := n.record(id)
	require.NoError(n.t, err)
	p, err := vmm.Adopt(rec)
	require.NoError(n.t, err)
	n.t.Cleanup(func() { _ = p.Close() })
	return p
}

// signalVMM sends a signal to the VMM of a sandbox, and to no other process that may have its pid by now.
func (n *node) signalVMM(id string, sig unix.Signal) {
	n.t.Helper()
	rec, err := n.record(id)
	require.NoError(n.t, err)
	fd, err := unix.PidfdOpen(rec.PID, 0)
	require.NoError(n.t, err)
	defer func() { _ = unix.Close(fd) }()
	p, err := vmm.Adopt(rec) // compares start time and boot
	require.NoError(n.t, err)
	defer func() { _ = p.Close() }()
	require.NoError(n.t, unix.PidfdSendSignal(fd, sig, nil, 0))
}

// vmState asks a sandbox's VMM what its VM is in.
func (n *node) vmState(id string) vmm.State {
	n.t.Helper()
	state, err := vmm.NewClient(filepath.Join(n.dir, "sandboxes", id, "vmm.sock")).State(within(n.t))
	require.NoError(n.t, err)
	return state
}

// removeReady removes the namespaces that the daemon kept ready, as its next start would.
func (n *node) removeReady() {
	raw, err := os.ReadFile(filepath.Join(n.dir, "node-id"))
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	require.NoError(n.t, err)
	ready, err := netpolicy.List("sfpool-" + string(raw[:8]) + "-")
	require.NoError(n.t, err)
	for _, name := range ready {
		require.NoError(n.t, netpolicy.Destroy(context.Background(), name))
	}
}

// removeVMs ends the VMM processes that the data folder tells of, and their namespaces.
func (n *node) removeVMs() {
	n.removeReady()
	entries, err := os.ReadDir(filepath.Join(n.dir, "sandboxes"))
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	require.NoError(n.t, err)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, e := range entries {
		rec, err := n.record(e.Name())
		if err != nil {
			rec, err = vmm.Find(filepath.Join(n.dir, "sandboxes", e.Name(), "vmm.sock"))
		}
		if err == nil {
			if p, err := vmm.Adopt(rec); err == nil {
				require.NoError(n.t, errors.Join(p.Kill(ctx), p.Close()))
			}
		}
		require.NoError(n.t, netpolicy.Destroy(ctx, "sf-"+e.Name()))
	}
	deadline := time.Now().Add(patience)
	for len(n.processes()) > 0 {
		require.True(n.t, time.Now().Before(deadline), "processes are left: %v", n.processes())
		time.Sleep(20 * time.Millisecond)
	}
}

// processes gives all that live and have the data folder in their arguments, but for the daemon: VMMs and what they
// have started.
func (n *node) processes() map[int]string {
	found := map[int]string{}
	procs, err := os.ReadDir("/proc")
	require.NoError(n.t, err)
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || pid == os.Getpid() || (n.cmd != nil && pid == n.cmd.Process.Pid) {
			continue
		}
		raw, err := os.ReadFile(filepath.Join("/proc", p.Name(), "cmdline"))
		if err == nil && bytes.Contains(raw, []byte(n.dir+"/")) {
			found[pid] = string(bytes.ReplaceAll(raw, []byte{0}, []byte{' '}))
		}
	}
	return found
}

var sandboxID = regexp.MustCompile(`sbx-[a-z2-7]{26}`)

// namespaces gives the sandboxes of this node, past and present, that have a network namespace. Whose a namespace is,
// the node's log tells.
func (n *node) namespaces() []string {
	raw, err := os.ReadFile(n.log)
	require.NoError(n.t, err)
	names, err := netpolicy.List("sf-")
	require.NoError(n.t, err)
	mounts, err := os.ReadFile("/proc/self/mounts")
	require.NoError(n.t, err)
	var mine []string
	for id := range maps.Keys(asSet(sandboxID.FindAllString(string(raw), -1))) {
		mounted := bytes.Contains(mounts, []byte(filepath.Join(netpolicy.Dir, "sf-"+id)+" "))
		if named := slices.Contains(names, "sf-"+id); named || mounted {
			mine = append(mine, id)
			require.Equal(n.t, named, mounted, "the namespace of %s is half there", id)
		}
	}
	slices.Sort(mine)
	return mine
}

func asSet(items []string) map[string]bool {
	set := map[string]bool{}
	for _, item := range items {
		set[item] = true
	}
	return set
}

// What may be in the folder of a sandbox and must be in that of a snapshot.
var (
	sandboxFiles = []string{
		"born", "disk", "events.json", "ram", "runtime.json", "serial.log", "vmm.log", "vmm.out", "vmm.sock", "vmm.sock.lock",
	}
	snapshotFiles = []string{"config.json", "disk", "manifest.json", "ram", "state.json"}
)

// listed is what the API shows.
func (n *node) listed() (sandboxes []client.SandboxItem, snapshots []client.Snapshot) {
	n.t.Helper()
	sbs, err := n.api.Sandboxes(within(n.t), client.ListOptions{})
	require.NoError(n.t, err)
	sns, err := n.api.Snapshots(within(n.t), client.ListOptions{})
	require.NoError(n.t, err)
	require.Equal(n.t, len(sbs.Items), sbs.Total)
	require.Equal(n.t, len(sns.Items), sns.Total)
	return sbs.Items, sns.Items
}

// requireExact fails unless what is there is exactly what the API lists. The processes of a VM that was just ended take
// a moment to go.
func (n *node) requireExact() {
	n.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		wrong := n.differences()
		if len(wrong) == 0 {
			return
		}
		require.True(n.t, time.Now().Before(deadline), "what is there is not what is listed:\n%s",
			strings.Join(wrong, "\n"))
		time.Sleep(50 * time.Millisecond)
	}
}

// differences compares the API's lists with processes, namespaces and files.
func (n *node) differences() (wrong []string) {
	n.t.Helper()
	sandboxes, snapshots := n.listed()
	var ids, snapshotIDs []string
	running := map[string]bool{}
	for _, sb := range sandboxes {
		ids = append(ids, sb.ID)
		running[sb.ID] = sb.State == "running"
		if sb.State != "running" && sb.State != "stopped" {
			wrong = append(wrong, fmt.Sprintf("%s is %s", sb.ID, sb.State))
		}
	}
	for _, sn := range snapshots {
		snapshotIDs = append(snapshotIDs, sn.ID)
	}
	same := func(what string, want, got []string) {
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(want, got) {
			wrong = append(wrong, fmt.Sprintf("%s: want %v, found %v", what, want, got))
		}
	}
	same("namespaces", ids, n.namespaces())
	same("sandbox folders", ids, names(n, filepath.Join(n.dir, "sandboxes")))
	same("snapshot folders", snapshotIDs, names(n, filepath.Join(n.dir, "snapshots")))
	for _, id := range ids {
		for _, f := range names(n, filepath.Join(n.dir, "sandboxes", id)) {
			if !slices.Contains(sandboxFiles, f) {
				wrong = append(wrong, fmt.Sprintf("a file %s of %s", f, id))
			}
		}
	}
	for _, id := range snapshotIDs {
		same("files of "+id, slices.Clone(snapshotFiles), names(n, filepath.Join(n.dir, "snapshots", id)))
	}
	return append(wrong, n.wrongProcesses(running)...)
}

// wrongProcesses looks whether every running sandbox has one VMM, and nobody else any process.
func (n *node) wrongProcesses(running map[string]bool) (wrong []string) {
	vmms := map[string]int{}
	for pid, args := range n.processes() {
		id := sandboxID.FindString(args)
		if !running[id] {
			wrong = append(wrong, fmt.Sprintf("process %d: %.200s", pid, args))
		}
		if strings.Contains(args, "--api-socket") {
			vmms[id]++
		}
	}
	for id, runs := range running {
		if want := map[bool]int{true: 1}[runs]; vmms[id] != want {
			wrong = append(wrong, fmt.Sprintf("%s has %d VMMs, want %d", id, vmms[id], want))
		}
	}
	return wrong
}

func names(n *node, dir string) []string {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	require.NoError(n.t, err)
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

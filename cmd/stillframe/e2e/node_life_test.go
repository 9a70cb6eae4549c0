package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/httpd/client"
	"stillframe/hypervisor/vmm"
)

// TestDaemonComesAndGoes: what an operator does to a daemon is nothing to the VMs.
func TestDaemonComesAndGoes(t *testing.T) {
	n := newNode(t)
	g := n.newGuest()
	pid := n.vmmOf(g.id).Record().PID
	for name, end := range map[string]func(){"SIGTERM": n.stop, "SIGKILL": n.kill} {
		counted := g.count()
		end()
		require.Equal(t, vmm.StateRunning, n.vmState(g.id), name)
		time.Sleep(time.Second) // the guest alone
		n.start()
		require.Equal(t, pid, n.vmmOf(g.id).Record().PID, "%s: taken up, not made anew", name)
		g.requireRuns()
		// 20 ms a count, so some fifty; a guest that had stood still would have next to none.
		require.Greater(t, g.count(), counted+5, name)
		n.requireExact()
	}

	t.Run("a data folder has one daemon", func(t *testing.T) {
		second := &node{t: t, dir: n.dir, order: n.order, log: n.log + ".second", addr: freeAddr(t)}
		second.launch()
		second.awaitExit()
		require.False(t, second.cmd.ProcessState.Success())
		require.Contains(t, second.output(), "in use by another stillframe process")
		g.requireRuns()
	})

	t.Run("SIGTERM during a snapshot", func(t *testing.T) {
		key := rand.Text()
		hold := n.holdAt("snapshot/vm-snapshot/before", func() error { _, err := g.snapshot("late", key); return err })
		require.Equal(t, vmm.StatePaused, n.vmState(g.id))
		require.NoError(t, n.cmd.Process.Signal(syscall.SIGTERM))
		time.Sleep(200 * time.Millisecond)
		require.NoError(t, hold.open(), "a call under way is finished")
		n.awaitExit()
		require.True(t, n.cmd.ProcessState.Success(), n.output())
		require.Equal(t, vmm.StateRunning, n.vmState(g.id))
		n.start()
		sn, err := g.snapshot("late", key)
		require.NoError(t, err)
		g.requireRuns()
		n.requireExact()
		require.NoError(t, n.api.DeleteSnapshot(within(t), sn.ID))
	})

	t.Run("one name, fifty creations", func(t *testing.T) { fiftyCreations(t, g) })
	t.Run("three clones at once", func(t *testing.T) { threeClones(t, g) })
	g.delete()
	n.requireExact()
}

// fiftyCreations: of concurrent creations of one name exactly one succeeds, and the others are told at once.
func fiftyCreations(t *testing.T, g *guest) {
	statuses := make([]int, 50)
	var all sync.WaitGroup
	start := make(chan struct{})
	for i := range statuses {
		api := g.n.client(g.n.key) // with a connection of its own
		all.Go(func() {
			<-start
			if _, err := api.CreateSnapshot(within(t), g.id, client.CreateSnapshot{Name: "one"}); err == nil {
				statuses[i] = http.StatusCreated
			} else {
				statuses[i] = client.Status(err)
			}
		})
	}
	close(start)
	all.Wait()
	count := map[int]int{}
	for _, s := range statuses {
		count[s]++
	}
	require.Equal(t, map[int]int{http.StatusCreated: 1, http.StatusConflict: 49}, count)
	g.requireRuns()
	g.n.requireExact()
	g.n.deleteSnapshotNamed("one")
}

// threeClones: clones made at once of one instant agree in what they remember and differ in who they are.
func threeClones(t *testing.T, g *guest) {
	n := g.n
	sn, err := g.snapshot("origin", "")
	require.NoError(t, err)
	taken := g.count()
	identity := func(id string) (all []string) {
		// Random bytes first: as soon after the restore as can be.
		for _, command := range []string{"head -c 32 /dev/urandom | md5sum", "cat /etc/machine-id", "hostname"} {
			all = append(all, n.exec(id, command))
		}
		return append(all, id)
	}
	clones, restored := make([]client.Sandbox, 3), client.RestoreSnapshot{SnapshotName: sn.Name, Timeout: 600}
	errs := make([]error, 3)
	identities := [][]string{identity(g.id)}
	var all sync.WaitGroup
	for i := range clones {
		all.Go(func() {
			clones[i], errs[i] = n.api.RestoreSnapshot(within(t), restored)
		})
	}
	all.Wait()
	for i, sb := range clones {
		require.NoError(t, errs[i])
		identities = append(identities, identity(sb.ID))
	}
	for field := range identities[0] {
		seen := map[string]bool{}
		for _, who := range identities {
			require.NotEmpty(t, who[field])
			require.False(t, seen[who[field]], "two of the four have the same: %v", identities)
			seen[who[field]] = true
		}
	}
	require.Greater(t, g.count(), taken, "the source moved on")
	for _, sb := range clones {
		clone := &guest{n: n, id: sb.ID, memory: g.memory, disk: g.disk}
		clone.requireRuns()
		// Wall clocks are set, not those of the snapshot's instant.
		var unix int64
		_, err := fmt.Sscan(n.exec(sb.ID, "date +%s"), &unix)
		require.NoError(t, err)
		require.WithinDuration(t, time.Now(), time.Unix(unix, 0), 5*time.Second)
		n.exec(sb.ID, "echo mine > /home/user/nonce")
		clone.delete()
	}
	g.requireRuns() // its disk is its own
	n.requireExact()
	require.NoError(t, n.api.DeleteSnapshot(within(t), sn.ID))
}

// TestTimeout: a sandbox ends by itself.
func TestTimeout(t *testing.T) {
	n := newNode(t)
	in := small("")
	in.Timeout = 2
	sb, err := n.api.CreateSandbox(within(t), in)
	require.NoError(t, err)
	require.NotZero(t, sb.TimeoutAt)
	n.requireGone(sb.ID)
	require.GreaterOrEqual(t, time.Now().Unix(), sb.TimeoutAt, "not before its time")
	n.requireExact()

	// One whose time comes while no daemon runs ends at the next start.
	in.Timeout = 5
	sb, err = n.api.CreateSandbox(within(t), in)
	require.NoError(t, err)
	n.stop()
	require.True(t, n.vmmOf(sb.ID).Alive())
	time.Sleep(time.Until(time.Unix(sb.TimeoutAt+1, 0)))
	n.start()
	n.requireGone(sb.ID)
	n.requireExact()
}

// TestSecretsStaySecret: keys and environment variables reach neither the log nor the arguments of any process. That
// the key is not in the log of any other test either is looked at when its node is removed.
func TestSecretsStaySecret(t *testing.T) {
	n := newNode(t)
	secret, sent := "s3cret-"+rand.Text(), "exec-"+rand.Text()
	in := small("")
	in.EnvVars = map[string]string{"TOKEN": secret}
	sb, err := n.api.CreateSandbox(within(t), in)
	require.NoError(t, err)
	require.Equal(t, secret, n.exec(sb.ID, "echo $TOKEN"), "the guest has it")
	res, err := n.api.Exec(within(t), sb.ID, client.Exec{
		Command: "echo $SENT >&2; exit 3", Envs: map[string]string{"SENT": sent},
	})
	require.NoError(t, err)
	require.Equal(t, sent+"\n", res.Stderr)
	require.NoError(t, n.api.WriteFile(within(t), sb.ID, "/home/user/f", "0600", []byte(secret)))
	_, err = n.api.CreateSnapshot(within(t), sb.ID, client.CreateSnapshot{Name: "s"})
	require.NoError(t, err)
	clone, err := n.api.RestoreSnapshot(within(t), client.RestoreSnapshot{SnapshotName: "s"})
	require.NoError(t, err)
	require.Equal(t, secret, n.exec(clone.ID, "echo $TOKEN"))
	secrets := []string{secret, sent, n.key}
	for pid, args := range n.processes() {
		environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		require.NoError(t, err)
		requireNone(t, "arguments of a process", []byte(args), secrets)
		requireNone(t, "environment of a process", environ, secrets)
	}
	n.stop() // a start reads everything back, and may say something of it
	n.start()
	n.exec(clone.ID, "true")
	log, err := os.ReadFile(n.log)
	require.NoError(t, err)
	require.Contains(t, string(log), "level=DEBUG", "the log says all that it can")
	requireNone(t, "the log", log, secrets)
	n.requirePrivate(secrets)
}

func requireNone(t *testing.T, where string, text []byte, secrets []string) {
	t.Helper()
	for _, s := range secrets {
		require.False(t, bytes.Contains(text, []byte(s)), "%s has a secret in it", where)
	}
}

// requirePrivate: what is small and not the guest's own or the log's holds no secret, and the data folder is its
// owner's alone.
func (n *node) requirePrivate(secrets []string) {
	n.t.Helper()
	st, err := os.Stat(n.dir)
	require.NoError(n.t, err)
	require.Zero(n.t, st.Mode().Perm()&0o077)
	var looked int
	for _, pattern := range []string{
		"sandboxes/*/*.json", "sandboxes/*/*.log", "sandboxes/*/*.out", "snapshots/*/manifest.json",
		"snapshots/*/config.json",
	} {
		files, err := filepath.Glob(filepath.Join(n.dir, pattern))
		require.NoError(n.t, err)
		for _, f := range files {
			raw, err := os.ReadFile(f)
			require.NoError(n.t, err)
			requireNone(n.t, f, raw, secrets)
			looked++
		}
	}
	require.NotZero(n.t, looked)
}

// TestBadRequests sends what is wrong to the real daemon over a real socket. Everything is answered in the contract's
// shape, and nothing of it has any effect.
func TestBadRequests(t *testing.T) {
	n := newNode(t)
	admin := n.admin()
	_, err := admin.CreateOrg(within(t), "others")
	require.NoError(t, err)
	others, err := admin.CreateKey(within(t), "others", "")
	require.NoError(t, err)
	sb, err := n.api.CreateSandbox(within(t), small(""))
	require.NoError(t, err)
	sn, err := n.api.CreateSnapshot(within(t), sb.ID, client.CreateSnapshot{Name: "mine"})
	require.NoError(t, err)
	const create, get, post, del = "/v1/sandbox", http.MethodGet, http.MethodPost, http.MethodDelete
	mine := create + "/" + sb.ID
	snapshot, restore := mine+"/snapshot/create", "/v1/snapshot/restore"
	big := `{"template_name":"` + strings.Repeat("x", 11<<20) + `"}`
	for name, r := range map[string]struct {
		method, path, body, key string
		status                  int
		says                    string
	}{
		"no JSON":                       {post, create, `{"template_name":`, n.key, 400, ""},
		"an array":                      {post, create, `[]`, n.key, 400, ""},
		"a wrong type":                  {post, create, `{"template_name":"system/x","vcpu":"two"}`, n.key, 400, "vcpu"},
		"several wrong fields":          {post, create, `{"vcpu":99,"memory":513}`, n.key, 400, "template_name"},
		"an unknown template":           {post, create, `{"template_name":"system/none"}`, n.key, 400, "system/none"},
		"a name with a slash":           {post, snapshot, `{"name":"a/b"}`, n.key, 400, "name"},
		"a name of 65":                  {post, snapshot, `{"name":"` + strings.Repeat("n", 65) + `"}`, n.key, 400, "name"},
		"a taken name":                  {post, snapshot, `{"name":"mine"}`, n.key, 409, "mine"},
		"eleven megabytes":              {post, create, big, n.key, 413, ""},
		"an unknown sandbox":            {get, "/v1/sandbox/sbx-aaaaaaaaaaaaaaaaaaaaaaaaaa", "", n.key, 404, ""},
		"no id at all":                  {get, "/v1/sandbox/..%2f..%2fetc", "", n.key, 404, ""},
		"an unknown snapshot":           {post, restore, `{"snapshot_name":"none"}`, n.key, 404, ""},
		"no key":                        {get, "/v1/sandboxes", "", "", 401, ""},
		"a wrong key":                   {get, "/v1/sandboxes", "", "sf_" + rand.Text(), 401, ""},
		"another's sandbox":             {get, mine, "", others.Key, 404, ""},
		"another's deletion":            {del, mine, "", others.Key, 404, ""},
		"another's command":             {post, mine + "/process/execute", `{"command":"id"}`, others.Key, 404, ""},
		"another's snapshot":            {post, restore, `{"snapshot_name":"mine"}`, others.Key, 404, ""},
		"another's snapshot's deletion": {del, "/v1/snapshot/" + sn.ID, "", others.Key, 404, ""},
		"an unknown path":               {get, "/v1/nothing", "", n.key, 404, ""},
	} {
		t.Run(name, func(t *testing.T) {
			status, answer := n.raw(t, r.method, r.path, r.body, r.key)
			require.Equal(t, r.status, status, "%.300s", answer)
			require.Contains(t, answer, `"message"`)
			require.Contains(t, answer, r.says)
		})
	}
	t.Run("a revoked key", func(t *testing.T) {
		require.NoError(t, admin.RevokeKey(within(t), others.ID))
		status, answer := n.raw(t, http.MethodGet, "/v1/sandboxes", "", others.Key)
		require.Equal(t, http.StatusUnauthorized, status, answer)
		n.kill()
		n.start()
		status, answer = n.raw(t, http.MethodGet, "/v1/sandboxes", "", others.Key)
		require.Equal(t, http.StatusUnauthorized, status, "after a restart: %s", answer)
	})
	n.exec(sb.ID, "true")
	n.requireOne(sb.ID)
}

// raw sends a request byte for byte.
func (n *node) raw(t *testing.T, method, path, body, key string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+n.addr+path, strings.NewReader(body))
	require.NoError(t, err)
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer func() { require.NoError(t, resp.Body.Close()) }()
	var answer bytes.Buffer
	_, err = answer.ReadFrom(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, answer.String()
}

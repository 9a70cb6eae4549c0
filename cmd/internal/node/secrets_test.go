package node

import (
	"bytes"
	"encoding/base64"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/cluster"
	"stillframe/cluster/seal"
	"stillframe/fsm"
)

const (
	secret     = "Bearer s3cret-of-the-test"
	withSecret = `{"mode":"custom","transforms":[{"domain":"api.example.com","inject_headers":{"Authorization":"` +
		secret + `"}}]}`
)

// TestNoSecretLeaves takes header values and CA seeds through everything that the API does with them, good and bad, and
// then looks for them in every file of every node, in all that was logged and in every answer.
func TestNoSecretLeaves(t *testing.T) {
	w := newWorld(t)
	status, sb := w.do(0, "POST", "/v1/sandbox", `{"template_name":"system/busybox","network_policy":`+withSecret+`}`,
		"Idempotency-Key", "k1")
	require.Equal(t, 201, status, "%v", sb)
	id := sb["id"].(string)
	policy := "/v1/sandbox/" + id + "/network-policy"
	for _, step := range []struct {
		method, path, body string
		want               int
	}{
		{"PUT", policy, withSecret, 200},
		{"PUT", policy, strings.Replace(withSecret, "Authorization", "Host", 1), 400},
		{"PUT", policy, strings.Replace(withSecret, secret, secret+`\n`, 1), 400},
		{"PUT", policy, strings.Replace(withSecret, "api.example.com", secret, 1), 400},
		{"PUT", policy, withSecret[:len(withSecret)-1], 400},
		{"PUT", "/v1/sandbox/sbx-none/network-policy", withSecret, 404},
		{"PUT", policy, strings.Replace(withSecret, secret, secret+strings.Repeat("x", 9000), 1), 400},
		{"POST", "/v1/sandbox/" + id + "/snapshot/create", `{"name":"s"}`, 201},
		{"POST", "/v1/snapshot/restore", `{"snapshot_name":"s"}`, 201},
		{"POST", "/v1/snapshot/restore", `{"snapshot_name":"s","network_policy":` + withSecret + `}`, 201},
		{"POST", "/v1/snapshot/restore", `{"snapshot_name":"none","network_policy":` + withSecret + `}`, 404},
		{"GET", "/v1/sandbox/" + id, "", 200},
		{"GET", "/v1/sandboxes", "", 200},
		{"GET", "/v1/snapshots", "", 200},
		{"DELETE", "/v1/sandbox/" + id, "", 204},
	} {
		status, answer := w.do(0, step.method, step.path, step.body)
		require.Equal(t, step.want, status, "%s %s: %v", step.method, step.path, answer)
	}
	status, _ = w.do(1, "POST", "/v1/sandbox", `{"template_name":"system/busybox","network_policy":`+withSecret+`}`,
		"Idempotency-Key", "k1")
	require.Equal(t, 201, status, "another node answers the retry")

	// What is looked for is there to be found: the owner can open it.
	needles := map[string][]byte{"the header value": []byte("s3cret-of-the-test")}
	found := 0
	for _, v := range w.nodes[1].log.State().Sealed() {
		opened, err := w.nodes[1].secrets.OpenPolicy(v.Org, v.Policy)
		require.NoError(t, err)
		if opened != nil && len(opened.Transforms) > 0 && opened.Transforms[0].InjectHeaders["Authorization"] == secret {
			found++
		}
		if len(v.CA) > 0 {
			seed, err := w.nodes[1].secrets.OpenCA(v.Org, v.CA)
			require.NoError(t, err)
			needles["a CA seed "+string(v.Sandbox+fsm.SandboxID(v.Snapshot))] = seed[:]
		}
	}
	require.GreaterOrEqual(t, found, 3)
	require.GreaterOrEqual(t, len(needles), 3)

	require.Eventually(t, func() bool { _, n := w.files(); return n >= 2 }, time.Minute, 20*time.Millisecond,
		"no node took a snapshot of the state")
	places, _ := w.files()
	for path := range places {
		require.NotEqual(t, seal.FileName, filepath.Base(path), "keys are no part of a data folder of a cluster")
	}
	logged := w.logs.bytes()
	require.NotEmpty(t, logged)
	places["the log output"] = logged
	places["the answers"] = bytes.Join(w.seen, []byte("\n"))
	sealedThere := 0
	for place, content := range places {
		for what, needle := range needles {
			require.False(t, bytes.Contains(content, needle), "%s is in %s", what, place)
			encoded := []byte(base64.StdEncoding.EncodeToString(needle))[:16]
			require.False(t, bytes.Contains(content, encoded), "%s is in %s, encoded", what, place)
		}
		if bytes.Contains(content, []byte("sealed1:")) {
			sealedThere++
		}
	}
	require.GreaterOrEqual(t, sealedThere, 3, "logs and snapshots have the sealed values")
	require.NotContains(t, string(places["the answers"]), "sealed1:")
	require.NotContains(t, string(logged), "sealed1:")
}

// A rotation is carried through on running nodes: values sealed with the old key open throughout, and in the end none
// is left.
func TestResealing(t *testing.T) {
	w := newWorld(t)
	_, sb := w.do(0, "POST", "/v1/sandbox", `{"template_name":"system/busybox","network_policy":`+withSecret+`}`)
	id := fsm.SandboxID(sb["id"].(string))
	_, _ = w.do(0, "POST", "/v1/sandbox/"+string(id)+"/snapshot/create", `{"name":"s"}`)
	w.nodes[1].owner.set(func() { w.nodes[1].owner.hold = true })
	sealed, err := w.nodes[0].secrets.SealPolicy("org-a", &fsm.NetworkPolicy{
		Mode: fsm.PolicyCustom, Transforms: []fsm.Transform{
			{Domain: "b.example.com", InjectHeaders: map[string]string{"x": "value of an open intent"}},
		},
	})
	require.NoError(t, err)
	_, err = w.nodes[0].log.Apply(t.Context(), fsm.SetNetworkPolicy{
		Now: fsm.At(time.Now()), Intent: "int-open", Org: "org-a", Sandbox: id, Policy: *sealed,
	})
	require.NoError(t, err)

	done, err := w.nodes[0].Reseal(t.Context())
	require.NoError(t, err)
	require.Zero(t, done.Count, "nothing to do yet")

	old := done.Key
	key := w.rotate("n0")
	require.NotEqual(t, old, key)
	_, err = w.nodes[0].Reseal(t.Context())
	require.ErrorContains(t, err, "node n1 has not got key "+key)
	require.Len(t, w.nodes[0].log.State().Sealed(), 3)
	for _, v := range w.nodes[0].log.State().Sealed() {
		require.NotContains(t, string(v.CA), key)
	}
	// Until n1 has the key, what n0 seals anew cannot be opened there, and it says so.
	fresh, err := w.nodes[0].secrets.NewCA("org-a")
	require.NoError(t, err)
	_, err = w.nodes[1].secrets.OpenCA("org-a", fresh)
	require.ErrorContains(t, err, key)

	_, err = seal.Copy(w.dir, filepath.Join(w.dir, "n1"))
	require.NoError(t, err)
	done, err = w.nodes[1].Reseal(t.Context())
	require.NoError(t, err)
	require.Equal(t, key, done.Key)
	require.Equal(t, 5, done.Count, "two CAs, and three header values, of which one is in an open intent")
	state, err := w.nodes[0].log.Linearizable(t.Context())
	require.NoError(t, err)
	require.Len(t, state.Sealed(), 3)
	for _, v := range state.Sealed() {
		commands, err := w.nodes[0].secrets.Reseal(v)
		require.NoError(t, err)
		require.Empty(t, commands)
		opened, err := w.nodes[0].secrets.OpenPolicy(v.Org, v.Policy)
		require.NoError(t, err)
		require.NotEmpty(t, opened.Transforms[0].InjectHeaders)
	}
	again, err := w.nodes[0].Reseal(t.Context())
	require.NoError(t, err)
	require.Zero(t, again.Count)
}

// A key that is not in use yet is not rushed, and a node that cannot be asked is named.
func TestResealingWaits(t *testing.T) {
	w := newWorld(t)
	_, _, err := cluster.RotateSecrets(w.dir, time.Now().Add(time.Hour))
	require.NoError(t, err)
	_, err = w.nodes[0].Reseal(t.Context())
	require.ErrorContains(t, err, "not in use yet")

	now := fsm.At(time.Now())
	_, err = w.nodes[0].log.Apply(t.Context(), fsm.RegisterNode{Now: now, Node: fsm.Node{
		ID: "node-9", Name: "ninth", Level: fsm.Level,
	}})
	require.NoError(t, err)
	w.rotate("n0", "n1")
	_, err = w.nodes[0].Reseal(t.Context())
	require.ErrorContains(t, err, "node ninth")
}

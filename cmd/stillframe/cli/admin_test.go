package cli_test

import (
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"stillframe/cmd/stillframe/cli"
)

// serveAdmin answers on the admin socket of a data folder, which it gives.
func serveAdmin(t *testing.T, answers map[string]reply) string {
	t.Helper()
	data := t.TempDir()
	listener, err := net.Listen("unix", filepath.Join(data, "admin.sock"))
	require.NoError(t, err)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		a, ok := answers[r.Method+" "+r.URL.RequestURI()+" "+string(body)]
		if !ok {
			a = reply{http.StatusNotFound, `{"message":"no such organization or key"}`}
		}
		w.WriteHeader(a.status)
		_, _ = io.WriteString(w, a.body)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener) // always an error: it was closed
	}()
	t.Cleanup(func() {
		require.NoError(t, server.Close())
		<-done
	})
	return data
}

func TestOrgsAndKeys(t *testing.T) {
	const made = `{"id":"key-1","org":"org-1","org_name":"acme","label":"laptop","created_at":"2026-01-02T11:00:00Z",` +
		`"key":"sf_new-key"}`
	data := serveAdmin(t, map[string]reply{
		`POST /admin/v1/orgs {"name":"acme"}`: {201, `{"id":"org-1","name":"acme"}`},
		`POST /admin/v1/orgs {"name":"held"}`: {409, `{"message":"an organization named \"held\" exists"}`},
		`GET /admin/v1/orgs `: {200, `{"items":[{"id":"org-1","name":"acme","max_sandboxes":10,"max_snapshots":0,` +
			`"max_requests_per_minute":600,"sandboxes":3,"snapshots":4,"created_at":"2026-01-02T11:00:00Z"}],` +
			`"total_items":1}`},
		`PATCH /admin/v1/orgs/acme {}`: {200, `{"id":"org-1","name":"acme","max_sandboxes":0,"max_snapshots":0,` +
			`"max_requests_per_minute":0,"sandboxes":3,"snapshots":4}`},
		`PATCH /admin/v1/orgs/acme {"max_sandboxes":0,"max_requests_per_minute":60}`: {200, `{"id":"org-1","name":"acme",` +
			`"max_sandboxes":0,"max_snapshots":5,"max_requests_per_minute":60,"sandboxes":3,"snapshots":4}`},
		`POST /admin/v1/reseal `:                              {200, `{"key":"k-new","count":12}`},
		`POST /admin/v1/keys {"label":"laptop","org":"acme"}`: {201, made},
		`GET /admin/v1/keys?org=acme `: {200, `{"items":[` +
			`{"id":"key-1","org":"org-1","org_name":"acme","label":"laptop","created_at":"2026-01-02T11:00:00Z"},` +
			`{"id":"key-0","org":"org-1","org_name":"acme","label":"","created_at":"2026-01-02T10:00:00Z",` +
			`"revoked_at":"2026-01-02T11:00:00Z"}],"total_items":2}`},
		`DELETE /admin/v1/keys/key-1 `: {204, ""},
	})
	w := newWorld(t)
	w.vars = map[string]string{"STILLFRAME_DATA": data} // no URL and no key: the socket is the right to use it

	require.Equal(t, "Name   acme\nID     org-1\n", w.does("org", "create", "acme"))
	require.Equal(t, cli.ExitConflict, w.run("org", "create", "held"))
	require.Equal(t, ""+
		"NAME   ID      SANDBOXES   SNAPSHOTS       REQUESTS/MIN   AGE\n"+
		"acme   org-1   3 of 10     4 of no limit   600            60m\n", w.does("org", "list"))
	require.Equal(t, ""+
		"Name                acme\n"+
		"ID                  org-1\n"+
		"Sandboxes           3 of no limit\n"+
		"Snapshots           4 of no limit\n"+
		"Requests a minute   no limit\n", w.does("org", "limits", "acme"))
	require.Contains(t, w.does("org", "limits", "acme", "--sandboxes", "0", "--requests", "60"), "4 of 5\n")
	require.Equal(t, cli.ExitNotFound, w.run("org", "limits", "none"))
	require.Equal(t, "Key           k-new\nSealed anew   12\n", w.does("cluster", "reseal"))

	create := []string{"key", "create", "--org", "acme", "--label", "laptop"}
	require.Equal(t, "ID    key-1\nKey   sf_new-key\n", w.does(create...))
	require.Equal(t, "sf_new-key\n", w.does(append(create, "-q")...))
	require.Equal(t, made+"\n", w.does(append(create, "-o", "json")...))

	require.Equal(t, ""+
		"ID      LABEL    STATE     ORGANIZATION   AGE\n"+
		"key-1   laptop   good      acme           60m\n"+
		"key-0   -        revoked   acme           2h\n", w.does("key", "list", "--org", "acme"))
	require.Equal(t, "key-1 revoked\n", w.does("key", "revoke", "key-1"))
	require.Equal(t, cli.ExitNotFound, w.run("key", "revoke", "key-9"))
	require.Contains(t, w.err.String(), "stillframe key list")
}

func TestKeyGoesToAFileOfItsOwner(t *testing.T) {
	data := serveAdmin(t, map[string]reply{
		`POST /admin/v1/keys {"label":"","org":"acme"}`: {201, `{"id":"key-1","key":"sf_new-key"}`},
	})
	w := newWorld(t)
	out := filepath.Join(t.TempDir(), "key")
	require.Equal(t, cli.ExitNotFound, w.run("key", "create", "--data", data, "--org", "none", "--out", out))
	require.NoFileExists(t, out, "no key, no file")

	require.Equal(t, "key-1 written to "+out+"\n", w.does("key", "create", "--data", data, "--org", "acme", "--out", out))
	content, err := os.ReadFile(out)
	require.NoError(t, err)
	require.Equal(t, "sf_new-key\n", string(content))
	info, err := os.Stat(out)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	require.Equal(t, cli.ExitFailure, w.run("key", "create", "--data", data, "--org", "acme", "--out", out))
	require.Contains(t, w.err.String(), "exists")
	require.FileExists(t, out, "a file that was there before is not taken away")
}

func TestNoAdminSocket(t *testing.T) {
	w := newWorld(t)
	require.Equal(t, cli.ExitUnavailable, w.run("key", "list", "--data", t.TempDir()))
	require.Contains(t, w.err.String(), "on the host of a running node")
	require.Equal(t, cli.ExitUnavailable, w.run("org", "create", "acme", "--socket", "/does/not/exist"))
	require.NotContains(t, w.err.String(), "--idempotency-key", "these commands have no such flag")
}

func TestOperations(t *testing.T) {
	data := serveAdmin(t, map[string]reply{
		`POST /admin/v1/cluster/transfer {}`:           {200, `{"leader":"n-1","name":"a"}`},
		`POST /admin/v1/cluster/transfer {"node":"b"}`: {200, `{"leader":"n-2","name":"b"}`},
		`POST /admin/v1/cluster/drain {"node":"b"}`: {
			200, `{"node":"n-2","name":"b","drained":true,"sandboxes":3}`,
		},
		`POST /admin/v1/cluster/drain {"node":"b","undo":true}`: {200, `{"node":"n-2","name":"b","sandboxes":3}`},
		`POST /admin/v1/cluster/drain {"node":"b","snapshot":true}`: {200, `{"node":"n-2","name":"b","drained":true,` +
			`"sandboxes":1,"snapshots":[{"sandbox_id":"sbx-1","snapshot_id":"snap-1","name":"drained-sbx-1"},` +
			`{"sandbox_id":"sbx-2","error":"the node's disk is full"}]}`},
		`POST /admin/v1/cluster/remove {"force":false,"node":"b"}`: {409, `{"message":"node b holds 3 sandboxes"}`},
		`POST /admin/v1/cluster/remove {"force":true,"node":"b"}`:  {200, `{"removed":"n-2","name":"b"}`},
		`POST /admin/v1/cluster/remove {"force":false,"node":"x"}`: {404, `{"message":"no node \"x\" is in the cluster"}`},
	})
	w := newWorld(t)
	require.Contains(t, w.does("cluster", "transfer", "--data", data), "n-1")
	require.Equal(t, "n-2\n", w.does("cluster", "transfer", "b", "-q", "--data", data))
	require.Equal(t, "b drained; 3 sandboxes are on it\n", w.does("cluster", "drain", "b", "--data", data))
	undone := w.does("cluster", "drain", "b", "--undo", "--data", data)
	require.Equal(t, "b takes sandboxes; 3 sandboxes are on it\n", undone)
	require.Equal(t, cli.ExitFailure, w.run("cluster", "drain", "b", "--snapshot", "--data", data), "one was not kept")
	require.Contains(t, w.out.String(), "drained-sbx-1")
	require.Contains(t, w.err.String(), "sbx-2: the node's disk is full")
	require.Equal(t, cli.ExitUsage, w.run("cluster", "drain", "b", "--snapshot", "--undo", "--data", data))

	require.Equal(t, cli.ExitConflict, w.run("cluster", "remove", "b", "--data", data))
	require.Contains(t, w.err.String(), "holds 3 sandboxes")
	require.Equal(t, "b removed\n", w.does("cluster", "remove", "b", "--force", "--data", data))
	require.Equal(t, cli.ExitNotFound, w.run("cluster", "remove", "x", "--data", data))
	require.Contains(t, w.err.String(), "stillframe cluster status")
}

package cli_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"stillframe/cmd/stillframe/cli"
)

// TestStaleTellsTheAge has a node that answers stale reads only: the flag asks for one, and how old it may be is said
// beside the answer, where a program that reads it does not look.
func TestStaleTellsTheAge(t *testing.T) {
	age := "61500"
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Stillframe-Consistency") != "stale" {
			rw.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		rw.Header().Set("Stillframe-Consistency", "stale")
		rw.Header().Set("Stillframe-Age-Ms", age)
		rw.Header().Set("Stillframe-Position", "42")
		_, _ = rw.Write([]byte(`{"items":[],"total_items":0}`))
	}))
	defer server.Close()
	w := newWorld(t)
	w.vars["LEAP0_BASE_URL"] = server.URL
	for _, what := range []string{"sandbox", "snapshot"} {
		require.NotEqual(t, cli.ExitOK, w.run(what, "list"))
		w.err.Reset()
		require.Equal(t, cli.ExitOK, w.run(what, "list", "--stale", "-o", "json"), w.err.String())
		require.Contains(t, w.err.String(), "at most 1m1.5s old (log position 42)")
		require.NotContains(t, w.out.String(), "stale")
	}
	age = "unknown"
	require.Equal(t, cli.ExitOK, w.run("sandbox", "list", "--stale"))
	require.Contains(t, w.err.String(), "of unknown age")
	require.NotEqual(t, cli.ExitOK, w.run("sandbox", "create", "--stale"), "there is nothing stale about a write")
}

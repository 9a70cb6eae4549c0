package httpd

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"stillframe/fsm"
)

func (e *env) keyed(method, path string, body any, key string) response {
	e.t.Helper()
	header := map[string]string{headerIdempotency: key}
	return e.send(request{method: method, path: path, body: body, key: e.key, header: header})
}

const replayedHeader = "Idempotent-Replayed"

func TestIdempotentCreation(t *testing.T) {
	e := newEnv(t)
	body := `{"template_name":"system/busybox"}`
	first := e.keyed("POST", create, body, "k1")
	require.Equal(t, 201, first.status)
	require.Empty(t, first.header.Get(replayedHeader))
	for _, path := range []string{create, create + "/"} {
		again := e.keyed("POST", path, body, "k1")
		require.Equal(t, 201, again.status)
		require.Equal(t, "true", again.header.Get(replayedHeader))
		require.Equal(t, string(first.body), string(again.body))
	}
	other := e.keyed("POST", create, body, "k2")
	require.NotEqual(t, first.object(t)["id"], other.object(t)["id"])

	require.Equal(t, 409, e.keyed("POST", create, body+" ", "k1").status, "another body")
	require.Equal(t, 409, e.keyed("POST", restore, `{"snapshot_name":"s"}`, "k1").status, "another path")
	require.Equal(t, 409, e.keyed("POST", create+"?x=1", body, "k1").status, "another query")

	// The answer outlives the sandbox.
	require.Equal(t, 204, e.do("DELETE", "/v1/sandbox/"+first.text(t, "id"), nil).status)
	again := e.keyed("POST", create, body, "k1")
	require.Equal(t, string(first.body), string(again.body))

	// A key is an organization's own.
	_, _, otherKey := e.newOrg("other")
	e.key = otherKey
	require.Empty(t, e.keyed("POST", create, body, "k1").header.Get(replayedHeader))
}

func TestIdempotentSnapshotAndRestore(t *testing.T) {
	e := newEnv(t)
	path := "/v1/sandbox/" + e.sandbox() + "/snapshot/create"
	first := e.keyed("POST", path, nil, "s")
	require.Equal(t, 201, first.status)
	require.Equal(t, string(first.body), string(e.keyed("POST", path, nil, "s").body), "the generated name too")

	body := map[string]any{"snapshot_name": first.object(t)["name"]}
	clone := e.keyed("POST", restore, body, "r")
	require.Equal(t, 201, clone.status)
	require.Equal(t, string(clone.body), string(e.keyed("POST", restore, body, "r").body))
}

func TestIdempotentRefusals(t *testing.T) {
	e := newEnv(t)
	source := e.sandbox()
	path := "/v1/sandbox/" + source + "/snapshot/create"
	e.snapshot(source, "taken")
	first := e.keyed("POST", path, `{"name":"taken"}`, "k")
	require.Equal(t, 409, first.status)
	again := e.keyed("POST", path, `{"name":"taken"}`, "k")
	require.Equal(t, 409, again.status)
	require.Equal(t, string(first.body), string(again.body))
	require.Equal(t, "true", again.header.Get(replayedHeader))

	e.log.set(func() { e.log.outcome = failing(fsm.KindInternal, "the disk is gone") })
	failed := e.keyed("POST", path, `{"name":"new"}`, "f")
	require.Equal(t, 500, failed.status)
	e.log.set(func() { e.log.outcome = done })
	require.Equal(t, string(failed.body), string(e.keyed("POST", path, `{"name":"new"}`, "f").body))
	e.snapshot(source, "new") // the name was given back

	// A bad request does not use the key up.
	require.Equal(t, 400, e.keyed("POST", path, `{"name":"a/b"}`, "v").status)
	require.Equal(t, 201, e.keyed("POST", path, `{"name":"a-b"}`, "v").status)
}

func TestIdempotencyKeys(t *testing.T) {
	e := newEnv(t)
	body := `{"template_name":"system/busybox"}`
	for _, good := range []string{"a", strings.Repeat("k", 255), "!~#weird/key"} {
		require.Equal(t, 201, e.keyed("POST", create, body, good).status)
	}
	for _, bad := range []string{"", strings.Repeat("k", 256), "a b", "ä", "a\tb"} {
		resp := e.keyed("POST", create, body, bad)
		require.Equal(t, 400, resp.status, "%q", bad)
		require.Equal(t, []string{headerIdempotency}, resp.fields(t))
	}
}

func TestCommandsRunOncePerKey(t *testing.T) {
	e := newEnv(t)
	sandbox := e.sandbox()
	path, body := "/v1/sandbox/"+sandbox+"/process/execute", `{"command":"date"}`
	first := e.keyed("POST", path, body, "k")
	require.Equal(t, 200, first.status)
	again := e.keyed("POST", path, body, "k")
	require.Equal(t, string(first.body), string(again.body))
	require.Equal(t, "application/json", again.header.Get("Content-Type"))
	require.Equal(t, "true", again.header.Get(replayedHeader))
	require.Equal(t, 409, e.keyed("POST", path, `{"command":"date -u"}`, "k").status)
	require.Equal(t, 1, e.guests.count())

	require.Equal(t, 204, e.do("DELETE", "/v1/sandbox/"+sandbox, nil).status)
	require.Equal(t, string(first.body), string(e.keyed("POST", path, body, "k").body), "outlives the sandbox")
	require.Equal(t, 404, e.keyed("POST", path, body, "new").status)
}

func TestConcurrentCommandsUnderOneKey(t *testing.T) {
	e := newEnv(t)
	path := "/v1/sandbox/" + e.sandbox() + "/process/execute"
	release := make(chan struct{})
	e.guests.run = func(context.Context, ExecRequest) (ExecResult, error) { <-release; return ExecResult{}, nil }
	statuses := make(chan int, 20)
	var wg sync.WaitGroup
	for range cap(statuses) {
		wg.Go(func() { statuses <- e.keyed("POST", path, `{"command":"x"}`, "k").status })
	}
	for range cap(statuses) - 1 {
		require.Equal(t, 409, <-statuses, "all but one are told that one is under way")
	}
	close(release)
	require.Equal(t, 200, <-statuses)
	wg.Wait()
	require.Equal(t, 1, e.guests.count())
}

func TestUnknownOutcomeOfACommand(t *testing.T) {
	e := newEnv(t)
	path, body := "/v1/sandbox/"+e.sandbox()+"/process/execute", `{"command":"x"}`
	e.guests.fail = fmt.Errorf("dial: %w", ErrGuestUnreachable)
	first := e.keyed("POST", path, body, "k7")
	require.Equal(t, 503, first.status)
	require.Contains(t, first.message(t), "k7")
	require.Equal(t, "1", first.header.Get("Retry-After"))
	e.guests.fail = nil
	again := e.keyed("POST", path, body, "k7")
	require.Equal(t, 409, again.status)
	require.Contains(t, again.message(t), "not known")
	require.Equal(t, 1, e.guests.count(), "not carried out again")
}

func TestKnownFailureOfADataCallIsKept(t *testing.T) {
	e := newEnv(t)
	path, body := "/v1/sandbox/"+e.sandbox()+"/filesystem/delete", `{"path":"/f"}`
	e.guests.fail = &GuestError{GuestNotFound, "no such file"}
	first := e.keyed("POST", path, body, "k")
	require.Equal(t, 404, first.status)
	e.guests.fail = nil
	again := e.keyed("POST", path, body, "k")
	require.Equal(t, 404, again.status)
	require.Equal(t, string(first.body), string(again.body))
}

func TestLongAnswersAreNotKept(t *testing.T) {
	e := newEnv(t)
	sb := "/v1/sandbox/" + e.sandbox()
	e.guests.run = func(context.Context, ExecRequest) (ExecResult, error) {
		return ExecResult{Stdout: make([]byte, fsm.MaxKeptBody)}, nil
	}
	require.Equal(t, 200, e.keyed("POST", sb+"/process/execute", `{"command":"x"}`, "k").status)
	again := e.keyed("POST", sb+"/process/execute", `{"command":"x"}`, "k")
	require.Equal(t, 409, again.status)
	require.Contains(t, again.message(t), "carried out and answered with status 200")

	// A read can be done again.
	e.guests.files["/f"] = make([]byte, fsm.MaxKeptBody+1)
	for range 2 {
		resp := e.keyed("POST", sb+"/filesystem/read-file", `{"path":"/f"}`, "r")
		require.Equal(t, 200, resp.status)
		require.Len(t, resp.body, fsm.MaxKeptBody+1)
	}
}

func TestWritesUnderAKey(t *testing.T) {
	e := newEnv(t)
	write := "/v1/sandbox/" + e.sandbox() + "/filesystem/write-file?path="
	require.Equal(t, 204, e.keyed("POST", write+"/a", "one", "w").status)
	e.guests.files["/a"] = []byte("changed since")
	again := e.keyed("POST", write+"/a", "one", "w")
	require.Equal(t, 204, again.status)
	require.Equal(t, "true", again.header.Get(replayedHeader))
	require.Equal(t, "changed since", string(e.guests.files["/a"]))
	require.Equal(t, 409, e.keyed("POST", write+"/b", "one", "w").status, "the path is part of the request")
	require.Equal(t, 409, e.keyed("POST", write+"/a", "two", "w").status)
}

func TestUnknownOutcomeOfAProposal(t *testing.T) {
	e := newEnv(t)
	lost := func(fsm.Command) error { return fsm.Errorf(fsm.KindUnknown, "leadership lost") }
	e.log.set(func() { e.log.after = lost })
	body := `{"template_name":"system/busybox"}`
	first := e.keyed("POST", create, body, "key-of-mine")
	require.Equal(t, 503, first.status)
	require.Contains(t, first.message(t), "(key-of-mine)")
	without := e.do("POST", create, body)
	require.Equal(t, 503, without.status)
	require.Contains(t, without.message(t), "not known")

	e.log.set(func() { e.log.after = nil })
	again := e.keyed("POST", create, body, "key-of-mine")
	require.Equal(t, 201, again.status)
	require.Equal(t, "true", again.header.Get(replayedHeader), "it had been carried out")
	require.EqualValues(t, 2, e.do("GET", "/v1/sandboxes", nil).object(t)["total_items"])
}

// A key whose answer could not be kept says so and does not run the command again.
func TestAnswerThatCouldNotBeKept(t *testing.T) {
	e := newEnv(t)
	path := "/v1/sandbox/" + e.sandbox() + "/process/execute"
	e.log.set(func() {
		e.log.refuse = func(cmd fsm.Command) error {
			if _, ok := cmd.(fsm.FinishRequest); ok {
				return fsm.Errorf(fsm.KindUnavailable, "no leader")
			}
			return nil
		}
	})
	require.Equal(t, 200, e.keyed("POST", path, `{"command":"x"}`, "k").status, "the client has the answer")
	require.Equal(t, 409, e.keyed("POST", path, `{"command":"x"}`, "k").status)
	require.Equal(t, 1, e.guests.count())
}

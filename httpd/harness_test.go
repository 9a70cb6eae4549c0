package httpd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"
	"github.com/stretchr/testify/require"

	"stillframe/cluster/seal"
	"stillframe/fsm"
)

// memLog is a Log without consensus: a real fsm.State, commands that pass through Encode and Decode as they would on
// disk, and an owner that closes intents.
type memLog struct {
	mu      sync.Mutex
	state   *fsm.State
	changed chan struct{}
	// refuse, when set, answers a command instead of the state machine.
	refuse func(fsm.Command) error
	// after, when set, replaces the result's error once a command is applied: the answer got lost.
	after func(fsm.Command) error
	// outcome closes an intent; nil leaves it open. The default is done.
	outcome  func(fsm.Intent) *fsm.Complete
	offline  error     // of Linearizable
	asOf     time.Time // of StateAsOf, with position
	position uint64
	owners   sync.WaitGroup
}

const testNode = fsm.NodeID("node-1")

func newMemLog(t *testing.T) *memLog {
	l := &memLog{state: fsm.New(), changed: make(chan struct{}), outcome: done}
	l.must(t, fsm.RegisterNode{Now: now(), Node: fsm.Node{
		ID: testNode, Name: "one", Level: fsm.Level,
		Capacity: fsm.Capacity{VCPU: 10000, MemoryMiB: 1 << 30, DiskMiB: 1 << 30},
	}})
	l.must(t, fsm.PutTemplate{Now: now(), Template: fsm.Template{
		ID: "tpl-debian", Name: "system/debian:bookworm", Digest: "sha256:00",
	}})
	l.must(t, fsm.PutTemplate{Now: now(), Template: fsm.Template{
		ID: "tpl-busybox", Name: "system/busybox", Digest: "sha256:01",
	}})
	t.Cleanup(l.owners.Wait)
	return l
}

func now() fsm.Time { return fsm.At(time.Now()) }

// done is the outcome of an owner with which everything works.
func done(in fsm.Intent) *fsm.Complete {
	c := &fsm.Complete{}
	if in.Kind == fsm.IntentSnapshot {
		c.Manifest = &fsm.Manifest{
			Version: 1, PauseNanos: 12_345_678, CloneMethod: "copy", Files: []fsm.File{{Name: "ram", Size: 10, Stored: 4096}},
		}
	}
	return c
}

func failing(kind fsm.Kind, message string) func(fsm.Intent) *fsm.Complete {
	return func(fsm.Intent) *fsm.Complete { return &fsm.Complete{Error: fsm.Errorf(kind, "%s", message)} }
}

func (l *memLog) must(t *testing.T, cmd fsm.Command) fsm.Result {
	t.Helper()
	res, err := l.Apply(context.Background(), cmd)
	require.NoError(t, err)
	return res
}

func (l *memLog) set(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
}

func (l *memLog) Apply(_ context.Context, cmd fsm.Command) (fsm.Result, error) {
	raw, err := fsm.Encode(cmd)
	if err != nil {
		return fsm.Result{}, err
	}
	decoded, err := fsm.Decode(raw)
	if err != nil {
		return fsm.Result{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	_, owners := cmd.(fsm.Complete) // the faults are the clients' alone
	if l.refuse != nil && !owners {
		if err := l.refuse(cmd); err != nil {
			return fsm.Result{}, err
		}
	}
	next, res := l.state.Apply(decoded)
	l.state = next
	close(l.changed)
	l.changed = make(chan struct{})
	if res.Err != nil {
		return res, res.Err
	}
	if outcome := l.outcome; res.Intent.State == fsm.IntentOpen && !res.Replayed && outcome != nil {
		l.owners.Go(func() {
			if c := outcome(res.Intent); c != nil {
				l.close(res.Intent, *c)
			}
		})
	}
	if l.after != nil && !owners {
		if err := l.after(cmd); err != nil {
			return fsm.Result{}, err
		}
	}
	return res, nil
}

func (l *memLog) close(in fsm.Intent, c fsm.Complete) {
	c.Now, c.Intent, c.Owner, c.Epoch = now(), in.ID, in.Owner, in.Epoch
	if in.KillAfter {
		c.NextIntent = fsm.IntentID(NewID("int"))
	}
	if _, err := l.Apply(context.Background(), c); err != nil {
		panic(fmt.Sprintf("complete %s %s: %v", in.Kind, in.ID, err))
	}
}

// closeOpen closes every open intent of the node.
func (l *memLog) closeOpen() {
	for _, in := range l.State().OpenIntents(testNode) {
		l.close(in, *done(in))
	}
}

func (l *memLog) State() *fsm.State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

func (l *memLog) Linearizable(context.Context) (*fsm.State, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state, l.offline
}

func (l *memLog) WaitIntent(ctx context.Context, id fsm.IntentID) (fsm.Intent, error) {
	for {
		l.mu.Lock()
		state, changed := l.state, l.changed
		l.mu.Unlock()
		in, ok := state.Intent(id)
		if !ok {
			return in, fsm.Errorf(fsm.KindNotFound, "intent %s not found", id)
		}
		if in.State != fsm.IntentOpen {
			return in, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return in, fsm.Wrap(fsm.KindTimeout, ctx.Err(), "intent %s is still open", id)
		}
	}
}

// fakeGuests is a Guests with one flat set of files for every sandbox; a command's effect is a function.
type fakeGuests struct {
	mu    sync.Mutex
	files map[string][]byte
	perms map[string]fs.FileMode
	execs []ExecRequest
	run   func(context.Context, ExecRequest) (ExecResult, error)
	fail  error // of every call
	last  any   // the last request, of the calls that have one
}

func (g *fakeGuests) begin(req any) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.last = req
	return g.fail
}

func (g *fakeGuests) Exec(ctx context.Context, _ fsm.SandboxID, req ExecRequest) (ExecResult, error) {
	g.mu.Lock()
	g.execs = append(g.execs, req)
	run, fail := g.run, g.fail
	g.mu.Unlock()
	if fail != nil {
		return ExecResult{}, fail
	}
	if run == nil {
		return ExecResult{Stdout: []byte("ran " + req.Command)}, nil
	}
	return run(ctx, req)
}

func (g *fakeGuests) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.execs)
}

func (g *fakeGuests) ReadFile(_ context.Context, _ fsm.SandboxID, req ReadFileRequest) (io.ReadCloser, error) {
	if err := g.begin(req); err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	b, ok := g.files[req.Path]
	if !ok {
		return nil, &GuestError{GuestNotFound, "no such file"}
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func (g *fakeGuests) WriteFile(_ context.Context, _ fsm.SandboxID, path string, perm fs.FileMode, r io.Reader) error {
	if err := g.begin(path); err != nil {
		return err
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.files[path], g.perms[path] = b, perm
	return nil
}

func (g *fakeGuests) Ls(_ context.Context, _ fsm.SandboxID, req LsRequest) ([]FileInfo, error) {
	return nil, g.begin(req)
}

func (g *fakeGuests) Stat(_ context.Context, _ fsm.SandboxID, path string) (FileInfo, error) {
	if err := g.begin(path); err != nil {
		return FileInfo{}, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	b, ok := g.files[path]
	if !ok {
		return FileInfo{}, &GuestError{GuestNotFound, "no such file"}
	}
	return FileInfo{
		Name: filepath.Base(path), Path: path, Size: int64(len(b)), Mode: "644", MTime: 1, Owner: "root", Group: "root",
	}, nil
}

func (g *fakeGuests) Exists(_ context.Context, _ fsm.SandboxID, path string) (bool, error) {
	if err := g.begin(path); err != nil {
		return false, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	_, ok := g.files[path]
	return ok, nil
}

func (g *fakeGuests) Mkdir(_ context.Context, _ fsm.SandboxID, req MkdirRequest) error {
	return g.begin(req)
}

func (g *fakeGuests) Delete(_ context.Context, _ fsm.SandboxID, req DeleteRequest) error {
	return g.begin(req)
}

func (g *fakeGuests) Move(_ context.Context, _ fsm.SandboxID, req TransferRequest) error {
	return g.begin(req)
}

func (g *fakeGuests) Copy(_ context.Context, _ fsm.SandboxID, req TransferRequest) error {
	return g.begin(req)
}

// fakePolicies is a Policies that gives what it is told to.
type fakePolicies struct {
	mu        sync.Mutex
	decisions []PolicyDecision
	fail      error
	asked     []string
}

func (p *fakePolicies) note(format string, args ...any) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, fmt.Sprintf(format, args...))
	return p.fail
}

func (p *fakePolicies) Log(_ context.Context, id fsm.SandboxID, limit int) ([]PolicyDecision, error) {
	return p.decisions, p.note("log %s %d", id, limit)
}

func (p *fakePolicies) Check(_ context.Context, id fsm.SandboxID, host string, port uint16) (PolicyDecision, error) {
	return PolicyDecision{Action: "deny", Rule: "default", Name: host}, p.note("check %s %s %d", id, host, port)
}

// testSecrets makes a real ring of keys.
func testSecrets(t *testing.T) *seal.Ring {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, seal.Make(dir))
	ring, err := seal.Open(filepath.Join(dir, seal.FileName), slog.Default())
	require.NoError(t, err)
	return ring
}

// env is a server on a real socket with what it stands on.
type env struct {
	t        *testing.T
	log      *memLog
	guests   *fakeGuests
	policies *fakePolicies
	secrets  *seal.Ring
	server   *Server
	base     string
	org      fsm.Org
	keyID    fsm.KeyID
	key      string
	admin    *http.Client
	logs     *syncBuffer
	doc      routers.Router
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newEnv(t *testing.T, changes ...func(*Config)) *env {
	t.Helper()
	e := &env{t: t, log: newMemLog(t), logs: &syncBuffer{}, policies: &fakePolicies{}, secrets: testSecrets(t)}
	e.guests = &fakeGuests{files: map[string][]byte{}, perms: map[string]fs.FileMode{}}
	socket := filepath.Join(t.TempDir(), "admin.sock")
	cfg := Config{
		Addr: "127.0.0.1:0", AdminSocket: socket, Log: e.log, Guests: e.guests, Version: "test",
		Policies: e.policies, Secrets: e.secrets,
		Logger: slog.New(slog.NewJSONHandler(e.logs, nil)),
	}
	for _, change := range changes {
		change(&cfg)
	}
	var err error
	e.server, err = New(cfg)
	require.NoError(t, err)
	require.NoError(t, e.server.Listen(t.Context()))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		require.NoError(t, e.server.Shutdown(ctx))
	})
	e.base = "http://" + e.server.Addr()
	e.admin = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}}
	e.org, e.keyID, e.key = e.newOrg("one")
	e.doc = loadDocument(t)
	return e
}

func loadDocument(t *testing.T) routers.Router {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(openAPI)
	require.NoError(t, err)
	require.NoError(t, doc.Validate(context.Background()))
	doc.Servers = nil // paths only: the test server has a port of its own
	router, err := legacy.NewRouter(doc)
	require.NoError(t, err)
	return router
}

// newOrg puts an organization with a key straight into the log.
func (e *env) newOrg(name string) (fsm.Org, fsm.KeyID, string) {
	org := fsm.Org{ID: fsm.OrgID(NewID("org")), Name: name}
	e.log.must(e.t, fsm.PutOrg{Now: now(), Org: org})
	secret, id := NewKeySecret(), fsm.KeyID(NewID("key"))
	e.log.must(e.t, fsm.PutKey{Now: now(), Key: fsm.APIKey{
		ID: id, Org: org.ID, Label: "test", Hash: sha256.Sum256([]byte(secret)),
	}})
	return org, id, secret
}

// request is one HTTP request of a test.
type request struct {
	method, path string
	body         any // string or []byte as they are, else JSON; nil for none
	key          string
	header       map[string]string
}

type response struct {
	status int
	header http.Header
	body   []byte
}

func (r response) object(t *testing.T) map[string]any {
	t.Helper()
	var v map[string]any
	require.NoError(t, json.Unmarshal(r.body, &v), "%s", r.body)
	return v
}

// text gives the string at the end of a path of members.
func (r response) text(t *testing.T, members ...string) string {
	t.Helper()
	var v any = r.object(t)
	for _, m := range members {
		o, ok := v.(map[string]any)
		require.True(t, ok, "%s of %s", m, r.body)
		v = o[m]
	}
	s, ok := v.(string)
	require.True(t, ok, "%v of %s", members, r.body)
	return s
}

// items gives the objects of a list.
func (r response) items(t *testing.T) []map[string]any {
	t.Helper()
	require.Equal(t, 200, r.status, "%s", r.body)
	var v page[map[string]any]
	require.NoError(t, json.Unmarshal(r.body, &v), "%s", r.body)
	return v.Items
}

// fields gives the names of the bad fields of a 400, in order.
func (r response) fields(t *testing.T) []string {
	t.Helper()
	var v errorBody
	require.NoError(t, json.Unmarshal(r.body, &v), "%s", r.body)
	var out []string
	for _, f := range v.Errors {
		require.NotEmpty(t, f.Error)
		out = append(out, f.Field)
	}
	return out
}

func (r response) message(t *testing.T) string {
	t.Helper()
	var v errorBody
	require.NoError(t, json.Unmarshal(r.body, &v), "%s", r.body)
	require.NotEmpty(t, v.Message)
	return v.Message
}

// do sends a request with the environment's key and holds the answer against the document.
func (e *env) do(method, path string, body any) response {
	e.t.Helper()
	return e.send(request{method: method, path: path, body: body, key: e.key})
}

func (e *env) send(r request) response {
	e.t.Helper()
	raw := rawBody(e.t, r.body)
	req, err := http.NewRequestWithContext(context.Background(), r.method, e.base+r.path, bytes.NewReader(raw))
	require.NoError(e.t, err)
	if r.key != "" {
		req.Header.Set("Authorization", "Bearer "+r.key)
	}
	if r.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if strings.Contains(r.path, "/write-file") {
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	for name, value := range r.header {
		req.Header.Set(name, value)
	}
	resp, err := http.DefaultClient.Do(req)
	require.NoError(e.t, err)
	out := response{resp.StatusCode, resp.Header, readAll(e.t, resp)}
	e.conforms(req, raw, out)
	return out
}

func rawBody(t *testing.T, body any) []byte {
	switch b := body.(type) {
	case nil:
		return nil
	case string:
		return []byte(b)
	case []byte:
		return b
	}
	raw, err := json.Marshal(body)
	require.NoError(t, err)
	return raw
}

// conforms holds an answer, and the request of a successful one, against openapi.yaml.
func (e *env) conforms(req *http.Request, body []byte, resp response) {
	e.t.Helper()
	if resp.status >= 400 {
		require.Equal(e.t, "application/json", resp.header.Get("Content-Type"))
		var shape errorBody
		require.NoError(e.t, json.Unmarshal(resp.body, &shape), "%s", resp.body)
		require.NotEmpty(e.t, shape.Message)
	}
	require.NotEmpty(e.t, resp.header.Get("X-Request-Id"))
	if resp.status == http.StatusRequestHeaderFieldsTooLarge {
		return // any path may answer so; the document says it once, in its introduction
	}
	asked := req.Clone(context.Background())
	asked.URL.Path = strings.TrimRight(asked.URL.Path, "/")
	asked.URL.Host, asked.Host = "", ""
	asked.Body = io.NopCloser(bytes.NewReader(body))
	route, params, err := e.doc.FindRoute(asked)
	if err != nil {
		require.Contains(e.t, []int{404, 405, 501}, resp.status, "%s %s is not in the document", req.Method, req.URL.Path)
		return
	}
	in := &openapi3filter.RequestValidationInput{
		Request: asked, PathParams: params, Route: route, QueryParams: asked.URL.Query(),
		Options: &openapi3filter.Options{
			IncludeResponseStatus: true, AuthenticationFunc: openapi3filter.NoopAuthenticationFunc,
		},
	}
	if resp.status < 300 && len(bytes.TrimSpace(body)) > 0 && !strings.Contains(string(body), "null") {
		require.NoError(e.t, openapi3filter.ValidateRequest(context.Background(), in))
	}
	out := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: in, Status: resp.status, Header: resp.header, Options: in.Options,
		Body: io.NopCloser(bytes.NewReader(resp.body)),
	}
	require.NoError(e.t, openapi3filter.ValidateResponse(context.Background(), out), "%.500s", resp.body)
}

// sandbox creates a running sandbox and gives its id.
func (e *env) sandbox() string {
	e.t.Helper()
	resp := e.do("POST", "/v1/sandbox", map[string]any{"template_name": "system/busybox"})
	require.Equal(e.t, 201, resp.status, "%s", resp.body)
	return resp.text(e.t, "id")
}

// snapshot takes a snapshot and gives its id.
func (e *env) snapshot(sandbox, name string) string {
	e.t.Helper()
	resp := e.do("POST", "/v1/sandbox/"+sandbox+"/snapshot/create", map[string]any{"name": name})
	require.Equal(e.t, 201, resp.status, "%s", resp.body)
	return resp.text(e.t, "id")
}

// dial opens a bare connection to the API.
func (e *env) dial() net.Conn {
	e.t.Helper()
	var d net.Dialer
	conn, err := d.DialContext(e.t.Context(), "tcp", e.server.Addr())
	require.NoError(e.t, err)
	e.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

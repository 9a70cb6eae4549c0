package gate

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/net/http/httpguts"

	"stillframe/netpolicy/policy"
)

// tally counts the requests of a flow that are being served, so that its end can wait for theirs.
type tally struct {
	mu    sync.Mutex
	n     int
	ended bool
	none  chan struct{} // made by drain
}

func (t *tally) begin() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return false
	}
	t.n++
	return true
}

func (t *tally) finish() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n--
	if t.ended && t.n == 0 {
		close(t.none)
	}
}

// drain lets none begin any more and waits for the rest. Called once.
func (t *tally) drain() {
	t.mu.Lock()
	t.ended, t.none = true, make(chan struct{})
	if t.n == 0 {
		close(t.none)
	}
	t.mu.Unlock()
	<-t.none
}

// exchange is one request to a transform's domain.
type exchange struct {
	s         *Session
	flow      *flow
	guard     *guard // nil on HTTP/2
	transform *policy.Transform
	rule      string
	entry     *entry
	upgrade   bool // asks for a WebSocket: the connection serves no other request
}

type exchangeKey struct{}

func exchangeOf(ctx context.Context) *exchange {
	ex, _ := ctx.Value(exchangeKey{}).(*exchange)
	return ex
}

// serveHTTP serves one request on a terminated connection.
func (t *terminator) serveHTTP(w http.ResponseWriter, r *http.Request) {
	f, _ := r.Context().Value(flowKey{}).(*flow)
	if f == nil || !f.requests.begin() {
		panic(http.ErrAbortHandler)
	}
	defer f.requests.finish()
	ex := &exchange{s: t.s, flow: f, rule: f.ruling.rule}
	ex.guard, _ = r.Context().Value(guardKey{}).(*guard)
	if status, reason := ex.examine(r); status != 0 {
		ex.refuse(w, status, reason)
		return
	}
	ctx, cancel := context.WithCancel(context.WithValue(r.Context(), exchangeKey{}, ex))
	defer cancel()
	unhook := context.AfterFunc(f.ctx, cancel)
	defer unhook()
	ex.entry = t.s.note(Decision{
		Kind: KindHTTP, Name: f.ruling.name, Port: f.to.Port(), Verdict: Transformed, Rule: ex.rule,
	})
	defer ex.count()
	if r.ProtoMajor == 1 {
		// Answers may come while the request is still being sent.
		_ = http.NewResponseController(w).EnableFullDuplex()
	}
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = &countedBody{ReadCloser: r.Body, n: &ex.entry.up}
	}
	// The library would add these where the upstream says none.
	w.Header()["Date"], w.Header()["Content-Type"] = nil, nil
	t.proxy.ServeHTTP(w, r.WithContext(ctx))
}

// examine looks whether a request is sent on, and finds the transform for it. A status other than 0 refuses it.
func (ex *exchange) examine(r *http.Request) (status int, reason string) {
	if ex.guard != nil && r.Method == ex.guard.refusal {
		return http.StatusBadRequest, ex.guard.failed().Error()
	}
	name, port, err := splitHost(r.Host)
	if err != nil {
		return http.StatusBadRequest, errHeadHost.Error()
	}
	for _, h := range r.Header["Host"] { // HTTP/2 keeps it beside :authority
		if !strings.EqualFold(h, r.Host) {
			return http.StatusBadRequest, errHeadHosts.Error()
		}
	}
	if name, err = policy.CanonicalName(name); err != nil || name != ex.flow.ruling.name ||
		port != 0 && port != ex.flow.to.Port() {
		return http.StatusMisdirectedRequest, "the request is for another host than the connection"
	}
	if m := strings.ToUpper(r.Method); m == http.MethodConnect || m == http.MethodTrace {
		return http.StatusMethodNotAllowed, "CONNECT and TRACE are not passed on"
	}
	v := ex.s.Plan().Name(ex.flow.ruling.name)
	ex.rule = v.Rule
	if v.Action != policy.Terminate {
		return http.StatusForbidden, "the policy has changed"
	}
	ex.transform = v.Transform
	ex.upgrade = ex.guard != nil && r.ContentLength == 0 && r.Method == http.MethodGet &&
		httpguts.HeaderValuesContainsToken(r.Header["Connection"], "upgrade") &&
		strings.EqualFold(r.Header.Get("Upgrade"), "websocket")
	return 0, ""
}

// refuse answers a request by the gate itself.
func (ex *exchange) refuse(w http.ResponseWriter, status int, reason string) {
	f := ex.flow
	ex.s.note(Decision{
		Kind: KindHTTP, Name: f.ruling.name, Port: f.to.Port(), Verdict: Denied, Rule: ex.rule, Reason: reason,
	})
	ex.answer(w, status, ex.rule, reason)
}

func (ex *exchange) answer(w http.ResponseWriter, status int, rule, reason string) {
	h := w.Header()
	clear(h)
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set(policyHeader, rule)
	if ex.guard != nil && status != http.StatusMisdirectedRequest {
		h.Set("Connection", "close")
	}
	text := sentence(ex.flow.ruling.name, ex.flow.to, rule, reason) + "\n"
	h.Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text)
}

// count adds the bytes of bodies to the metrics.
func (ex *exchange) count() {
	b := ex.s.gate.metrics.bytes
	b.WithLabelValues("up").Add(float64(ex.entry.up.Load()))
	b.WithLabelValues("down").Add(float64(ex.entry.down.Load()))
}

// RoundTrip sends a request on in the version of HTTP that it came in.
func (t *terminator) RoundTrip(r *http.Request) (*http.Response, error) {
	if exchangeOf(r.Context()).guard != nil {
		return t.http1.RoundTrip(r)
	}
	return t.http2.RoundTrip(r)
}

// rewrite makes the request that is sent on. The library has taken away hop-by-hop headers by now.
func rewrite(pr *httputil.ProxyRequest) {
	ex := exchangeOf(pr.In.Context())
	in, out := pr.In, pr.Out
	out.URL.Scheme, out.URL.Host, out.URL.User = "https", upstreamHost(ex.flow), nil
	out.URL.RawQuery = in.URL.RawQuery // the library drops what it cannot read; it is not ours to read
	out.Host = out.URL.Host
	if ex.flow.to.Port() == 443 {
		out.URL.Host = out.Host + ":443"
	}
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		if values, ok := in.Header[name]; ok { // this is no proxy that anybody chose: they are the guest's own
			out.Header[name] = values
		}
	}
	out.Header.Del("Host")
	if !ex.upgrade {
		out.Header.Del("Upgrade")
		out.Header.Del("Connection")
	}
	trailers(in, out, ex.transform)
	change(out.Header, ex.transform)
}

// upstreamHost is Host as the upstream is told it.
func upstreamHost(f *flow) string {
	if f.to.Port() == 443 {
		return f.ruling.name
	}
	return fmt.Sprintf("%s:%d", f.ruling.name, f.to.Port())
}

// change removes every header that a transform strips or injects, however it is written, then sets the injected ones.
func change(h http.Header, t *policy.Transform) {
	for name := range h {
		if touched(name, t) {
			delete(h, name)
		}
	}
	for name, value := range t.Inject {
		h[http.CanonicalHeaderKey(name)] = []string{value}
	}
}

// touched tells whether a transform strips or injects a header. Many servers read _ in a name as -.
func touched(name string, t *policy.Transform) bool {
	name = alike(name)
	for _, s := range t.Strip {
		if alike(s) == name {
			return true
		}
	}
	for i := range t.Inject {
		if alike(i) == name {
			return true
		}
	}
	return false
}

func alike(name string) string { return strings.ReplaceAll(strings.ToLower(name), "_", "-") }

// trailers has the announced trailers passed on, but for those that a transform touches. Their values come when the
// body has ended.
func trailers(in, out *http.Request, t *policy.Transform) {
	out.Trailer = nil
	if len(in.Trailer) == 0 || out.Body == nil {
		return
	}
	kept := http.Header{}
	for name := range in.Trailer {
		if !touched(name, t) {
			kept[name] = nil
		}
	}
	if len(kept) == 0 {
		return
	}
	out.Trailer = kept
	out.Body = &trailedBody{ReadCloser: out.Body, in: in, kept: kept}
}

type trailedBody struct {
	io.ReadCloser
	in   *http.Request
	kept http.Header
}

func (b *trailedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		for name := range b.kept {
			b.kept[name] = b.in.Trailer[name]
		}
	}
	return n, err
}

// modifyAnswer leaves an answer as it is but for what would lead around the gate.
func modifyAnswer(res *http.Response) error {
	ex := exchangeOf(res.Request.Context())
	res.Header.Del("Alt-Svc") // HTTP/3, past the gate
	if res.StatusCode == http.StatusSwitchingProtocols {
		if rwc, ok := res.Body.(io.ReadWriteCloser); ok {
			res.Body = &countedStream{ReadWriteCloser: rwc, up: &ex.entry.up, down: &ex.entry.down}
		}
		return nil
	}
	if ex.upgrade {
		res.Header.Set("Connection", "close") // the guard reads it no further
	}
	res.Body = &countedBody{ReadCloser: res.Body, n: &ex.entry.down}
	return nil
}

// upstreamFailed answers when the upstream did not.
func (t *terminator) upstreamFailed(w http.ResponseWriter, r *http.Request, err error) {
	ex := exchangeOf(r.Context())
	why, status, rule := asFailure(err), http.StatusBadGateway, ex.rule
	switch {
	case ex.flow.ctx.Err() == nil && ex.guard != nil && ex.guard.failed() != nil:
		why, status = &failure{what: "request", reason: ex.guard.failed().Error()}, http.StatusBadRequest
	case r.Context().Err() != nil:
		panic(http.ErrAbortHandler) // the guest has gone, or was cut off
	}
	if why.what == "floor" {
		status, rule = http.StatusForbidden, why.rule
	}
	t.s.gate.metrics.failures.WithLabelValues(why.what).Inc()
	t.s.journal.amend(ex.entry, func(d *Decision) {
		d.Reason = why.reason
		if why.what == "floor" || why.what == "request" {
			d.Verdict, d.Rule = Denied, rule
		}
	})
	ex.answer(w, status, rule, why.reason)
}

type countedBody struct {
	io.ReadCloser
	n *atomic.Int64
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	return n, err
}

// countedStream is an upgraded connection to the upstream.
type countedStream struct {
	io.ReadWriteCloser
	up, down *atomic.Int64
}

func (c *countedStream) Read(p []byte) (int, error) {
	n, err := c.ReadWriteCloser.Read(p)
	c.down.Add(int64(n))
	return n, err
}

func (c *countedStream) Write(p []byte) (int, error) {
	n, err := c.ReadWriteCloser.Write(p)
	c.up.Add(int64(n))
	return n, err
}

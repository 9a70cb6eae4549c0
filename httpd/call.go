package httpd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"

	"stillframe/fsm"
)

// route is one line of the API: what openapi.yaml documents under the same path.
type route struct {
	method string
	path   string // as in OpenAPI: /v1/sandbox/{sandbox_id}
	open   bool   // needs no API key
	async  bool   // opens an intent, which the client may not want to wait for
	read   bool   // only reads the state: may be asked to be stale
	raw    bool   // the body is no JSON: it may be as long as Limits.Body
	do     func(*call) (reply, error)
}

var pathParameter = regexp.MustCompile(`\{([a-z_]+)\}`)

func fiberPath(path string) string { return pathParameter.ReplaceAllString(path, ":$1") }

// call is one request under way.
type call struct {
	ctx      context.Context // ends with the server; every wait adds its own deadline
	fc       *fiber.Ctx
	id       string // request id
	org      fsm.Org
	key      fsm.KeyID
	async    bool        // the client wants to know only that its intent is accepted
	stale    bool        // the client wants what this node has, however old
	stream   io.WriterTo // the body of a successful answer that is not held in memory
	replayed bool        // the answer is that of an earlier request with the same Idempotency-Key
}

// reply is a successful answer.
type reply struct {
	status      int
	contentType string // empty: no body
	body        []byte
}

var noContent = reply{status: http.StatusNoContent}

const mimeJSON = "application/json"

func jsonReply(status int, v any) (reply, error) {
	body, err := encode(v)
	return reply{status, mimeJSON, body}, err
}

// encode is json.Marshal without the escapes that only HTML needs.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode the answer: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// handle wraps a route's function with what every request has: an id, a key, an answer in shape, a log line, metrics.
func (s *Server) handle(r route) fiber.Handler {
	return func(fc *fiber.Ctx) error {
		began := s.cfg.Now()
		s.metrics.inFlight.Inc()
		defer s.metrics.inFlight.Dec()
		c := &call{ctx: s.base, fc: fc, id: s.requestID(fc)}
		rep, err := s.run(c, r)
		if err != nil {
			err = s.answerError(c, err)
		} else {
			s.answer(c, rep)
		}
		s.observe(c, r.path, s.cfg.Now().Sub(began), err)
		return nil
	}
}

// run authenticates and calls the route's function. A panic there is an internal error of this one request.
func (s *Server) run(c *call, r route) (rep reply, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = internal(fmt.Errorf("panic: %v\n%s", p, debug.Stack()))
		}
	}()
	if !r.open {
		if err := s.authenticate(c); err != nil {
			return reply{}, err
		}
		if err := s.admit(c); err != nil {
			return reply{}, err
		}
	}
	c.async = r.async && prefersAsync(c.fc)
	if err := c.consistency(r); err != nil {
		return reply{}, err
	}
	if enc := c.fc.Get(fiber.HeaderContentEncoding); enc != "" && !strings.EqualFold(enc, "identity") {
		return reply{}, failf(fsm.KindInvalid, "a body with a Content-Encoding is not accepted")
	}
	if n := len(c.fc.Request().Body()); !r.raw && n > s.cfg.Limits.JSON {
		return reply{}, failf(fsm.KindTooLarge, "the body must be at most %d bytes, is %d", s.cfg.Limits.JSON, n)
	}
	return r.do(c)
}

// body reads the request's JSON object.
func (c *call) body(errs *fieldErrors) (object, error) { return parseBody(c.fc.BodyRaw(), errs) }

var saneRequestID = regexp.MustCompile(`\A[A-Za-z0-9][A-Za-z0-9._:-]{0,127}\z`)

// requestID is the client's X-Request-Id where that is fit for logs, else a new one.
func (s *Server) requestID(fc *fiber.Ctx) string {
	if id := fc.Get(fiber.HeaderXRequestID); saneRequestID.MatchString(id) {
		return id
	}
	return s.cfg.NewID("req")
}

func (s *Server) answer(c *call, rep reply) {
	c.fc.Set(fiber.HeaderXRequestID, c.id)
	c.fc.Set(fiber.HeaderXContentTypeOptions, "nosniff")
	if c.replayed {
		c.fc.Set(headerReplayed, "true")
	}
	c.fc.Status(rep.status)
	if c.stream != nil {
		s.startStream(c)
	} else if rep.contentType != "" {
		c.fc.Set(fiber.HeaderContentType, rep.contentType)
		c.fc.Response().SetBodyRaw(rep.body)
	}
}

// answerError answers a failure and gives it back as what it was answered as.
func (s *Server) answerError(c *call, err error) error {
	e := asAPIError(err)
	if after := e.retryAfter(); after != "" {
		c.fc.Set(fiber.HeaderRetryAfter, after)
	}
	if e.kind == fsm.KindUnauthorized {
		c.fc.Set(fiber.HeaderWWWAuthenticate, "Bearer")
	}
	body, encodeErr := encode(errorBody{e.message, e.fields, e.resource})
	if encodeErr != nil {
		body = []byte(`{"message":"internal error"}`)
	}
	s.answer(c, reply{e.status(), mimeJSON, body})
	return e
}

// observe writes the access log and the metrics. The query is left out of the log: a path in it may be private.
func (s *Server) observe(c *call, routePath string, took time.Duration, err error) {
	status := c.fc.Response().StatusCode()
	s.metrics.observe(c.fc.Method(), routePath, status, took)
	attrs := []slog.Attr{
		slog.String("request_id", c.id), slog.String("method", c.fc.Method()), slog.String("path", shortPath(c.fc.Path())),
		slog.Int("status", status), slog.Duration("took", took), slog.Int("bytes", answerBytes(c)),
		slog.String("remote", c.fc.Context().RemoteAddr().String()),
	}
	if c.org.ID != "" {
		attrs = append(attrs, slog.String("org", string(c.org.ID)), slog.String("key", string(c.key)))
	}
	level := slog.LevelInfo
	if e, ok := errors.AsType[*apiError](err); ok {
		attrs = append(attrs, slog.String("kind", string(e.kind)))
		if e.cause != nil {
			attrs = append(attrs, slog.String("error", e.Error()))
		}
		if e.status() == http.StatusInternalServerError {
			level = slog.LevelError
		}
	}
	s.logger.LogAttrs(c.ctx, level, "request", attrs...)
}

// answerBytes is the length of the answer, -1 for one that is yet to be streamed.
func answerBytes(c *call) int {
	if c.fc.Response().IsBodyStream() {
		return -1
	}
	return len(c.fc.Response().Body())
}

func shortPath(path string) string {
	const longest = 256
	if len(path) > longest {
		return path[:longest] + "…"
	}
	return path
}

// routeNone stands in metrics for what no route matched.
const routeNone = "none"

// unrouted answers what no route takes: an unknown path, another method, and what the HTTP server refused by itself.
func (s *Server) unrouted(fc *fiber.Ctx, err error) error {
	c := &call{ctx: s.base, fc: fc, id: s.requestID(fc)}
	if asAPIError(err).kind == fsm.KindTooLarge {
		if conn, ok := fc.Context().Conn().(*trackedConn); ok {
			conn.linger.Store(true)
		}
		// See beforeBody: with a key the body might have been small enough. Of a body without a length the HTTP server
		// has dropped the headers by now, and there is nothing to go by.
		if len(fc.Request().Header.Host()) > 0 && !s.open(fc.App()) {
			if refused := s.authenticate(c); refused != nil {
				err = refused
			}
		}
	}
	err = s.answerError(c, err)
	s.observe(c, routeNone, 0, err)
	return nil
}

func knownMethod(app *fiber.App, method string) bool {
	return slices.Contains(app.Config().RequestMethods, method)
}

// unknownMethod answers a method that the router has no stack for, in the usual shape.
func (s *Server) unknownMethod(ctx *fasthttp.RequestCtx, app *fiber.App) {
	ctx.Request.Header.SetMethod(fiber.MethodGet)
	fc := app.AcquireCtx(ctx)
	defer app.ReleaseCtx(fc)
	_ = s.unrouted(fc, failf(fsm.KindNotSupported, "the method is not known"))
}

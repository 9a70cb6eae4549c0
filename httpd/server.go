package httpd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"
)

// Server serves the API and, where configured, the administration socket.
type Server struct {
	cfg     Config
	log     Log
	guests  Guests
	logger  *slog.Logger
	metrics *metrics
	rates   *rates
	api     *fiber.App
	admin   *fiber.App

	mu        sync.Mutex // guards what follows
	listeners []*trackedListener
	serving   sync.WaitGroup
	failed    chan error // the first failure to serve

	base   context.Context // parent of every request's context
	cancel context.CancelFunc
}

// New makes a server; nothing listens yet.
func New(cfg Config) (*Server, error) {
	if cfg.Log == nil || cfg.Guests == nil || cfg.Policies == nil || cfg.Secrets == nil {
		return nil, errors.New("httpd: Log, Guests, Policies and Secrets are required")
	}
	cfg = cfg.withDefaults()
	m, err := newMetrics(cfg.Registry)
	if err != nil {
		return nil, fmt.Errorf("httpd: %w", err)
	}
	s := &Server{
		cfg: cfg, log: cfg.Log, guests: cfg.Guests, logger: cfg.Logger, metrics: m, rates: newRates(),
		failed: make(chan error, 1),
	}
	s.base, s.cancel = context.WithCancel(context.Background())
	s.api = s.newApp(s.apiRoutes())
	s.admin = s.newApp(s.adminRoutes())
	return s, nil
}

// newApp makes a Fiber application that serves a table of routes.
func (s *Server) newApp(routes []route) *fiber.App {
	l := s.cfg.Limits
	app := fiber.New(fiber.Config{
		Immutable:                    true, // see the package comment
		CaseSensitive:                true,
		StrictRouting:                false, // a path works with and without its trailing slash
		BodyLimit:                    l.Body,
		ReadBufferSize:               l.Header,
		ReadTimeout:                  l.HeaderTimeout,
		WriteTimeout:                 l.WriteTimeout,
		IdleTimeout:                  l.IdleTimeout,
		DisableStartupMessage:        true,
		DisablePreParseMultipartForm: true, // no call takes a form; parsing one would write files to disk
		ErrorHandler:                 s.unrouted,
	})
	for _, r := range routes {
		app.Add(r.method, fiberPath(r.path), s.handle(r))
		if r.method == fiber.MethodGet {
			app.Add(fiber.MethodHead, fiberPath(r.path), s.handle(r))
		}
	}
	server := app.Server()
	server.HeaderReceived = s.beforeBody
	serve := app.Handler()
	server.Handler = func(ctx *fasthttp.RequestCtx) {
		if !knownMethod(app, string(ctx.Method())) {
			s.unknownMethod(ctx, app)
			return
		}
		serve(ctx)
	}
	return app
}

// open tells whether an application's calls need no API key.
func (s *Server) open(app *fiber.App) bool { return app == s.admin }

// strangersBody is how many bytes of a body are read from a client without a valid key.
const strangersBody = 64 << 10

// beforeBody gives the body a time of its own: the server's ReadTimeout counts from the first byte of the headers. And
// it keeps those without a key from filling the memory.
func (s *Server) beforeBody(header *fasthttp.RequestHeader) fasthttp.RequestConfig {
	most := s.cfg.Limits.Body
	if _, _, ok := s.caller(header); !ok {
		most = min(most, strangersBody)
	}
	return fasthttp.RequestConfig{ReadTimeout: s.cfg.Limits.BodyTimeout, MaxRequestBodySize: most}
}

// Listen binds the API's address and the administration socket and serves them until Shutdown. It returns once both are
// bound. When ctx ends, calls that wait end too; the sockets stay until Shutdown.
func (s *Server) Listen(ctx context.Context) error {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", s.cfg.Addr)
	if err != nil {
		return fmt.Errorf("httpd: %w", err)
	}
	if s.cfg.AdminSocket != "" {
		admin, err := listenUnix(ctx, s.cfg.AdminSocket)
		if err != nil {
			_ = ln.Close()
			return fmt.Errorf("httpd: administration socket: %w", err)
		}
		s.serve(s.admin, admin)
	}
	if s.cfg.TLS != nil {
		ln = tls.NewListener(ln, s.cfg.TLS)
	}
	s.serve(s.api, ln)
	context.AfterFunc(ctx, s.cancel)
	return nil
}

// serve owns a listener from here on.
func (s *Server) serve(app *fiber.App, ln net.Listener) {
	tracked := track(ln)
	s.mu.Lock()
	s.listeners = append(s.listeners, tracked)
	s.mu.Unlock()
	s.serving.Go(func() {
		if err := app.Listener(tracked); err != nil {
			select {
			case s.failed <- fmt.Errorf("httpd: serve %s: %w", ln.Addr(), err):
			default:
			}
		}
	})
}

// Addr is the API's bound address, after Listen.
func (s *Server) Addr() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ln := range s.listeners {
		if ln.Addr().Network() == "tcp" {
			return ln.Addr().String()
		}
	}
	return ""
}

// Failed gives the first failure to serve a socket.
func (s *Server) Failed() <-chan error { return s.failed }

// answerTime is what calls that still wait are given to answer when a shutdown runs out of time.
const answerTime = 2 * time.Second

// Shutdown stops accepting, lets the calls under way end, and shortly before ctx's deadline ends the waits of those
// that do not: they are answered with what state things are in.
func (s *Server) Shutdown(ctx context.Context) error {
	hurry := s.cfg.Limits.Wait
	if deadline, ok := ctx.Deadline(); ok {
		hurry = max(time.Until(deadline)-answerTime, 0)
	}
	timer := time.AfterFunc(hurry, s.cancel)
	defer timer.Stop()
	defer s.cancel()

	s.mu.Lock()
	for _, ln := range s.listeners {
		_ = ln.Close() // here and not only below, for a server that has not begun to serve it
	}
	s.mu.Unlock()
	err := errors.Join(s.admin.ShutdownWithContext(ctx), s.api.ShutdownWithContext(ctx))
	s.serving.Wait()
	if err != nil {
		return fmt.Errorf("httpd: shut down: %w", err)
	}
	return nil
}

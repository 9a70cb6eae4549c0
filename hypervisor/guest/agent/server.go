package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stillframe/hypervisor/guest"
)

// Version names the wire protocol and its implementation; the node logs it.
const Version = "stillframe-guest/1"

// Server answers the node's calls.
type Server struct {
	log      *slog.Logger
	identity *identityStore
	trust    trustStore
	runs     *runTable
	boot     []guest.BootStep
}

// NewServer makes the agent proper. It takes up the identity that an earlier run of it left in dir (RunDir).
func NewServer(log *slog.Logger, dir string) (*Server, error) {
	id, err := openIdentity(dir)
	if err != nil {
		return nil, err
	}
	return &Server{
		log: log, identity: id, trust: trustStore{run: dir}, runs: newRunTable(), boot: parseBoot(os.Getenv(bootEnv)),
	}, nil
}

// Serve is the agent proper: it listens on eth0 and answers until ctx ends.
func Serve(ctx context.Context, log *slog.Logger) error {
	// Started through /proc/self/exe, the kernel calls it "exe"; a name in ps is a courtesy, so failing is no error.
	_ = os.WriteFile("/proc/self/comm", []byte("stillframe"), 0o600)
	// A sandbox that runs out of memory should lose its own processes before the way to reach it.
	if err := setOOMScore("self", agentOOMScore); err != nil {
		return err
	}
	s, err := NewServer(log, RunDir)
	if err != nil {
		return err
	}
	l, err := listen(ctx)
	if err != nil {
		return err
	}
	s.boot = append(s.boot, guest.BootStep{Name: "listening", AtMS: sinceBoot().Milliseconds()})
	srv := &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: 10 * time.Second,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// listen opens the agent's port on eth0. What comes from another address than the node's is closed unread. That also
// keeps out the guest's own processes: the kernel counts a packet to eth0's own address as one of eth0, but its source
// is the guest's address, and only root can take another.
func listen(ctx context.Context) (net.Listener, error) {
	lc := net.ListenConfig{
		// No probes: a connection of the time before a snapshot would be found dead and end a handler that still works.
		KeepAlive: -1,
		Control: func(_, _ string, c syscall.RawConn) error {
			var serr error
			if err := c.Control(func(fd uintptr) { serr = unix.BindToDevice(int(fd), nicName) }); err != nil {
				return err
			}
			return serr
		},
	}
	l, err := lc.Listen(ctx, "tcp4", guest.Addr)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return peerListener{l, net.ParseIP(guest.HostIP)}, nil
}

// peerListener accepts connections of one peer address and closes the others.
type peerListener struct {
	net.Listener
	peer net.IP
}

func (l peerListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if a, ok := c.RemoteAddr().(*net.TCPAddr); ok && a.IP.Equal(l.peer) {
			return c, nil
		}
		_ = c.Close()
	}
}

// Handler routes the calls.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+guest.PathHealth, answer(s.health))
	mux.HandleFunc("PUT "+guest.PathIdentity, answer(s.setIdentity))
	mux.HandleFunc("POST "+guest.PathExec, s.exec)
	mux.HandleFunc("POST "+guest.PathExecStream, s.execStream)
	mux.HandleFunc("POST "+guest.PathExecKill, answer(s.execKill))
	mux.HandleFunc("POST "+guest.PathRead, readFile)
	mux.HandleFunc("PUT "+guest.PathWrite, writeFile)
	mux.HandleFunc("POST "+guest.PathLs, answer(ls))
	mux.HandleFunc("POST "+guest.PathStat, answer(stat))
	mux.HandleFunc("POST "+guest.PathExists, answer(exists))
	mux.HandleFunc("POST "+guest.PathMkdir, answer(mkdir))
	mux.HandleFunc("POST "+guest.PathDelete, answer(remove))
	mux.HandleFunc("POST "+guest.PathMove, answer(move))
	mux.HandleFunc("POST "+guest.PathCopy, answer(copyPath))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fail(w, guest.Errorf(guest.CodeInvalid, "no call %s %s", r.Method, r.URL.Path))
	})
	return mux
}

// none is the body of a call that has none, and the answer of one that says nothing but "done".
type none struct{}

// answer makes a handler of a function from a decoded request to an answer.
func answer[In, Out any](f func(context.Context, In) (Out, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var in In
		if err := decode(w, r, &in); err != nil {
			fail(w, err)
			return
		}
		out, err := f(r.Context(), in)
		if err != nil {
			fail(w, err)
			return
		}
		reply(w, http.StatusOK, out)
	}
}

// decode reads a JSON body; an empty one leaves in as it is.
func decode(w http.ResponseWriter, r *http.Request, in any) error {
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, guest.MaxRequestBody)).Decode(in)
	if err != nil && !errors.Is(err, io.EOF) {
		return guest.Errorf(guest.CodeInvalid, "request body: %v", err)
	}
	return nil
}

func reply(w http.ResponseWriter, status int, out any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(out) // a caller that has gone
}

func fail(w http.ResponseWriter, err error) {
	e := asError(err)
	reply(w, e.Status(), e)
}

func (s *Server) health(context.Context, none) (guest.Health, error) {
	bootID, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return guest.Health{}, err
	}
	st := s.identity.current()
	return guest.Health{
		Version: Version, SandboxID: st.SandboxID, Generation: st.Generation, Boot: s.boot,
		BootID: strings.TrimSpace(string(bootID)), UptimeMS: sinceBoot().Milliseconds(),
	}, nil
}

func parseBoot(s string) []guest.BootStep {
	var steps []guest.BootStep
	for _, entry := range strings.Split(s, ",") {
		name, at, ok := strings.Cut(entry, "=")
		ms, err := strconv.ParseInt(at, 10, 64)
		if ok && err == nil {
			steps = append(steps, guest.BootStep{Name: name, AtMS: ms})
		}
	}
	return steps
}

package agent

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"

	"stillframe/hypervisor/guest"
)

func (s *Server) execKill(_ context.Context, req guest.ExecKillRequest) (none, error) {
	if req.ID == "" {
		return none{}, guest.Errorf(guest.CodeInvalid, "no id")
	}
	s.runs.kill(req.ID)
	return none{}, nil
}

// start runs the request's command with output to the two sinks.
func (s *Server) start(req guest.ExecRequest, stdout, stderr sink) (*run, error) {
	id := s.identity.current()
	var trust map[string]string
	if id.CA != "" {
		trust = s.trust.environ()
	}
	cmd, err := prepare(req, trust, id.Env)
	if err != nil {
		return nil, err
	}
	return s.runs.start(req.ID, func() (*run, error) { return startRun(cmd, req.Timeout, stdout, stderr) })
}

func outputLimit(req guest.ExecRequest) int64 {
	if req.MaxOutput > 0 {
		return req.MaxOutput
	}
	return guest.DefaultMaxOutput
}

// exec answers when the command is over.
func (s *Server) exec(w http.ResponseWriter, r *http.Request) {
	var req guest.ExecRequest
	if err := decode(w, r, &req); err != nil {
		fail(w, err)
		return
	}
	stdout, stderr := &bounded{limit: outputLimit(req)}, &bounded{limit: outputLimit(req)}
	run, err := s.start(req, stdout.keep, stderr.keep)
	if err != nil {
		fail(w, err)
		return
	}
	<-run.done
	res := run.result
	res.Stdout, res.StdoutTruncated = stdout.result()
	res.Stderr, res.StderrTruncated = stderr.result()
	reply(w, http.StatusOK, res)
}

// execStream answers with a line for every piece of output. A command that cannot be started is an ordinary failure.
func (s *Server) execStream(w http.ResponseWriter, r *http.Request) {
	var req guest.ExecRequest
	if err := decode(w, r, &req); err != nil {
		fail(w, err)
		return
	}
	lines := newLineWriter(w)
	stdout, stderr := &bounded{limit: outputLimit(req)}, &bounded{limit: outputLimit(req)}
	run, err := s.start(req,
		func(b []byte) { lines.write(guest.ExecEvent{Stdout: stdout.take(b)}) },
		func(b []byte) { lines.write(guest.ExecEvent{Stderr: stderr.take(b)}) })
	if err != nil {
		lines.close()
		fail(w, err)
		return
	}
	lines.open()
	<-run.done
	res := run.result
	_, res.StdoutTruncated = stdout.result()
	_, res.StderrTruncated = stderr.result()
	lines.write(guest.ExecEvent{Result: &res})
	lines.close()
}

// lineWriter writes events as lines of JSON. A slow caller slows the command down; one that has gone does not: its
// lines are dropped and the command goes on.
type lineWriter struct {
	opened chan struct{} // closed when the answer has begun, so that a failed start can still be an error answer

	mu  sync.Mutex // held while writing; done is set under it, as no write may happen after the handler's return
	w   http.ResponseWriter
	enc *json.Encoder
	end bool
}

func newLineWriter(w http.ResponseWriter) *lineWriter {
	return &lineWriter{opened: make(chan struct{}), w: w, enc: json.NewEncoder(w)}
}

func (l *lineWriter) open() {
	l.w.Header().Set("Content-Type", "application/x-ndjson")
	l.w.WriteHeader(http.StatusOK)
	l.flush()
	close(l.opened)
}

func (l *lineWriter) flush() {
	if f, ok := l.w.(http.Flusher); ok {
		f.Flush()
	}
}

func (l *lineWriter) write(ev guest.ExecEvent) {
	if ev.Result == nil && len(ev.Stdout) == 0 && len(ev.Stderr) == 0 {
		return
	}
	<-l.opened
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.end {
		return
	}
	if err := l.enc.Encode(ev); err != nil {
		l.end = true
		return
	}
	l.flush()
}

// close drops what is still to come.
func (l *lineWriter) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.end = true
	select {
	case <-l.opened:
	default:
		close(l.opened)
	}
}

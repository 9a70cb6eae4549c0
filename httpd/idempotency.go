package httpd

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"net/http"
	"strings"
	"time"

	"stillframe/fsm"
)

const (
	headerIdempotency = "Idempotency-Key"
	headerReplayed    = "Idempotent-Replayed"
	maxIdempotencyKey = 255
)

// request reads the Idempotency-Key. The zero Request means that there is none.
func (c *call) request(errs *fieldErrors) fsm.Request {
	values := c.fc.Request().Header.PeekAll(headerIdempotency)
	if len(values) == 0 {
		return fsm.Request{}
	}
	key := string(values[0])
	if len(values) > 1 || key == "" || len(key) > maxIdempotencyKey || strings.ContainsFunc(key, notVisible) {
		errs.add(headerIdempotency, "must be given once, with 1 to %d visible ASCII characters", maxIdempotencyKey)
		return fsm.Request{}
	}
	return fsm.Request{Key: key, BodyHash: c.hash()}
}

func notVisible(r rune) bool { return r <= ' ' || r >= 0x7f }

// hash is over everything that says what the request wants: method, path, query and body, each preceded by its length
// so that no two requests run together into the same bytes.
func (c *call) hash() [32]byte {
	uri := c.fc.Request().URI()
	h := sha256.New()
	for _, part := range [][]byte{
		[]byte(c.fc.Method()), []byte(strings.TrimRight(c.fc.Path(), "/")), uri.QueryString(), c.fc.Request().Body(),
	} {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(part)))
		h.Write(n[:])
		h.Write(part)
	}
	return [32]byte(h.Sum(nil))
}

// dataCall is a call into a guest.
type dataCall struct {
	request fsm.Request // with a Key: do happens at most once
	// readOnly calls change nothing: where no answer was kept, a retry reads again.
	readOnly bool
	do       func(context.Context) (reply, error)
	timeout  time.Duration
}

// once does a data call, under an Idempotency-Key at most once.
func (s *Server) once(c *call, d dataCall) (reply, error) {
	ctx, cancel := context.WithTimeout(c.ctx, d.timeout)
	defer cancel()
	if d.request.Key == "" {
		return d.do(ctx)
	}
	// What is refused before a key is reserved leaves the key free. A known key skips this: its answer is kept, whatever
	// has become of the sandbox since.
	if _, known := s.log.State().Request(c.org.ID, d.request.Key); !known {
		if _, err := s.reachable(ctx, c); err != nil {
			return reply{}, err
		}
	}
	res, err := s.log.Apply(ctx, fsm.BeginRequest{Now: s.now(), Org: c.org.ID, Request: d.request})
	if err != nil {
		return reply{}, unknownOutcome(err, d.request)
	}
	if res.Replayed {
		rep, err, kept := s.replay(c, d, res.Request)
		if kept {
			return rep, err
		}
	}
	rep, err := d.do(ctx)
	s.keep(c, d.request.Key, rep, err)
	return rep, err
}

// replay answers from the record of an earlier request; kept is false when the call is to be done again.
func (s *Server) replay(c *call, d dataCall, rec fsm.RequestRecord) (rep reply, err error, kept bool) {
	r := rec.Response
	switch {
	case r != nil && !r.TooLarge:
		c.replayed = true
		return reply{r.Status, r.ContentType, r.Body}, nil, true
	case d.readOnly:
		return reply{}, nil, false
	case r != nil:
		return reply{}, failf(fsm.KindConflict, "the request with this Idempotency-Key was carried out and answered with "+
			"status %d; the answer was too long to be kept", r.Status), true
	}
	return reply{}, failf(fsm.KindConflict, "a request with this Idempotency-Key is under way or was cut off: its "+
		"outcome is not known, so it is not carried out again"), true
}

// keepTime bounds the log entry that keeps an answer; the client is waiting for the answer itself.
const keepTime = 5 * time.Second

// keep stores the answer of a data call whose outcome is known. A failure to store it is only logged: the client has
// the answer, and a retry is told that the outcome is not known.
func (s *Server) keep(c *call, key string, rep reply, err error) {
	if err != nil {
		e := asAPIError(err)
		if !outcomeKnown(e) {
			return
		}
		body, encodeErr := encode(errorBody{e.message, e.fields, e.resource})
		if encodeErr != nil {
			return
		}
		rep = reply{e.status(), mimeJSON, body}
	}
	resp := fsm.Response{Status: rep.status, ContentType: rep.contentType, Body: rep.body}
	if len(resp.Body) > fsm.MaxKeptBody {
		resp.TooLarge, resp.Body = true, nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), keepTime)
	defer cancel()
	if _, err := s.log.Apply(ctx, fsm.FinishRequest{Now: s.now(), Org: c.org.ID, Key: key, Response: resp}); err != nil {
		s.logger.WarnContext(ctx, "answer not kept under its idempotency key", "request_id", c.id, "error", err)
	}
}

// outcomeKnown tells a refusal, after which nothing has happened, from a failure that leaves open what has.
func outcomeKnown(e *apiError) bool {
	return e.status() < http.StatusInternalServerError
}

// unknownOutcome says how to go on when a proposal may or may not have been applied.
func unknownOutcome(err error, req fsm.Request) error {
	e := asAPIError(err)
	if e.kind != fsm.KindUnknown {
		return err
	}
	out := *e
	if req.Key != "" {
		out.message = "the outcome is not known; retry with the same Idempotency-Key (" + req.Key + ") to learn it"
	} else {
		out.message = "the outcome is not known: look whether it was carried out before trying again; with an " +
			"Idempotency-Key the retry would be safe"
	}
	return &out
}

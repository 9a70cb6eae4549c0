package fsm

// Apply takes the state through one command. It is pure and total: it never panics on a command that Decode gave, never
// changes s, and refuses with Result.Err what does not fit, giving s back (or s with the record of the refusal, for a
// request under an idempotency key).
func (s *State) Apply(cmd Command) (*State, Result) {
	switch c := cmd.(type) {
	case CreateSandbox:
		return s.request(c.Now, c.Org, c.Request, func(d *draft) (Intent, *Error) { return d.createSandbox(c) })
	case RestoreSnapshot:
		return s.request(c.Now, c.Org, c.Request, func(d *draft) (Intent, *Error) { return d.restoreSnapshot(c) })
	case CreateSnapshot:
		return s.request(c.Now, c.Org, c.Request, func(d *draft) (Intent, *Error) { return d.createSnapshot(c) })
	case SetNetworkPolicy:
		return s.request(c.Now, c.Org, c.Request, func(d *draft) (Intent, *Error) { return d.setNetworkPolicy(c) })
	case DeleteSandbox:
		return s.request(c.Now, c.Org, Request{}, func(d *draft) (Intent, *Error) { return d.deleteSandbox(c) })
	case DeleteSnapshot:
		return s.request(c.Now, c.Org, Request{}, func(d *draft) (Intent, *Error) { return d.deleteSnapshot(c) })
	}
	d := s.draft()
	res := d.applyOther(cmd)
	if res.Err != nil {
		return s, res
	}
	return &d.State, res
}

// applyOther applies the commands that open no intent for a client.
func (d *draft) applyOther(cmd Command) Result {
	switch c := cmd.(type) {
	case PutOrg:
		return Result{Err: d.applyPutOrg(c)}
	case PutKey:
		return Result{Err: d.applyPutKey(c)}
	case RevokeKey:
		return Result{Err: d.applyRevokeKey(c)}
	case RegisterNode:
		return Result{Err: d.applyRegisterNode(c)}
	case PutTemplate:
		t, err := d.applyPutTemplate(c)
		return Result{Err: err, Template: t}
	case Complete:
		in, err := d.applyComplete(c)
		return Result{Err: err, Intent: in}
	case ReportStopped:
		return Result{Err: d.applyReportStopped(c)}
	case BeginRequest:
		return d.applyBeginRequest(c)
	case FinishRequest:
		return d.applyFinishRequest(c)
	case Tick:
		return Result{Err: d.applyTick(c)}
	case Reseal:
		return Result{Err: d.applyReseal(c)}
	case SetOrgLimits:
		return Result{Err: d.applySetOrgLimits(c)}
	}
	if res, known := d.applyNodes(cmd); known {
		return res
	}
	return Result{Err: Errorf(KindInternal, "%T is not a command", cmd)}
}

// request runs a client's command that opens an intent, at most once for its idempotency key.
func (s *State) request(now Time, org OrgID, rq Request, open func(*draft) (Intent, *Error)) (*State, Result) {
	if err := s.requestProblem(now, org, rq); err != nil {
		return s, Result{Err: err}
	}
	if res, known := s.replay(now, org, rq); known {
		return s, res
	}
	d := s.draft()
	in, err := open(d)
	if err != nil {
		if rq.Key == "" || err.Kind == KindUnavailable || err.Kind == KindLimit {
			return s, Result{Err: err} // nothing to remember, or worth trying again under the same key
		}
		d = s.draft()
		rec := newRecord(now, org, rq)
		rec.Error = err
		d.putRequest(rec)
		return &d.State, Result{Err: err, Request: rec}
	}
	res := Result{Intent: in}
	if rq.Key != "" {
		res.Request = newRecord(now, org, rq)
		res.Request.Intent = in.ID
		d.putRequest(res.Request)
	}
	return &d.State, res
}

func (s *State) requestProblem(now Time, org OrgID, rq Request) *Error {
	var p problems
	p.now(now)
	p.id("the organization's id", string(org))
	p.request(rq)
	if p.err != nil {
		return p.err
	}
	if _, ok := s.Org(org); !ok {
		return Errorf(KindNotFound, "organization %s not found", org)
	}
	return nil
}

// replay answers a request whose idempotency key is known: as the first attempt was, or as a conflict.
func (s *State) replay(now Time, org OrgID, rq Request) (Result, bool) {
	if rq.Key == "" || Bug("no-dedup") {
		return Result{}, false
	}
	rec, ok := s.Request(org, rq.Key)
	if !ok || rec.ExpiresAt <= now {
		return Result{}, false
	}
	if rec.BodyHash != rq.BodyHash {
		return Result{Err: Errorf(KindConflict, "Idempotency-Key %q was used for another request", rq.Key)}, true
	}
	res := Result{Replayed: true, Request: rec, Err: rec.Error}
	if rec.Intent != "" {
		res.Intent, _ = s.Intent(rec.Intent)
	}
	return res, true
}

func newRecord(now Time, org OrgID, rq Request) RequestRecord {
	return RequestRecord{
		Org: org, Key: rq.Key, BodyHash: rq.BodyHash, CreatedAt: now, ExpiresAt: now + RequestRetention,
	}
}

func (d *draft) applyBeginRequest(c BeginRequest) Result {
	if err := d.requestProblem(c.Now, c.Org, c.Request); err != nil {
		return Result{Err: err}
	}
	if c.Request.Key == "" {
		return Result{Err: Errorf(KindInvalid, "Idempotency-Key is missing")}
	}
	if res, known := d.replay(c.Now, c.Org, c.Request); known {
		return res
	}
	rec := newRecord(c.Now, c.Org, c.Request)
	d.putRequest(rec)
	return Result{Request: rec}
}

// applyFinishRequest keeps the first answer: a second one for the same key changes nothing and is answered as a replay.
func (d *draft) applyFinishRequest(c FinishRequest) Result {
	if err := d.requestProblem(c.Now, c.Org, Request{Key: c.Key}); err != nil {
		return Result{Err: err}
	}
	if n := len(c.Response.Body); n > MaxKeptBody {
		return Result{Err: Errorf(KindTooLarge, "an answer of %d bytes is not kept; the most is %d", n, MaxKeptBody)}
	}
	rec, ok := d.Request(c.Org, c.Key)
	if !ok || rec.Intent != "" || rec.Error != nil {
		return Result{Err: Errorf(KindNotFound, "no data call under Idempotency-Key %q is under way", c.Key)}
	}
	if rec.Response != nil {
		return Result{Replayed: true, Request: rec}
	}
	rec.Response = &c.Response
	d.putRequest(rec)
	return Result{Request: rec}
}

package fsm

import "time"

func (d *draft) applyComplete(c Complete) (Intent, *Error) {
	var p problems
	p.now(c.Now)
	p.id("the intent's id", string(c.Intent))
	if p.err != nil {
		return Intent{}, p.err
	}
	in, ok := d.Intent(c.Intent)
	if !ok {
		return Intent{}, Errorf(KindSuperseded, "intent %s is gone", c.Intent)
	}
	if (in.State != IntentOpen || in.Owner != c.Owner || in.Epoch != c.Epoch) && !Bug("no-fence") {
		return in, Errorf(KindSuperseded, "intent %s is %s for node %s at epoch %d, not open for %s at %d",
			in.ID, in.State, in.Owner, in.Epoch, c.Owner, c.Epoch)
	}
	if err := d.completable(in, c); err != nil {
		return in, err
	}
	in.State, in.ClosedAt, in.KeepUntil = IntentDone, c.Now, max(in.KeepUntil, c.Now+IntentRetention)
	if c.Error != nil {
		in.State = IntentFailed
		in.Error = &Error{Kind: c.Error.Kind, Message: cut(c.Error.Message), Field: cut(c.Error.Field)}
	}
	d.closeIntent(&in, c)
	d.putIntent(in)
	return in.withoutSecrets(), nil
}

// closeIntent does to what an intent is about what its outcome means; the caller puts the intent.
func (d *draft) closeIntent(in *Intent, c Complete) {
	switch in.Kind {
	case IntentCreate, IntentRestore:
		d.closeStart(in)
	case IntentSnapshot:
		d.closeSnapshot(in, c)
	case IntentDelete:
		d.closeDelete(in)
	case IntentDeleteSnapshot:
		d.closeDeleteSnapshot(in)
	case IntentSetPolicy:
		d.closeSetPolicy(in, c)
	}
}

// completable refuses a completion that says too little.
func (d *draft) completable(in Intent, c Complete) *Error {
	if c.PolicyFellBack && (in.Kind != IntentSetPolicy || c.Error == nil) {
		return Errorf(KindInvalid, "only a replacement of a network policy that failed can have fallen back")
	}
	if in.Kind != IntentSnapshot || c.Error != nil {
		return nil //nolint:nilerr // a command that reports a failure can be applied
	}
	if c.Manifest == nil {
		return Errorf(KindInvalid, "snapshot intent %s cannot be done without a manifest", in.ID)
	}
	var stored int64 // bytes
	for _, f := range c.Manifest.Files {
		if f.Stored < 0 || f.Stored > maxStoredBytes-stored {
			return Errorf(KindInvalid, "the stored size of file %q is out of range", f.Name)
		}
		stored += f.Stored
	}
	if in.KillAfter {
		if !validID(string(c.NextIntent)) {
			return Errorf(KindInvalid, "the next intent's id is missing or malformed")
		}
		return d.newIntentID(c.NextIntent)
	}
	return nil
}

// closeStart ends a create or restore intent.
func (d *draft) closeStart(in *Intent) {
	if in.State == IntentFailed {
		d.dropSandbox(in.Sandbox)
		return
	}
	sb, _ := d.Sandbox(in.Sandbox)
	sb.setState(in.ClosedAt, SandboxRunning, "")
	sb.Intent = ""
	sb.LaunchedAt = in.ClosedAt
	sb.TimeoutAt = in.ClosedAt.Add(time.Duration(sb.TimeoutSec) * time.Second)
	d.putSandbox(sb)
	in.ResultSandbox = &sb
}

// closeSnapshot ends a snapshot intent, and opens the deletion of the sandbox where that was asked for.
func (d *draft) closeSnapshot(in *Intent, c Complete) {
	sb, _ := d.Sandbox(in.Sandbox)
	sb.Intent = ""
	if c.SandboxStopped == "" {
		sb.setState(in.ClosedAt, SandboxRunning, "")
	} else {
		sb.setState(in.ClosedAt, SandboxStopped, cut(c.SandboxStopped))
	}
	d.putSandbox(sb)
	in.ResultSandbox = &sb
	if in.State == IntentFailed {
		d.dropSnapshot(in.Snapshot)
		return
	}
	sn, _ := d.Snapshot(in.Snapshot)
	c.Manifest.intern()
	sn.State, sn.Intent, sn.Manifest = SnapshotReady, "", c.Manifest
	d.putSnapshot(sn)
	in.ResultSnapshot = &sn
	if in.KillAfter {
		d.openDelete(in.ClosedAt, c.NextIntent, sb)
	}
}

// closeDelete ends a delete intent. A failed one leaves the sandbox stopped, to be deleted again by its owner's word
// or, after its timeout, by a Tick: not at once, or a deletion that cannot succeed would fill the log.
func (d *draft) closeDelete(in *Intent) {
	if in.State == IntentDone {
		d.dropSandbox(in.Sandbox)
		return
	}
	sb, _ := d.Sandbox(in.Sandbox)
	sb.setState(in.ClosedAt, SandboxStopped, "deletion failed: "+in.Error.Message)
	sb.Intent = ""
	if sb.TimeoutAt != 0 {
		sb.TimeoutAt = max(sb.TimeoutAt, in.ClosedAt.Add(DeleteRetry))
	}
	d.putSandbox(sb)
	in.ResultSandbox = &sb
}

// closeDeleteSnapshot ends a delete-snapshot intent.
func (d *draft) closeDeleteSnapshot(in *Intent) {
	if in.State == IntentDone {
		d.dropSnapshot(in.Snapshot)
		return
	}
	sn, _ := d.Snapshot(in.Snapshot)
	sn.State, sn.Intent = SnapshotReady, ""
	d.putSnapshot(sn)
	in.ResultSnapshot = &sn
}

package fsm

import "time"

// DeleteRetry is how long after a failed deletion a sandbox beyond its timeout is deleted again.
const DeleteRetry = time.Minute

func (d *draft) createSandbox(c CreateSandbox) (Intent, *Error) {
	var p problems
	p.id("the intent's id", string(c.Intent))
	p.id("the sandbox's id", string(c.Sandbox))
	p.name("template_name", c.TemplateName)
	p.size(c.VCPU, c.MemoryMiB, c.DiskMiB)
	p.timeout(c.TimeoutSec)
	p.sealedCA(c.CA)
	if p.err != nil {
		return Intent{}, p.err
	}
	t, ok := d.TemplateByName(c.Org, c.TemplateName)
	if !ok {
		return Intent{}, Errorf(KindNotFound, "template %q not found", c.TemplateName)
	}
	if err := d.roomForSandbox(c.Org, c.Sandbox, c.Intent); err != nil {
		return Intent{}, err
	}
	owner, err := d.place(Capacity{VCPU: c.VCPU, MemoryMiB: c.MemoryMiB, DiskMiB: c.DiskMiB}, t.Digest)
	if err != nil {
		return Intent{}, err
	}
	return d.startSandbox(c.Now, c.Request, IntentCreate, c.Intent, Sandbox{
		ID: c.Sandbox, Org: c.Org, Template: t.ID, TemplateName: t.Name, TemplateDigest: t.Digest,
		VCPU: c.VCPU, MemoryMiB: c.MemoryMiB, DiskMiB: c.DiskMiB, TimeoutSec: c.TimeoutSec, AutoPause: c.AutoPause,
		EnvVars: c.EnvVars, NetworkPolicy: c.NetworkPolicy, CA: c.CA, Owner: owner,
	}), nil
}

func (d *draft) restoreSnapshot(c RestoreSnapshot) (Intent, *Error) {
	var p problems
	p.id("the intent's id", string(c.Intent))
	p.id("the sandbox's id", string(c.Sandbox))
	p.name("snapshot_name", c.SnapshotName)
	p.timeout(c.TimeoutSec)
	p.sealedCA(c.CA)
	if p.err != nil {
		return Intent{}, p.err
	}
	sn, ok := d.SnapshotByName(c.Org, c.SnapshotName)
	switch {
	case !ok, sn.State == SnapshotDeleting:
		return Intent{}, Errorf(KindNotFound, "snapshot %q not found", c.SnapshotName)
	case sn.State != SnapshotReady:
		return Intent{}, Errorf(KindNotFound, "snapshot %q is still being created", c.SnapshotName)
	}
	if err := d.roomForSandbox(c.Org, c.Sandbox, c.Intent); err != nil {
		return Intent{}, err
	}
	owner, err := d.placeRestore(sn)
	if err != nil {
		return Intent{}, err
	}
	policy := c.NetworkPolicy
	if policy == nil {
		policy = sn.NetworkPolicy
	}
	ca := sn.CA
	if len(ca) == 0 {
		ca = c.CA
	}
	return d.startSandbox(c.Now, c.Request, IntentRestore, c.Intent, Sandbox{
		ID: c.Sandbox, Org: c.Org, Template: sn.Template, TemplateName: sn.TemplateName,
		TemplateDigest: sn.Manifest.TemplateDigest, Snapshot: sn.ID,
		VCPU: sn.VCPU, MemoryMiB: sn.MemoryMiB, DiskMiB: sn.DiskMiB, TimeoutSec: c.TimeoutSec, AutoPause: c.AutoPause,
		EnvVars: sn.EnvVars, NetworkPolicy: policy, CA: ca, Owner: owner,
	}), nil
}

// roomForSandbox checks that the ids are new and the organization may have one more sandbox.
func (d *draft) roomForSandbox(org OrgID, id SandboxID, intent IntentID) *Error {
	if _, ok := d.Sandbox(id); ok {
		return Errorf(KindConflict, "sandbox %s already exists", id)
	}
	if err := d.newIntentID(intent); err != nil {
		return err
	}
	o, _ := d.Org(org)
	if n, _ := d.orgCounts.Get([]byte(org)); o.MaxSandboxes > 0 && n.sandboxes >= o.MaxSandboxes {
		return Errorf(KindLimit, "the organization has %d of at most %d sandboxes", n.sandboxes, o.MaxSandboxes)
	}
	return nil
}

// startSandbox puts a new sandbox and opens the first intent on it. The caller gives the rest of sb.
func (d *draft) startSandbox(now Time, rq Request, kind IntentKind, id IntentID, sb Sandbox) Intent {
	sb.State, sb.Epoch, sb.Intent = SandboxStarting, 1, id
	sb.CreatedAt, sb.UpdatedAt, sb.StateAt = now, now, now
	d.putSandbox(sb)
	return d.openIntent(now, rq, Intent{
		ID: id, Kind: kind, Org: sb.Org, Sandbox: sb.ID, Owner: sb.Owner, Epoch: sb.Epoch,
	})
}

func (d *draft) deleteSandbox(c DeleteSandbox) (Intent, *Error) {
	var p problems
	p.id("the intent's id", string(c.Intent))
	p.id("the sandbox's id", string(c.Sandbox))
	if p.err != nil {
		return Intent{}, p.err
	}
	sb, err := d.sandboxOf(c.Org, c.Sandbox)
	if err != nil {
		return Intent{}, err
	}
	if err := sb.policyAtRest(); err != nil {
		return Intent{}, err
	}
	if !deletable(sb) {
		return Intent{}, Errorf(KindConflict, "sandbox %s is %s; it can be deleted once it is running or stopped",
			sb.ID, sb.State)
	}
	if err := d.newIntentID(c.Intent); err != nil {
		return Intent{}, err
	}
	return d.openDelete(c.Now, c.Intent, sb), nil
}

// openDelete opens a delete intent on a deletable sandbox. One whose owner is lost is gone at once.
func (d *draft) openDelete(now Time, id IntentID, sb Sandbox) Intent {
	sb.setState(now, SandboxDeleting, "")
	sb.Epoch++
	sb.Intent = id
	d.putSandbox(sb)
	return d.openOn(now, d.openIntent(now, Request{}, Intent{
		ID: id, Kind: IntentDelete, Org: sb.Org, Sandbox: sb.ID, Owner: sb.Owner, Epoch: sb.Epoch,
	}))
}

func (d *draft) applyReportStopped(c ReportStopped) *Error {
	var p problems
	p.now(c.Now)
	p.id("the sandbox's id", string(c.Sandbox))
	if p.err != nil {
		return p.err
	}
	sb, ok := d.Sandbox(c.Sandbox)
	if !ok || sb.State != SandboxRunning || sb.Owner != c.Owner || sb.Epoch != c.Epoch {
		return Errorf(KindSuperseded, "sandbox %s is not running on node %s at epoch %d", c.Sandbox, c.Owner, c.Epoch)
	}
	if sb.Intent != "" {
		d.stopUnderPolicy(c.Now, sb, c.Reason)
		return nil
	}
	sb.setState(c.Now, SandboxStopped, cut(c.Reason))
	d.putSandbox(sb)
	return nil
}

// sandboxOf finds a sandbox of an organization; another's is not found.
func (d *draft) sandboxOf(org OrgID, id SandboxID) (Sandbox, *Error) {
	sb, ok := d.Sandbox(id)
	if !ok || sb.Org != org {
		return Sandbox{}, Errorf(KindNotFound, "sandbox %s not found", id)
	}
	return sb, nil
}

func (sb *Sandbox) setState(now Time, state SandboxState, reason string) {
	sb.State, sb.StateReason, sb.StateAt, sb.UpdatedAt = state, reason, now, now
}

// newIntentID refuses an id that an intent has had, for as long as that is kept: it is how a command that is proposed
// twice takes effect once.
func (d *draft) newIntentID(id IntentID) *Error {
	if _, ok := d.Intent(id); ok {
		return Errorf(KindConflict, "intent %s already exists", id)
	}
	return nil
}

// openIntent puts a new intent; the caller gives what it is about.
func (d *draft) openIntent(now Time, rq Request, in Intent) Intent {
	in.State, in.CreatedAt, in.KeepUntil = IntentOpen, now, now+IntentRetention
	if rq.Key != "" {
		in.KeepUntil = now + RequestRetention
	}
	d.putIntent(in)
	return in
}

// cut bounds a text that an owner reports.
func cut(s string) string {
	if len(s) > maxErrorBytes {
		return s[:maxErrorBytes]
	}
	return s
}

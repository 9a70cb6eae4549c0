package fsm

import "strconv"

func (d *draft) createSnapshot(c CreateSnapshot) (Intent, *Error) {
	if err := snapshotProblem(c); err != nil {
		return Intent{}, err
	}
	sb, err := d.sandboxOf(c.Org, c.Sandbox)
	if err != nil {
		return Intent{}, err
	}
	name, err := d.snapshotName(c)
	if err != nil {
		return Intent{}, err
	}
	if sb.State != SandboxRunning {
		return Intent{}, Errorf(KindConflict, "sandbox %s is %s; only a running one can be snapshotted", sb.ID,
			sb.State)
	}
	if err := sb.policyAtRest(); err != nil {
		return Intent{}, err
	}
	if err := d.ownerThere(sb.Owner); err != nil {
		return Intent{}, err
	}
	if _, ok := d.Snapshot(c.Snapshot); ok {
		return Intent{}, Errorf(KindConflict, "snapshot %s already exists", c.Snapshot)
	}
	if err := d.newIntentID(c.Intent); err != nil {
		return Intent{}, err
	}
	o, _ := d.Org(c.Org)
	if n, _ := d.orgCounts.Get([]byte(c.Org)); o.MaxSnapshots > 0 && n.snapshots >= o.MaxSnapshots {
		return Intent{}, Errorf(KindLimit, "the organization has %d of at most %d snapshots", n.snapshots,
			o.MaxSnapshots)
	}
	sb.setState(c.Now, SandboxSnapshotting, "")
	sb.Epoch++
	sb.Intent = c.Intent
	d.putSandbox(sb)
	d.putSnapshot(Snapshot{
		ID: c.Snapshot, Org: c.Org, Name: name, Sandbox: sb.ID, Template: sb.Template, TemplateName: sb.TemplateName,
		VCPU: sb.VCPU, MemoryMiB: sb.MemoryMiB, DiskMiB: sb.DiskMiB, EnvVars: sb.EnvVars,
		NetworkPolicy: sb.NetworkPolicy, CA: sb.CA, State: SnapshotCreating, Owner: sb.Owner, Epoch: sb.Epoch,
		Intent: c.Intent, CreatedAt: c.Now,
	})
	return d.openIntent(c.Now, c.Request, Intent{
		ID: c.Intent, Kind: IntentSnapshot, Org: c.Org, Sandbox: sb.ID, Snapshot: c.Snapshot, Owner: sb.Owner,
		Epoch: sb.Epoch, KillAfter: c.KillAfter,
	}), nil
}

func snapshotProblem(c CreateSnapshot) *Error {
	var p problems
	p.id("the intent's id", string(c.Intent))
	p.id("the sandbox's id", string(c.Sandbox))
	p.id("the snapshot's id", string(c.Snapshot))
	name := c.Name
	if name == "" {
		name = c.GeneratedName
	}
	p.addf(snapshotName.MatchString(name), "name must be 1 to %d letters, digits, dots, dashes and underscores, "+
		"the first a letter or digit", maxSnapshotNameBytes)
	return p.err
}

// snapshotName gives the name for a new snapshot: the client's, which may be taken, or a generated one, which never is.
func (d *draft) snapshotName(c CreateSnapshot) (string, *Error) {
	if c.Name != "" {
		return c.Name, d.nameFree(c.Org, c.Name)
	}
	name := c.GeneratedName
	for i := 2; d.nameFree(c.Org, name) != nil; i++ {
		suffix := "-" + strconv.Itoa(i)
		name = c.GeneratedName[:min(len(c.GeneratedName), maxSnapshotNameBytes-len(suffix))] + suffix
	}
	return name, nil
}

func (d *draft) nameFree(org OrgID, name string) *Error {
	sn, ok := d.SnapshotByName(org, name)
	if !ok {
		return nil
	}
	switch sn.State {
	case SnapshotCreating:
		if Bug("early-name") {
			return nil
		}
		return Errorf(KindConflict, "snapshot name %q is being created", name)
	case SnapshotDeleting:
		return Errorf(KindConflict, "snapshot name %q already exists and is being deleted", name)
	}
	return Errorf(KindConflict, "snapshot name %q already exists", name)
}

func (d *draft) deleteSnapshot(c DeleteSnapshot) (Intent, *Error) {
	var p problems
	p.id("the intent's id", string(c.Intent))
	p.id("the snapshot's id", string(c.Snapshot))
	if p.err != nil {
		return Intent{}, p.err
	}
	sn, ok := d.Snapshot(c.Snapshot)
	if !ok || sn.Org != c.Org || sn.State == SnapshotCreating {
		return Intent{}, Errorf(KindNotFound, "snapshot %s not found", c.Snapshot)
	}
	if sn.State == SnapshotDeleting {
		return Intent{}, Errorf(KindConflict, "snapshot %s is being deleted", sn.ID)
	}
	if sb, used := d.restoredFrom(sn.ID); used {
		return Intent{}, Errorf(KindConflict, "snapshot %s is in use by sandbox %s", sn.ID, sb)
	}
	if err := d.newIntentID(c.Intent); err != nil {
		return Intent{}, err
	}
	sn.State, sn.Intent = SnapshotDeleting, c.Intent
	sn.Epoch++
	d.putSnapshot(sn)
	return d.openOn(c.Now, d.openIntent(c.Now, Request{}, Intent{
		ID: c.Intent, Kind: IntentDeleteSnapshot, Org: c.Org, Snapshot: sn.ID, Owner: sn.Owner, Epoch: sn.Epoch,
	})), nil
}

// restoredFrom gives a sandbox that was restored from a snapshot and still exists, the one with the smallest ID.
func (d *draft) restoredFrom(id SnapshotID) (SandboxID, bool) {
	_, sb, ok := d.snapshotSandboxes.from(joined(string(id), "")).next()
	if !ok {
		return "", false
	}
	return *sb, true
}

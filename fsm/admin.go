package fsm

import "strings"

// systemPrefix starts the names of system templates, and of no organization's.
const systemPrefix = "system/"

func (d *draft) applyPutOrg(c PutOrg) *Error {
	var p problems
	p.now(c.Now)
	p.id("the organization's id", string(c.Org.ID))
	p.name("the organization's name", c.Org.Name)
	p.addf(c.Org.MaxSandboxes >= 0 && c.Org.MaxSnapshots >= 0 && c.Org.MaxRequests >= 0,
		"a limit must not be negative")
	if p.err != nil {
		return p.err
	}
	if other, ok := d.OrgByName(c.Org.Name); ok && other.ID != c.Org.ID {
		return Errorf(KindConflict, "organization name %q already exists", c.Org.Name)
	}
	org := c.Org
	org.CreatedAt = c.Now
	if old, ok := d.Org(org.ID); ok {
		org.CreatedAt = old.CreatedAt
	}
	d.putOrg(org)
	return nil
}

func (d *draft) applyPutKey(c PutKey) *Error {
	var p problems
	p.now(c.Now)
	p.id("the key's id", string(c.Key.ID))
	p.addf(c.Key.Label == "" || validName(c.Key.Label), "the key's label is too long or has control characters")
	p.addf(c.Key.Hash != [32]byte{}, "the key's hash is missing")
	if p.err != nil {
		return p.err
	}
	if _, ok := d.Org(c.Key.Org); !ok {
		return Errorf(KindNotFound, "organization %s not found", c.Key.Org)
	}
	if _, ok := d.Key(c.Key.ID); ok {
		return Errorf(KindConflict, "key %s already exists", c.Key.ID)
	}
	if _, ok := d.KeyByHash(c.Key.Hash); ok {
		return Errorf(KindConflict, "a key with the same secret already exists")
	}
	key := c.Key
	key.CreatedAt, key.RevokedAt = c.Now, 0
	d.putKey(key)
	return nil
}

func (d *draft) applyRevokeKey(c RevokeKey) *Error {
	var p problems
	p.now(c.Now)
	p.id("the key's id", string(c.ID))
	if p.err != nil {
		return p.err
	}
	key, ok := d.Key(c.ID)
	if !ok {
		return Errorf(KindNotFound, "key %s not found", c.ID)
	}
	if key.RevokedAt == 0 {
		key.RevokedAt = c.Now
		d.putKey(key)
	}
	return nil
}

func (d *draft) applyRegisterNode(c RegisterNode) *Error {
	var p problems
	p.now(c.Now)
	p.id("the node's id", string(c.Node.ID))
	p.addf(c.Node.Name == "" || validName(c.Node.Name), "the node's name is too long or has control characters")
	room := c.Node.Capacity
	p.addf(room.VCPU >= 0 && room.VCPU <= maxVCPU && room.MemoryMiB >= 0 && room.MemoryMiB <= maxMiB &&
		room.DiskMiB >= 0 && room.DiskMiB <= maxMiB, "the node's capacity is out of range")
	p.addf(c.Node.Level >= 0, "the node's level is out of range")
	if p.err != nil {
		return p.err
	}
	for _, digest := range c.Node.Templates {
		p.addf(validName(digest), "a template's digest is malformed")
	}
	if p.err != nil {
		return p.err
	}
	node := c.Node
	node.RegisteredAt, node.Addr, node.LostAt, node.RemovedAt, node.Epoch = c.Now, "", 0, 0, 0
	old, ok := d.Node(node.ID)
	switch {
	case old.Removed():
		return Errorf(KindConflict, "node %s was removed from the cluster", old.label())
	case ok && old.RegisteredAt != 0:
		node.RegisteredAt, node.Epoch = old.RegisteredAt, old.Epoch+1
	case ok:
		node.Epoch = old.Epoch
	}
	if ok {
		node.Drained, node.Addr = old.Drained, old.Addr
	}
	d.putNode(node)
	return nil
}

func (d *draft) applyPutTemplate(c PutTemplate) (Template, *Error) {
	t := c.Template
	var p problems
	p.now(c.Now)
	p.id("the template's id", string(t.ID))
	p.name("the template's name", t.Name)
	p.addf(validName(t.Digest), "the template's digest is missing or malformed")
	p.addf(t.Org == "" || !strings.HasPrefix(t.Name, systemPrefix),
		"template names with %s are the system's", systemPrefix)
	if p.err != nil {
		return Template{}, p.err
	}
	if _, ok := d.Org(t.Org); !ok && t.Org != "" {
		return Template{}, Errorf(KindNotFound, "organization %s not found", t.Org)
	}
	if id, ok := d.templateNames.Get(joined(string(t.Org), t.Name)); ok {
		old, _ := d.Template(id)
		if t.Org != "" && old.Digest != t.Digest {
			return Template{}, Errorf(KindConflict, "template name %q already exists", t.Name)
		}
		old.Digest = t.Digest
		d.putTemplate(old)
		return old, nil
	}
	if _, ok := d.Template(t.ID); ok {
		return Template{}, Errorf(KindConflict, "template %s already exists", t.ID)
	}
	t.CreatedAt = c.Now
	d.putTemplate(t)
	return t, nil
}

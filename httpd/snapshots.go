package httpd

import (
	"net/http"

	"stillframe/fsm"
)

func (s *Server) createSnapshot(c *call) (reply, error) {
	id, err := c.pathID("sandbox_id")
	if err != nil {
		return reply{}, err
	}
	errs := &fieldErrors{}
	body, err := c.body(errs)
	if err != nil {
		return reply{}, err
	}
	cmd := fsm.CreateSnapshot{
		Request: c.request(errs), Org: c.org.ID, Sandbox: fsm.SandboxID(id),
		KillAfter: body.boolean("kill_sandbox_after"),
	}
	if name, ok := body.str("name"); ok {
		if !validSnapshotName(name) {
			body.bad("name", snapshotNameRule)
		}
		cmd.Name = name
	}
	if err := errs.err(); err != nil {
		return reply{}, err
	}
	cmd.Now, cmd.Intent, cmd.Snapshot = s.now(), s.newIntent(), fsm.SnapshotID(s.cfg.NewID("snap"))
	cmd.GeneratedName = s.cfg.NewSnapshotName()
	intent, err := s.carryOut(c, cmd, cmd.Request)
	if err != nil {
		return reply{}, err
	}
	if intent.State == fsm.IntentOpen {
		return s.accepted(c, intent)
	}
	if intent.ResultSnapshot == nil {
		return reply{}, internal(errNoResult)
	}
	return jsonReply(http.StatusCreated, snapshotView(*intent.ResultSnapshot))
}

func (s *Server) restoreSnapshot(c *call) (reply, error) {
	errs := &fieldErrors{}
	body, err := c.body(errs)
	if err != nil {
		return reply{}, err
	}
	cmd := fsm.RestoreSnapshot{
		Request: c.request(errs), Org: c.org.ID,
		TimeoutSec:    body.integer("timeout", defaultTimeout, 1, maxTimeoutSec),
		AutoPause:     body.boolean("auto_pause"),
		NetworkPolicy: body.policy("network_policy"),
	}
	name, ok := body.required("snapshot_name")
	if ok && !validSnapshotName(name) {
		body.bad("snapshot_name", snapshotNameRule)
	}
	cmd.SnapshotName = name
	if err := errs.err(); err != nil {
		return reply{}, err
	}
	if cmd.NetworkPolicy, err = s.seal(c, cmd.NetworkPolicy, &cmd.Request); err != nil {
		return reply{}, err
	}
	// One of an older version has no CA of its own, or this node does not know it yet.
	if sn, ok := s.log.State().SnapshotByName(c.org.ID, name); !ok || len(sn.CA) == 0 {
		if cmd.CA, err = s.newCA(c); err != nil {
			return reply{}, err
		}
	}
	cmd.Now, cmd.Intent, cmd.Sandbox = s.now(), s.newIntent(), fsm.SandboxID(s.cfg.NewID("sbx"))
	intent, err := s.carryOut(c, cmd, cmd.Request)
	if err != nil {
		return reply{}, err
	}
	if intent.State == fsm.IntentOpen {
		return s.accepted(c, intent)
	}
	return s.sandboxReply(http.StatusCreated, intent)
}

func (s *Server) deleteSnapshot(c *call) (reply, error) {
	id, err := c.pathID("snapshot_id")
	if err != nil {
		return reply{}, err
	}
	cmd := fsm.DeleteSnapshot{
		Now: s.now(), Intent: s.newIntent(), Org: c.org.ID, Snapshot: fsm.SnapshotID(id),
	}
	if _, err := s.carryOut(c, cmd, fsm.Request{}); err != nil {
		return reply{}, err
	}
	return noContent, nil
}

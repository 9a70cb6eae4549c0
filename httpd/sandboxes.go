package httpd

import (
	"errors"
	"net/http"
	"strings"
	"unicode"

	"stillframe/fsm"
)

// Bounds of a sandbox.
const (
	maxTimeoutSec   = 28800
	defaultTimeout  = 300 // seconds
	maxTemplateName = 64
)

func (s *Server) createSandbox(c *call) (reply, error) {
	errs := &fieldErrors{}
	body, err := c.body(errs)
	if err != nil {
		return reply{}, err
	}
	cmd := fsm.CreateSandbox{
		Request: c.request(errs), Org: c.org.ID, DiskMiB: s.cfg.DefaultDiskMiB,
		TemplateName:  body.templateName("template_name"),
		VCPU:          int(body.integer("vcpu", 1, 1, 8)),
		MemoryMiB:     body.integer("memory", 1024, 512, 8192),
		TimeoutSec:    body.integer("timeout", defaultTimeout, 1, maxTimeoutSec),
		AutoPause:     body.boolean("auto_pause"),
		EnvVars:       body.env("env_vars"),
		NetworkPolicy: body.policy("network_policy"),
	}
	if cmd.MemoryMiB%2 != 0 {
		body.bad("memory", "must be even")
	}
	mounts := body.list("mounts", 8)
	if err := errs.err(); err != nil {
		return reply{}, err
	}
	if len(mounts) > 0 {
		return reply{}, unsupportedField("mounts", "object storage mounts are not available in this version")
	}
	if cmd.NetworkPolicy, err = s.seal(c, cmd.NetworkPolicy, &cmd.Request); err != nil {
		return reply{}, err
	}
	if cmd.CA, err = s.newCA(c); err != nil {
		return reply{}, err
	}
	cmd.Now, cmd.Intent, cmd.Sandbox = s.now(), s.newIntent(), fsm.SandboxID(s.cfg.NewID("sbx"))
	intent, err := s.carryOut(c, cmd, cmd.Request)
	if err != nil {
		return reply{}, unknownTemplate(err)
	}
	if intent.State == fsm.IntentOpen {
		return s.accepted(c, intent)
	}
	return s.sandboxReply(http.StatusCreated, intent)
}

// newCA makes the CA of a new sandbox; none while an older program in the cluster would not know what to do with it:
// such a sandbox can have no transforms.
func (s *Server) newCA(c *call) ([]byte, error) {
	if s.log.State().Level() < caLevel {
		return nil, nil
	}
	return s.cfg.Secrets.NewCA(c.org.ID)
}

// caLevel is the fsm.Level from which on sandboxes have CAs.
const caLevel = 2

func (s *Server) newIntent() fsm.IntentID { return fsm.IntentID(s.cfg.NewID("int")) }

// templateName reads the name of a template, which is required.
func (o *object) templateName(field string) string {
	name, ok := o.required(field)
	odd := func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }
	if ok && (len(name) > maxTemplateName || strings.ContainsFunc(name, odd)) {
		o.bad(field, "must be at most %d bytes without white space", maxTemplateName)
	}
	return name
}

func unsupportedField(field, message string) error {
	return &apiError{kind: fsm.KindNotSupported, message: message, fields: []FieldError{{field, message}}}
}

// unknownTemplate makes a template that does not exist a bad field: on this path the missing thing is not what the path
// names, so 404 would mislead.
func unknownTemplate(err error) error {
	e := asAPIError(err)
	if e.kind != fsm.KindNotFound {
		return err
	}
	return &apiError{kind: fsm.KindInvalid, message: invalidRequest, fields: []FieldError{{"template_name", e.message}}}
}

var errNoResult = errors.New("a done intent without its result")

func (s *Server) sandboxReply(status int, in fsm.Intent) (reply, error) {
	if in.ResultSandbox == nil {
		return reply{}, internal(errNoResult)
	}
	return jsonReply(status, s.sandboxView(*in.ResultSandbox))
}

func (s *Server) getSandbox(c *call) (reply, error) {
	state, err := s.state(c)
	if err != nil {
		return reply{}, err
	}
	sb, err := c.ownSandbox(state)
	if err != nil {
		return reply{}, err
	}
	return jsonReply(http.StatusOK, s.sandboxView(sb))
}

func (s *Server) deleteSandbox(c *call) (reply, error) {
	sb, err := s.sandbox(c.ctx, c)
	if err != nil {
		return reply{}, err
	}
	cmd := fsm.DeleteSandbox{Now: s.now(), Intent: s.newIntent(), Org: c.org.ID, Sandbox: sb.ID}
	if _, err := s.carryOut(c, cmd, fsm.Request{}); err != nil {
		return reply{}, err
	}
	return noContent, nil
}

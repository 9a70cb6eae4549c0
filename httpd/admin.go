package httpd

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"math"
	"net/http"
	"regexp"

	"stillframe/fsm"
)

// adminRoutes is the administration API. Whoever may connect to its socket may use it: the socket's mode is the lock.
func (s *Server) adminRoutes() []route {
	return append(s.operationRoutes(), []route{
		{method: post, path: "/admin/v1/orgs", open: true, do: s.createOrg},
		{method: get, path: "/admin/v1/orgs", open: true, do: s.listOrgs},
		{method: patch, path: "/admin/v1/orgs/{org}", open: true, do: s.setLimits},
		{method: post, path: "/admin/v1/keys", open: true, do: s.createKey},
		{method: get, path: "/admin/v1/keys", open: true, do: s.listKeys},
		{method: del, path: "/admin/v1/keys/{key_id}", open: true, do: s.revokeKey},
		{method: get, path: "/admin/v1/backup", open: true, do: s.backup},
		{method: post, path: "/admin/v1/reseal", open: true, do: s.reseal},
	}...)
}

// orgView is an organization on the wire of the administration API.
type orgView struct {
	ID           fsm.OrgID `json:"id"`
	Name         string    `json:"name"`
	MaxSandboxes int       `json:"max_sandboxes"`           // 0: no bound
	MaxSnapshots int       `json:"max_snapshots"`           // 0: no bound
	MaxRequests  int       `json:"max_requests_per_minute"` // to each node; 0: no bound
	Sandboxes    int       `json:"sandboxes"`               // what it has now
	Snapshots    int       `json:"snapshots"`
	CreatedAt    string    `json:"created_at"`
}

func viewOrg(state *fsm.State, o fsm.Org) orgView {
	v := orgView{
		ID: o.ID, Name: o.Name, MaxSandboxes: o.MaxSandboxes, MaxSnapshots: o.MaxSnapshots, MaxRequests: o.MaxRequests,
		CreatedAt: timeView(o.CreatedAt),
	}
	v.Sandboxes, v.Snapshots = state.OrgUse(o.ID)
	return v
}

// keyView is an API key on the wire of the administration API. Key is the secret, there only when it was just made.
type keyView struct {
	ID        fsm.KeyID `json:"id"`
	Org       fsm.OrgID `json:"org"`
	OrgName   string    `json:"org_name"`
	Label     string    `json:"label"`
	CreatedAt string    `json:"created_at"`
	RevokedAt string    `json:"revoked_at,omitempty"`
	Key       string    `json:"key,omitempty"`
}

func viewKey(k fsm.APIKey, org fsm.Org) keyView {
	return keyView{
		ID: k.ID, Org: k.Org, OrgName: org.Name, Label: k.Label, CreatedAt: timeView(k.CreatedAt),
		RevokedAt: timeView(k.RevokedAt),
	}
}

var (
	orgName  = regexp.MustCompile(`\A[a-z0-9][a-z0-9-]{0,62}\z`)
	keyLabel = regexp.MustCompile(`\A[^\x00-\x1f\x7f]{0,128}\z`)
)

// createOrg makes an organization.
func (s *Server) createOrg(c *call) (reply, error) {
	errs := &fieldErrors{}
	body, err := c.body(errs)
	if err != nil {
		return reply{}, err
	}
	org := fsm.Org{
		MaxSandboxes: int(body.integer("max_sandboxes", 0, 0, math.MaxInt32)),
		MaxSnapshots: int(body.integer("max_snapshots", 0, 0, math.MaxInt32)),
		MaxRequests:  int(body.integer("max_requests_per_minute", 0, 0, math.MaxInt32)),
	}
	name, ok := body.required("name")
	if ok && !orgName.MatchString(name) {
		body.bad("name", "must be 1 to 63 lower-case letters, digits and inner dashes")
	}
	org.Name = name
	if err := errs.err(); err != nil {
		return reply{}, err
	}
	if _, taken := s.log.State().OrgByName(name); taken {
		return reply{}, failf(fsm.KindConflict, "an organization named %q exists", name)
	}
	org.ID, org.CreatedAt = fsm.OrgID(s.cfg.NewID("org")), s.now()
	if err := s.apply(c, fsm.PutOrg{Now: org.CreatedAt, Org: org}); err != nil {
		return reply{}, err
	}
	return jsonReply(http.StatusCreated, viewOrg(s.log.State(), org))
}

// setLimits changes those limits of an organization that are given.
func (s *Server) setLimits(c *call) (reply, error) {
	errs := &fieldErrors{}
	body, err := c.body(errs)
	if err != nil {
		return reply{}, err
	}
	cmd := fsm.SetOrgLimits{
		MaxSandboxes: body.limit("max_sandboxes"), MaxSnapshots: body.limit("max_snapshots"),
		MaxRequests: body.limit("max_requests_per_minute"),
	}
	if err := errs.err(); err != nil {
		return reply{}, err
	}
	state, err := s.read(c.ctx)
	if err != nil {
		return reply{}, err
	}
	org, err := findOrg(state, c.fc.Params("org"))
	if err != nil {
		return reply{}, err
	}
	cmd.Now, cmd.Org = s.now(), org.ID
	if err := s.apply(c, cmd); err != nil {
		return reply{}, err
	}
	state = s.log.State()
	org, _ = state.Org(org.ID)
	return jsonReply(http.StatusOK, viewOrg(state, org))
}

// limit reads a bound; nil when it is not given.
func (o *object) limit(name string) *int {
	if !o.has(name) {
		return nil
	}
	n := int(o.integer(name, 0, 0, math.MaxInt32))
	return &n
}

// apply proposes a command that is done once it is applied.
func (s *Server) apply(c *call, cmd fsm.Command) error {
	ctx, cancel := context.WithTimeout(c.ctx, s.cfg.Limits.Data)
	defer cancel()
	if _, err := s.log.Apply(ctx, cmd); err != nil {
		return unknownOutcome(err, fsm.Request{})
	}
	return nil
}

func (s *Server) listOrgs(c *call) (reply, error) {
	state, err := s.read(c.ctx)
	if err != nil {
		return reply{}, err
	}
	out := page[orgView]{Items: []orgView{}}
	for _, o := range state.Orgs() {
		out.Items = append(out.Items, viewOrg(state, o))
	}
	out.TotalItems = len(out.Items)
	return jsonReply(http.StatusOK, out)
}

// reseal seals the secrets of the state anew. What it has done stays done when it is cut off; the next goes on.
func (s *Server) reseal(c *call) (reply, error) {
	if s.cfg.Reseal == nil {
		return unavailable(c)
	}
	done, err := s.cfg.Reseal(c.ctx)
	if err != nil {
		return reply{}, err
	}
	return jsonReply(http.StatusOK, done)
}

// findOrg finds an organization by ID or by name.
func findOrg(state *fsm.State, ref string) (fsm.Org, error) {
	if o, ok := state.Org(fsm.OrgID(ref)); ok {
		return o, nil
	}
	if o, ok := state.OrgByName(ref); ok {
		return o, nil
	}
	return fsm.Org{}, failf(fsm.KindNotFound, "no such organization")
}

// NewKeySecret makes an API key: "sf_" and 256 random bits.
func NewKeySecret() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails: the runtime aborts instead
	return "sf_" + base64.RawURLEncoding.EncodeToString(b[:])
}

// createKey makes an API key. Its secret is in this answer and nowhere else afterwards.
func (s *Server) createKey(c *call) (reply, error) {
	errs := &fieldErrors{}
	body, err := c.body(errs)
	if err != nil {
		return reply{}, err
	}
	ref, _ := body.required("org")
	label, _ := body.str("label")
	if !keyLabel.MatchString(label) {
		body.bad("label", "must be at most 128 characters without control characters")
	}
	if err := errs.err(); err != nil {
		return reply{}, err
	}
	state, err := s.read(c.ctx)
	if err != nil {
		return reply{}, err
	}
	org, err := findOrg(state, ref)
	if err != nil {
		return reply{}, err
	}
	secret := NewKeySecret()
	key := fsm.APIKey{
		ID: fsm.KeyID(s.cfg.NewID("key")), Org: org.ID, Label: label, Hash: sha256.Sum256([]byte(secret)), CreatedAt: s.now(),
	}
	if err := s.apply(c, fsm.PutKey{Now: key.CreatedAt, Key: key}); err != nil {
		return reply{}, err
	}
	v := viewKey(key, org)
	v.Key = secret
	return jsonReply(http.StatusCreated, v)
}

// listKeys lists keys, good and revoked, of one organization (?org=) or of all.
func (s *Server) listKeys(c *call) (reply, error) {
	state, err := s.read(c.ctx)
	if err != nil {
		return reply{}, err
	}
	orgs := state.Orgs()
	if ref := c.fc.Query("org"); ref != "" {
		org, err := findOrg(state, ref)
		if err != nil {
			return reply{}, err
		}
		orgs = []fsm.Org{org}
	}
	out := page[keyView]{Items: []keyView{}}
	for _, org := range orgs {
		for _, k := range state.Keys(org.ID) {
			out.Items = append(out.Items, viewKey(k, org))
		}
	}
	out.TotalItems = len(out.Items)
	return jsonReply(http.StatusOK, out)
}

func (s *Server) revokeKey(c *call) (reply, error) {
	id, err := c.pathID("key_id")
	if err != nil {
		return reply{}, err
	}
	if err := s.apply(c, fsm.RevokeKey{Now: s.now(), ID: fsm.KeyID(id)}); err != nil {
		return reply{}, err
	}
	return noContent, nil
}

package httpd

import (
	"bytes"
	_ "embed"
	"net/http"

	"github.com/prometheus/common/expfmt"

	"stillframe/fsm"
)

//go:embed openapi.yaml
var openAPI []byte

const (
	get   = http.MethodGet
	post  = http.MethodPost
	put   = http.MethodPut
	patch = http.MethodPatch
	del   = http.MethodDelete
)

// apiRoutes is every path of the API, each as openapi.yaml has it.
func (s *Server) apiRoutes() []route {
	const sandbox = "/v1/sandbox/{sandbox_id}"
	routes := []route{
		{method: get, path: "/healthz", open: true, do: s.healthz},
		{method: get, path: "/readyz", open: true, do: s.readyz},
		{method: get, path: "/metrics", open: true, do: s.showMetrics},
		{method: get, path: "/openapi.yaml", open: true, do: s.showOpenAPI},

		{method: post, path: "/v1/sandbox", async: true, do: s.createSandbox},
		{method: get, path: sandbox, read: true, do: s.getSandbox},
		{method: del, path: sandbox, do: s.deleteSandbox},
		{method: get, path: "/v1/sandboxes", read: true, do: s.listSandboxes},

		{method: post, path: sandbox + "/snapshot/create", async: true, do: s.createSnapshot},
		{method: post, path: "/v1/snapshot/restore", async: true, do: s.restoreSnapshot},
		{method: del, path: "/v1/snapshot/{snapshot_id}", do: s.deleteSnapshot},
		{method: get, path: "/v1/snapshots", read: true, do: s.listSnapshots},

		{method: put, path: sandbox + "/network-policy", do: s.setPolicy},
		{method: get, path: sandbox + "/network-policy/log", do: s.policyLog},
		{method: get, path: sandbox + "/network-policy/check", do: s.policyCheck},

		{method: post, path: sandbox + "/process/execute", do: s.execute},
		{method: post, path: sandbox + "/filesystem/read-file", do: s.file(true, s.readFile)},
		{method: post, path: sandbox + "/filesystem/write-file", raw: true, do: s.writeFile},
		{method: post, path: sandbox + "/filesystem/ls", do: s.file(true, s.ls)},
		{method: post, path: sandbox + "/filesystem/stat", do: s.file(true, s.stat)},
		{method: post, path: sandbox + "/filesystem/exists", do: s.file(true, s.exists)},
		{method: post, path: sandbox + "/filesystem/mkdir", do: s.file(false, s.mkdir)},
		{method: post, path: sandbox + "/filesystem/delete", do: s.file(false, s.deleteFile)},
		{method: post, path: sandbox + "/filesystem/move", do: s.file(false, s.move)},
		{method: post, path: sandbox + "/filesystem/copy", do: s.file(false, s.copyFile)},

		{method: get, path: "/v1/templates", read: true, do: s.listTemplates},
		{method: get, path: "/v1/node", do: s.nodeStatus},
		{method: get, path: "/v1/cluster", do: s.clusterStatus},

		{method: post, path: "/v1/template", raw: true, do: unavailable},
		{method: patch, path: "/v1/template/{template_id}", do: unavailable},
		{method: del, path: "/v1/template/{template_id}", do: unavailable},
	}
	for _, r := range []route{
		{method: post, path: "/pause"}, {method: post, path: "/stop"}, {method: post, path: "/start"},
		{method: post, path: "/filesystem/{operation}", raw: true},
		{method: post, path: "/git/{operation}"}, {method: post, path: "/lsp/{operation}"},
		{method: post, path: "/mounts"},
		{method: patch, path: "/mounts/{mount_id}"}, {method: del, path: "/mounts/{mount_id}"},
		{method: post, path: "/presigned-url"}, {method: del, path: "/presigned-url/{presigned_url_id}"},
		{method: get, path: "/system/{property}"},
		{method: get, path: "/pty"}, {method: post, path: "/pty"},
		{method: get, path: "/pty/{session_id}"}, {method: del, path: "/pty/{session_id}"},
		{method: get, path: "/pty/{session_id}/connect"}, {method: post, path: "/pty/{session_id}/resize"},
		{method: post, path: "/ssh/access"}, {method: del, path: "/ssh/{ssh_id}"},
		{method: post, path: "/ssh/{ssh_id}/validate"}, {method: post, path: "/ssh/{ssh_id}/regen"},
	} {
		r.path, r.do = sandbox+r.path, s.unavailableInSandbox
		routes = append(routes, r)
	}
	return routes
}

// unavailable answers a path of the contract that this version does not carry out.
func unavailable(*call) (reply, error) {
	return reply{}, failf(fsm.KindNotSupported, "this call is not available in this version")
}

// unavailableInSandbox is unavailable for an existing sandbox; of others it tells nothing.
func (s *Server) unavailableInSandbox(c *call) (reply, error) {
	if _, err := s.sandbox(c.ctx, c); err != nil {
		return reply{}, err
	}
	return unavailable(c)
}

// healthz says that the process answers; it asks nobody else.
func (s *Server) healthz(*call) (reply, error) {
	return jsonReply(http.StatusOK, map[string]string{"status": "ok", "version": s.cfg.Version})
}

// readyz says whether requests should be sent here.
func (s *Server) readyz(c *call) (reply, error) {
	if c.ctx.Err() != nil {
		return reply{}, failf(fsm.KindUnavailable, "not ready: shutting down")
	}
	if err := s.cfg.Ready(); err != nil {
		return reply{}, failf(fsm.KindUnavailable, "not ready: %v", err)
	}
	return jsonReply(http.StatusOK, map[string]string{"status": "ready"})
}

func (s *Server) nodeStatus(c *call) (reply, error) {
	if s.cfg.NodeStatus == nil {
		return unavailable(c)
	}
	return jsonReply(http.StatusOK, s.cfg.NodeStatus())
}

func (s *Server) clusterStatus(c *call) (reply, error) {
	if s.cfg.ClusterStatus == nil {
		return unavailable(c)
	}
	errs := &fieldErrors{}
	digest := false
	switch text := c.fc.Query("digest"); text {
	case "", "false":
	case "true":
		digest = true
	default:
		errs.add("digest", "must be true or false")
	}
	if err := errs.err(); err != nil {
		return reply{}, err
	}
	return jsonReply(http.StatusOK, s.cfg.ClusterStatus(c.ctx, digest))
}

func (s *Server) showOpenAPI(*call) (reply, error) {
	return reply{http.StatusOK, "application/yaml", openAPI}, nil
}

func (s *Server) showMetrics(*call) (reply, error) {
	families, err := s.cfg.Registry.Gather()
	if err != nil {
		return reply{}, internal(err)
	}
	format := expfmt.NewFormat(expfmt.TypeTextPlain)
	var b bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&b, f); err != nil {
			return reply{}, internal(err)
		}
	}
	return reply{http.StatusOK, string(format), b.Bytes()}, nil
}

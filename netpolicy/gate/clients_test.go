package gate_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/netpolicy/gate"
)

// program gives the environment of a client in the guest. It trusts the sandbox's CA and nothing else, through the
// variables that a guest has.
func (g *guest) program() []string {
	g.t.Helper()
	ca := filepath.Join(g.t.TempDir(), "ca.pem")
	require.NoError(g.t, os.WriteFile(ca, g.ca.CertPEM(), 0o600))
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + g.t.TempDir(), "GIT_TERMINAL_PROMPT=0"}
	for _, name := range []string{"SSL_CERT_FILE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE",
		"GIT_SSL_CAINFO"} {
		env = append(env, name+"="+ca)
	}
	return env
}

// port is where a program in the guest finds the gate. What it connects was meant for a port of an address that nobody
// has.
func (g *guest) port(meant uint16) string {
	g.programs.Store(uint32(meant))
	return g.tcp
}

func (g *guest) run(env []string, name string, args ...string) (string, error) {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// needs ends the test with a failure where a client is missing: deploy/setup.sh installs it.
func needs(t *testing.T, program string) {
	t.Helper()
	_, err := exec.LookPath(program)
	require.NoError(t, err)
}

func credential(w http.ResponseWriter, r *http.Request) {
	_, _ = fmt.Fprintf(w, "%s %s", r.Proto, r.Header.Get("X-Key"))
}

func TestCurl(t *testing.T) {
	needs(t, "curl")
	g := api(t, http.HandlerFunc(credential), transform("api.example", map[string]string{"X-Key": "k"}))
	env := g.program()
	for _, version := range []string{"--http1.1", "--http2"} {
		out, err := g.run(env, "curl", "-sS", version, "--connect-to", "api.example:443:"+g.port(443), "https://api.example/")
		require.NoError(t, err, out)
		require.Regexp(t, `^HTTP/[12].[01] k$`, out)
	}
	out, err := g.run(env, "curl", "-sS", "--connect-to", "evil.example:443:"+g.port(443), "https://evil.example/")
	require.Error(t, err)
	require.Contains(t, strings.ToLower(out), "access denied")
}

func TestPython(t *testing.T) {
	needs(t, "python3")
	g := api(t, http.HandlerFunc(credential), transform("api.example", map[string]string{"X-Key": "k"}))
	host, port, _ := strings.Cut(g.port(443), ":")
	script := fmt.Sprintf(`
import http.client, socket, ssl
raw = socket.create_connection((%q, %s))
conn = http.client.HTTPSConnection("api.example")
conn.sock = ssl.create_default_context().wrap_socket(raw, server_hostname="api.example")
conn.request("GET", "/")
print(conn.getresponse().read().decode())
`, host, port)
	out, err := g.run(g.program(), "python3", "-c", script)
	require.NoError(t, err, out)
	require.Equal(t, "HTTP/1.1 k\n", out)
}

func TestNode(t *testing.T) {
	needs(t, "node")
	g := api(t, http.HandlerFunc(credential), transform("api.example", map[string]string{"X-Key": "k"}))
	host, port, _ := strings.Cut(g.port(443), ":")
	script := fmt.Sprintf(`
const https = require("https");
https.get({host: %q, port: %s, servername: "api.example", headers: {host: "api.example"}}, (res) => {
  res.pipe(process.stdout);
}).on("error", (err) => { console.error(err); process.exit(1); });
`, host, port)
	out, err := g.run(g.program(), "node", "-e", script)
	require.NoError(t, err, out)
	require.Equal(t, "HTTP/1.1 k", out)
}

// git clones and pushes over HTTPS with a credential that it does not have.
func TestGit(t *testing.T) {
	needs(t, "git")
	far := t.TempDir()
	there := func(args ...string) {
		out, err := exec.Command("git", args...).CombinedOutput()
		require.NoError(t, err, string(out))
	}
	there("init", "-q", "--bare", far+"/repo.git")
	there("-C", far+"/repo.git", "config", "http.receivepack", "true")
	core, err := exec.Command("git", "--exec-path").Output()
	require.NoError(t, err)
	backend := &cgi.Handler{Path: strings.TrimSpace(string(core)) + "/git-http-backend",
		Env: []string{"GIT_PROJECT_ROOT=" + far, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=u"}, Stderr: io.Discard}
	g := api(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); password != "p" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		backend.ServeHTTP(w, r)
	}), transform("api.example", map[string]string{"Authorization": "Basic dTpw"}))
	env := append(g.program(), "GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b",
		"GIT_COMMITTER_NAME=a",
		"GIT_COMMITTER_EMAIL=a@b")
	here := t.TempDir() + "/repo"
	git := func(args ...string) {
		t.Helper()
		out, err := g.run(env, "git", args...)
		require.NoError(t, err, out)
	}
	// git has no way to connect to another port than the URL's, so the URL has the gate's.
	at := netip.MustParseAddrPort(g.port(443)).Port()
	g.port(at)
	g.mu.Lock()
	g.servers[netip.AddrPortFrom(netip.MustParseAddr("203.0.113.10"), at)] = g.servers[addrPort("203.0.113.10:443")]
	g.mu.Unlock()
	url := fmt.Sprintf("https://api.example:%d/repo.git", at)
	resolve := fmt.Sprintf("http.curloptResolve=api.example:%d:127.0.0.1", at)
	git("-c", resolve, "clone", "-q", url, here)
	require.NoError(t, os.WriteFile(here+"/file", make([]byte, 3<<20), 0o600))
	git("-C", here, "add", "file")
	git("-C", here, "commit", "-q", "-m", "a file")
	git("-C", here, "-c", resolve, "push", "-q", "origin", "HEAD:main")
	there("-C", far+"/repo.git", "rev-parse", "--verify", "-q", "main")
	require.Equal(t, gate.Transformed, g.Log(1)[0].Verdict)
}

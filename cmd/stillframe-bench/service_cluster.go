package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/valyala/fasthttp"

	"stillframe/cluster"
	"stillframe/fsm"
	"stillframe/httpd/client"
	"stillframe/hypervisor"
)

// The figures about accepted intents count answers with 202 to POST /v1/sandbox with "Prefer: respond-async": the
// request has passed TLS, authentication and validation, its Idempotency-Key was looked up and kept, and its intent is
// on a majority's disks and applied. What comes after that (a virtual machine) is not what is measured, and must not
// compete for the processors: placement gives all these sandboxes to an owner that is registered in the state, with
// more memory than any host, and that nobody runs. Everything else is what users run: three processes of the stillframe
// program as it is, with their own logs on disk and their access logs in files, talked to over loopback.

// serviceCluster is three real nodes of the service.
type serviceCluster struct {
	dir     string
	program string
	images  string
	members []cluster.Member
	api     []string
	nodes   []*process
	roots   *x509.CertPool
	key     string
	clients []*fasthttp.HostClient
}

func startServiceCluster(ctx context.Context, dir, images string) (_ *serviceCluster, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &serviceCluster{dir: dir, program: filepath.Join(filepath.Dir(self), "stillframe"), images: images}
	if _, err := os.Stat(c.program); err != nil {
		return nil, fmt.Errorf("the program to measure lies beside this one: %w", err)
	}
	ports, err := freePorts(6)
	if err != nil {
		return nil, err
	}
	for i := range 3 {
		c.members = append(c.members, cluster.Member{
			ID: fsm.NodeID(uuid.NewString()), Name: string(rune('a' + i)), Addr: ports[i],
		})
		c.api = append(c.api, ports[3+i])
	}
	defer func() {
		if err != nil {
			c.stop()
		}
	}()
	if err := cluster.Init(filepath.Join(dir, "pki"), c.members); err != nil {
		return nil, err
	}
	if c.roots, err = writeCertificate(dir); err != nil {
		return nil, err
	}
	c.nodes = make([]*process, 3)
	for i := range 3 {
		if err := c.launch(i); err != nil {
			return nil, err
		}
		c.clients = append(c.clients, &fasthttp.HostClient{
			Addr: c.api[i], IsTLS: true, TLSConfig: &tls.Config{RootCAs: c.roots, MinVersion: tls.VersionTLS13},
			MaxConns: 256, ReadTimeout: time.Minute, WriteTimeout: time.Minute, MaxIdleConnDuration: time.Hour,
			MaxIdemponentCallAttempts: 1,
		})
	}
	for i := range 3 {
		if err := c.awaitReady(ctx, i); err != nil {
			return nil, err
		}
	}
	return c, c.furnish(ctx)
}

// launch starts a node, the same way at every start.
func (c *serviceCluster) launch(i int) (err error) {
	m := c.members[i]
	args := []string{
		c.program, "server", "--cluster", filepath.Join(c.dir, "pki", m.Name), "--data", filepath.Join(c.dir, m.Name),
		"--listen", c.api[i], "--name", m.Name, "--tls-cert", filepath.Join(c.dir, "api.crt"),
		"--tls-key", filepath.Join(c.dir, "api.key"), "--node-lease", "24h",
	}
	if c.images != "" {
		args = append(args, "--images", c.images)
	}
	c.nodes[i], err = start(filepath.Join(c.dir, m.Name+".log"), args...)
	return err
}

func (c *serviceCluster) awaitReady(ctx context.Context, i int) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return c.nodes[i].await(ctx, func() error {
		status, _, err := c.get(i, "/readyz", "")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("status %d", status)
		}
		return err
	})
}

func (c *serviceCluster) stop() {
	var all sync.WaitGroup
	for _, n := range c.nodes {
		all.Go(n.end)
	}
	all.Wait()
}

// furnish makes an organization with a key, and the owner that nobody runs.
func (c *serviceCluster) furnish(ctx context.Context) error {
	admin, err := client.New(client.Config{Socket: filepath.Join(c.dir, "a", "admin.sock"), Attempts: 1})
	if err != nil {
		return err
	}
	defer admin.Close()
	if _, err := admin.CreateOrg(ctx, "bench"); err != nil {
		return err
	}
	key, err := admin.CreateKey(ctx, "bench", "")
	if err != nil {
		return err
	}
	c.key = key.Key
	dir, err := hypervisor.FindImages(c.images)
	if err != nil {
		return err
	}
	images, err := hypervisor.LoadImages(dir)
	if err != nil {
		return err
	}
	owner := fsm.Node{
		ID: "nobody", Name: "nobody", Capacity: fsm.Capacity{VCPU: 1 << 20, MemoryMiB: 1 << 40, DiskMiB: 1 << 40},
		Level: fsm.Level,
	}
	for _, t := range images.Templates {
		owner.Templates = append(owner.Templates, t.Digest)
	}
	if err := c.propose(ctx, fsm.RegisterNode{Now: fsm.At(time.Now()), Node: owner}); err != nil {
		return fmt.Errorf("register the owner that nobody runs: %w", err)
	}
	for i := range 3 {
		err := c.nodes[i].await(ctx, func() error { return c.create(i) })
		if err != nil {
			return fmt.Errorf("node %s: %w", c.members[i].Name, err)
		}
	}
	return nil
}

// propose speaks to the leader as a member of the cluster does: over its port for nodes, with a node's certificate.
func (c *serviceCluster) propose(ctx context.Context, cmd fsm.Command) error {
	data, err := fsm.Encode(cmd)
	if err != nil {
		return err
	}
	folder := filepath.Join(c.dir, "pki", "a")
	cert, err := tls.LoadX509KeyPair(filepath.Join(folder, "node.crt"), filepath.Join(folder, "node.key"))
	if err != nil {
		return err
	}
	leader, err := c.leader(ctx)
	if err != nil {
		return err
	}
	d := tls.Dialer{Config: &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"stillframe-rpc"}, Certificates: []tls.Certificate{cert},
		InsecureSkipVerify: true, //nolint:gosec // a process of this run, on loopback, with a certificate without a host name
	}}
	conn, err := d.DialContext(ctx, "tcp", c.members[leader].Addr)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // one exchange
	in := bufio.NewReader(conn)
	if _, err := in.ReadByte(); err != nil { // that it is accepted
		return err
	}
	url := "http://" + string(c.members[leader].ID) + "/cluster/apply"
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(data))
	if err != nil {
		return err
	}
	if err := req.Write(conn); err != nil {
		return err
	}
	resp, err := http.ReadResponse(in, req)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	raw, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, raw)
	}
	return err
}

// leader waits for a node that leads by its own word.
func (c *serviceCluster) leader(ctx context.Context) (int, error) {
	for {
		for i, n := range c.nodes {
			select {
			case <-n.exited:
				continue
			default:
			}
			var status struct {
				Node  string `json:"node"`
				Nodes []struct {
					ID   string `json:"id"`
					Role string `json:"role"`
				} `json:"nodes"`
			}
			code, body, err := c.get(i, "/v1/cluster", "")
			if err != nil || code != http.StatusOK || json.Unmarshal(body, &status) != nil {
				continue
			}
			for _, m := range status.Nodes {
				if m.ID == status.Node && m.Role == "leader" {
					return i, nil
				}
			}
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// get does a read; consistency may be empty.
func (c *serviceCluster) get(i int, path, consistency string) (int, []byte, error) {
	req, resp := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(resp)
	req.SetRequestURI("https://" + c.api[i] + path)
	req.Header.Set("Authorization", "Bearer "+c.key)
	if consistency != "" {
		req.Header.Set("Stillframe-Consistency", consistency)
	}
	err := c.clients[i].DoTimeout(req, resp, 10*time.Second)
	return resp.StatusCode(), slices.Clone(resp.Body()), err
}

// createBody is a request as a client sends it.
const createBody = `{"template_name":"` + benchTemplate + `","vcpu":1,"memory":512,"timeout":28800,` +
	`"env_vars":{"LANG":"C.UTF-8"},"network_policy":{"mode":"deny-all"}}`

// create has one intent accepted by a node.
func (c *serviceCluster) create(i int) error { return c.createWithin(i, time.Minute) }

func (c *serviceCluster) createWithin(i int, patience time.Duration) error {
	req, resp := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(resp)
	req.Header.SetMethod(http.MethodPost)
	req.SetRequestURI("https://" + c.api[i] + "/v1/sandbox")
	req.Header.Set("Authorization", "Bearer "+c.key)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", uuid.NewString())
	req.Header.Set("Prefer", "respond-async")
	req.SetBodyString(createBody)
	if err := c.clients[i].DoTimeout(req, resp, patience); err != nil {
		return err
	}
	if resp.StatusCode() != http.StatusAccepted {
		return fmt.Errorf("%d %s", resp.StatusCode(), resp.Body())
	}
	return nil
}

// entrySize is how many bytes such a request is in the log.
func entrySize() (int, error) {
	data, err := fsm.Encode(fsm.CreateSandbox{
		Now: fsm.At(time.Now()), Request: fsm.Request{Key: uuid.NewString(), BodyHash: [32]byte{1}},
		Intent: cluster.NewIntentID(), Org: fsm.OrgID("org-" + strings.Repeat("a", 26)), Sandbox: cluster.NewSandboxID(),
		TemplateName: benchTemplate, VCPU: 1, MemoryMiB: 512, DiskMiB: 10240, TimeoutSec: 28800,
		EnvVars: map[string]string{"LANG": "C.UTF-8"}, NetworkPolicy: &fsm.NetworkPolicy{Mode: fsm.PolicyDenyAll},
		CA: make([]byte, 72),
	})
	return len(data), err
}

// writeCertificate makes a certificate for the loopback, and its key, as api.crt and api.key in dir.
func writeCertificate(dir string) (*x509.CertPool, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
	err = errors.Join(
		os.WriteFile(filepath.Join(dir, "api.crt"), certPEM, 0o600),
		os.WriteFile(filepath.Join(dir, "api.key"), keyPEM, 0o600),
	)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return pool, nil
}

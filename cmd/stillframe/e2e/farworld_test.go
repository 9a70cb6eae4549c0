package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"

	"stillframe/netpolicy/farside"
)

// Places in the outside. Every other address is there too; nobody listens, but what arrives is counted.
const (
	outsideResolver = "198.51.100.53"
	outsideWeb      = "203.0.113.10" // what every name resolves to
	listedAddr      = "198.51.100.1" // what policies with allow_cidrs allow
	secondAddr      = "198.51.100.2"
)

// farWorld is the world beyond the node: a resolver that knows every name below .test, and one web server for all of
// them with certificates of an authority that the node trusts, as it would a public one. It keeps the requests that it
// got.
type farWorld struct {
	*farside.World
	caFile string
	caKey  *ecdsa.PrivateKey
	ca     *x509.Certificate

	mu   sync.Mutex
	got  []*http.Request // as they came, without bodies
	stop chan struct{}
}

func newFarWorld(t *testing.T) *farWorld {
	t.Helper()
	o := &farWorld{World: farside.New(t), stop: make(chan struct{})}
	t.Cleanup(func() { close(o.stop) })
	o.makeCA(t)
	pc := o.ListenPacket(outsideResolver + ":53")
	resolver := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(answerName)}
	go func() { _ = resolver.ActivateAndServe() }() // ends with its socket
	quiet := log.New(io.Discard, "", 0)             // a guest that gives up is no news
	plain := &http.Server{Handler: http.HandlerFunc(o.serve), ErrorLog: quiet}
	secure := &http.Server{Handler: plain.Handler, ErrorLog: quiet, TLSConfig: &tls.Config{GetCertificate: o.certificate}}
	lp, ls := o.Listen("0.0.0.0:80"), o.Listen("0.0.0.0:443")
	go func() { _ = plain.Serve(lp) }()
	go func() { _ = secure.ServeTLS(ls, "", "") }()
	t.Cleanup(func() { _ = plain.Close(); _ = secure.Close() })
	return o
}

func answerName(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg).SetReply(q)
	if name := q.Question[0]; name.Qtype == dns.TypeA && strings.HasSuffix(name.Name, ".test.") {
		rr, err := dns.NewRR(name.Name + " 60 IN A " + outsideWeb)
		if err == nil {
			m.Answer = append(m.Answer, rr)
		}
	}
	_ = w.WriteMsg(m)
}

func (o *farWorld) makeCA(t *testing.T) {
	t.Helper()
	var err error
	o.caKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Outside"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().AddDate(-1, 0, 0), NotAfter: time.Now().AddDate(1, 0, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, o.caKey.Public(), o.caKey)
	require.NoError(t, err)
	o.ca, err = x509.ParseCertificate(der)
	require.NoError(t, err)
	o.caFile = filepath.Join(t.TempDir(), "ca.pem")
	block := &pem.Block{Type: "CERTIFICATE", Bytes: der}
	require.NoError(t, os.WriteFile(o.caFile, pem.EncodeToMemory(block), 0o600))
}

func (o *farWorld) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: []string{hello.ServerName},
		NotBefore: time.Now().AddDate(-1, 0, 0), NotAfter: time.Now().AddDate(1, 0, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, o.ca, key.Public(), o.caKey)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// serve answers /drip with a byte now and then for ever, and anything else with a word.
func (o *farWorld) serve(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	o.got = append(o.got, r)
	o.mu.Unlock()
	if r.URL.Path != "/drip" {
		_, _ = fmt.Fprintf(w, "hello from %s\n", r.Host)
		return
	}
	for {
		if _, err := io.WriteString(w, "."); err != nil || http.NewResponseController(w).Flush() != nil {
			return
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-r.Context().Done():
			return
		case <-o.stop:
			return
		}
	}
}

// requests gives what came for a host.
func (o *farWorld) requests(host string) (found []*http.Request) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, r := range o.got {
		if r.Host == host {
			found = append(found, r)
		}
	}
	return found
}

// seen counts the packets that arrived, by where they were for.
func (o *farWorld) seen() map[string]int {
	found := map[string]int{}
	for _, p := range o.Packets() {
		if p.EtherType != 0x0800 {
			found[p.String()]++ // nothing but IPv4 leaves a sandbox
			continue
		}
		found[p.Dst.Addr().String()]++
	}
	return found
}

// newNodeOutside makes a node for which the outside is the internet.
func newNodeOutside(t *testing.T, o *farWorld, args ...string) *node {
	t.Helper()
	args = append(args, "--egress-resolver", netip.MustParseAddr(outsideResolver).String())
	return newNodeWith(t, dataDir, []string{"SSL_CERT_FILE=" + o.caFile}, args...)
}

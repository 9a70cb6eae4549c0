package cluster

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"

	"stillframe/fsm"
)

// server is the TLS side that accepts: any member may connect, for either protocol, and nobody else.
func (id *Identity) server() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{protoRaft, protoRPC},
		ClientAuth: tls.RequireAnyClientCert, // verified below, against the CAs as they are now
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return id.current().cert, nil
		},
		// A resumed session would bring a certificate from before a change.
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := id.verify(cs, x509.ExtKeyUsageClientAuth)
			return err
		},
	}
}

// client is the TLS side that dials a node: the peer must be that node.
func (id *Identity) client(peer fsm.NodeID, proto string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{proto},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return id.current().cert, nil
		},
		// The library's own check would be of a host name, which nodes do not have: VerifyConnection replaces it.
		InsecureSkipVerify: true, //nolint:gosec // see above
		VerifyConnection: func(cs tls.ConnectionState) error {
			got, err := id.verify(cs, x509.ExtKeyUsageServerAuth)
			if err != nil {
				return err
			}
			if got != peer {
				return fmt.Errorf("the peer is node %s, not %s", got, peer)
			}
			if cs.NegotiatedProtocol != proto {
				return fmt.Errorf("the peer does not speak %s", proto)
			}
			return nil
		},
	}
}

// verify checks the peer's certificate against the cluster's CAs and tells which node it is.
func (id *Identity) verify(cs tls.ConnectionState, usage x509.ExtKeyUsage) (fsm.NodeID, error) {
	if len(cs.PeerCertificates) == 0 {
		return "", errors.New("the peer shows no certificate")
	}
	between := x509.NewCertPool()
	for _, c := range cs.PeerCertificates[1:] {
		between.AddCert(c)
	}
	leaf := cs.PeerCertificates[0]
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: id.current().cas, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		return "", err
	}
	return nodeOf(leaf)
}

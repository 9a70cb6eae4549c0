package node

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// certificateAge is how long a certificate that was read is used before its files are looked at again.
const certificateAge = 10 * time.Second

// apiTLS is the TLS of the API's port; nil where it speaks plain HTTP.
func (n *Node) apiTLS() (*tls.Config, error) {
	if (n.cfg.TLSCert == "") != (n.cfg.TLSKey == "") {
		return nil, errors.New("the API's certificate and its key are given together or not at all")
	}
	if n.cfg.TLSCert == "" {
		return nil, nil
	}
	r := &certificates{cert: n.cfg.TLSCert, key: n.cfg.TLSKey}
	if _, err := r.current(); err != nil {
		return nil, fmt.Errorf("the API's certificate: %w", err)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			c, err := r.current()
			if err != nil {
				n.cfg.Logger.Warn("the API's new certificate cannot be used", "error", err)
			}
			return c, nil
		},
	}, nil
}

// certificates reads a certificate and its key from files, again when they change. What cannot be read leaves the last
// good one in use.
type certificates struct {
	cert, key string

	mu      sync.Mutex // guards what follows
	good    *tls.Certificate
	stamps  [2]time.Time // of the files of good
	checked time.Time
}

// current gives the certificate to use, with an error where there is a newer one that cannot be used.
func (r *certificates) current() (*tls.Certificate, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.good != nil && time.Since(r.checked) < certificateAge {
		return r.good, nil
	}
	r.checked = time.Now()
	var stamps [2]time.Time
	for i, path := range []string{r.cert, r.key} {
		info, err := os.Stat(path)
		if err != nil {
			return r.good, err
		}
		stamps[i] = info.ModTime()
	}
	if r.good != nil && stamps == r.stamps {
		return r.good, nil
	}
	c, err := tls.LoadX509KeyPair(r.cert, r.key)
	if err != nil {
		return r.good, err // not taken as read: the two files may be about to agree
	}
	r.good, r.stamps = &c, stamps
	return r.good, nil
}

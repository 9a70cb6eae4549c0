package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"time"
)

const mitmPort = "9080"

// mitmproxy measures the program of that name doing what a transform does, if MITMPROXY says where its mitmdump is. It
// is told to verify nothing and to stream, so that it does the least that it can.
func (e *egressBench) mitmproxy(ctx context.Context) (err error) {
	path := os.Getenv("MITMPROXY")
	if path == "" {
		return nil
	}
	conf, err := os.MkdirTemp("", "mitmproxy")
	if err != nil {
		return err
	}
	defer os.RemoveAll(conf) //nolint:errcheck // a temporary folder
	ctx, stop := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, path, "-q", "--mode", "reverse:https://"+farDirect+":443", "--listen-host", nearHost,
		"--listen-port", mitmPort, "--set", "confdir="+conf, "--set", "ssl_insecure=true", "--set", "stream_large_bodies=1m",
		"--set", "flow_detail=0", "--modify-headers", "/~q/X-Key/value")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		stop()
		return err
	}
	defer func() {
		stop()
		_ = cmd.Wait()
	}()
	if err := listening(ctx, nearHost+":"+mitmPort); err != nil {
		return err
	}
	e.trust.InsecureSkipVerify = true // its certificate is its own
	defer func() { e.trust.InsecureSkipVerify = false }()
	ours, theirs := lane{farByName, webName}, lane{nearHost, webName}
	var times [2][]time.Duration
	err = e.guest.do(func() error {
		for range connects / 4 {
			a, err := e.request(ours, "443", 1)
			if err != nil {
				return err
			}
			b, err := e.request(theirs, mitmPort, 1)
			if err != nil {
				return err
			}
			times[0], times[1] = append(times[0], a), append(times[1], b)
		}
		return nil
	})
	e.compare("egress transform ÷ mitmproxy, request", times[1], times[0], 1, 0)
	if err != nil {
		return err
	}
	return e.carrying("egress transform ÷ mitmproxy, 512 MiB", 1,
		func() (time.Duration, error) { return e.request(theirs, mitmPort, tlsBytes) }, e.secure(ours))
}

// listening waits until a program listens.
func listening(ctx context.Context, addr string) error {
	for range 300 {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp4", addr)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return fmt.Errorf("nothing listens at %s", addr)
}

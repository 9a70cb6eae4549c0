package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"
)

// noopRole is the first argument of a process whose only handler does nothing, with the same HTTP server and the same
// TLS as the service's: what a read can cost at the least.
const noopRole = "no-op"

func noopServer(args []string, in io.Reader, out io.Writer) error {
	flags := flag.NewFlagSet(noopRole, flag.ContinueOnError)
	dir := flags.String("dir", "", "folder with api.crt and api.key")
	if err := flags.Parse(args); err != nil {
		return err
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(*dir, "api.crt"), filepath.Join(*dir, "api.key"))
	if err != nil {
		return err
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
	})
	if err != nil {
		return err
	}
	app := fiber.New(fiber.Config{DisableStartupMessage: true, Immutable: true})
	app.Get("/", func(c *fiber.Ctx) error { return c.SendStatus(fiber.StatusNoContent) })
	if _, err := fmt.Fprintln(out, ln.Addr()); err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, in) // until the run ends
		_ = ln.Close()
	}()
	return app.Listener(ln)
}

// reads measures reads of one sandbox against a handler that does nothing.
func (b *bench) reads(ctx context.Context) (err error) {
	dir, remove, err := b.clusterFolder()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	c, err := startServiceCluster(ctx, dir, b.images)
	if err != nil {
		return err
	}
	defer c.stop()
	noop, err := b.noop(c)
	if err != nil {
		return fmt.Errorf("no-op: %w", err)
	}
	leader, err := c.leader(ctx)
	if err != nil {
		return err
	}
	_, raw, err := c.get(leader, "/v1/sandboxes?page-size=1", "")
	var list struct{ Items []struct{ ID string } }
	if err = errors.Join(err, json.Unmarshal(raw, &list)); err != nil || len(list.Items) == 0 {
		return errors.Join(err, errors.New("there is no sandbox to read"))
	}
	for _, r := range []struct {
		name, consistency string
		node              int
	}{
		{"linearizable read, leader", "", leader}, {"linearizable read, follower", "", (leader + 1) % 3},
		{"stale read, leader", "stale", leader}, {"stale read, follower", "stale", (leader + 1) % 3},
	} {
		got := load(manyClients, b.duration(), func(int) error {
			status, _, err := c.get(r.node, "/v1/sandbox/"+list.Items[0].ID, r.consistency)
			if err == nil && status != fasthttp.StatusOK {
				err = fmt.Errorf("status %d", status)
			}
			return err
		})
		if got.err() != nil {
			return got.err()
		}
		b.addRate(r.name+", 64 clients", got.PerSecond, noop.PerSecond, 0,
			"÷ a handler that does nothing, same server and TLS")
	}
	return nil
}

func (b *bench) noop(c *serviceCluster) (res loadResult, err error) {
	cmd := exec.Command("/proc/self/exe", noopRole, "-dir", c.dir) //nolint:noctx // it ends with its standard input
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return res, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return res, err
	}
	if err := cmd.Start(); err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, in.Close(), cmd.Wait()) }()
	line := bufio.NewScanner(out)
	if !line.Scan() {
		return res, errors.New("the server did not start")
	}
	client := &fasthttp.HostClient{
		Addr: line.Text(), IsTLS: true, TLSConfig: &tls.Config{RootCAs: c.roots, MinVersion: tls.VersionTLS13}, MaxConns: 256,
	}
	defer client.CloseIdleConnections()
	res = load(manyClients, b.duration(), func(int) error {
		status, _, err := client.GetTimeout(nil, "https://"+line.Text()+"/", 10*time.Second)
		if err == nil && status != fasthttp.StatusNoContent {
			err = fmt.Errorf("status %d", status)
		}
		return err
	})
	return res, res.err()
}

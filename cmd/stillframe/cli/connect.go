package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"stillframe/httpd/client"
)

// DefaultData is where a node keeps its data unless told otherwise.
const DefaultData = "/var/lib/stillframe"

// nodeFlags say which node to talk to.
type nodeFlags struct {
	url       string
	keyFile   string
	envFile   string
	wait      time.Duration
	stale     bool // see staleFlag
	staleness client.Staleness
}

// adminFlags say which admin socket to talk to.
type adminFlags struct {
	data   string
	socket string
}

// withNode gives a command and its children the flags that find a node.
func (a *app) withNode(cmd *cobra.Command) *cobra.Command {
	f := cmd.PersistentFlags()
	f.StringVar(&a.node.url, "url", "", "address of the node, as http://HOST:PORT")
	f.StringVar(&a.node.keyFile, "key-file", "", "file that holds the API key")
	f.StringVar(&a.node.envFile, "env-file", "", "file with LEAP0_BASE_URL= and LEAP0_API_KEY= lines, as a node writes it")
	f.DurationVar(&a.node.wait, "wait", 5*time.Minute, "how long to wait for the node's answer")
	return cmd
}

// withAdmin gives a command and its children the flags that find an admin socket.
func (a *app) withAdmin(cmd *cobra.Command) *cobra.Command {
	f := cmd.PersistentFlags()
	data := a.env.Getenv("STILLFRAME_DATA")
	if data == "" {
		data = DefaultData
	}
	f.StringVar(&a.admin.data, "data", data, "the node's data folder, with admin.sock in it")
	f.StringVar(&a.admin.socket, "socket", "", "the admin socket itself, in place of --data")
	return cmd
}

// connect makes the client for a node and a context that ends with --wait.
func (a *app) connect(ctx context.Context) (*client.Client, context.Context, func(), error) {
	if err := a.checkOutput(); err != nil {
		return nil, nil, nil, err
	}
	address, key, err := a.find()
	if err != nil {
		return nil, nil, nil, err
	}
	c, err := client.New(client.Config{BaseURL: address, Key: key, UserAgent: a.userAgent()})
	if err != nil {
		return nil, nil, nil, usageError{errors.New(strings.TrimPrefix(err.Error(), "client: "))}
	}
	if a.node.wait <= 0 {
		return nil, nil, nil, usagef("--wait must be more than zero")
	}
	a.warnPlaintext(address)
	ctx, cancel := context.WithTimeout(ctx, a.node.wait)
	if a.node.stale {
		ctx = client.WithStale(ctx, &a.node.staleness)
	}
	return c, ctx, func() { cancel(); c.Close(); a.tellAge() }, nil
}

// adminWait bounds an answer of the admin socket. An operation on the cluster may take longer: a drain snapshots one
// sandbox after the other.
const (
	adminWait     = time.Minute
	operationWait = 35 * time.Minute
)

// connectAdmin makes the client for the admin socket.
func (a *app) connectAdmin(ctx context.Context) (*client.Client, context.Context, func(), error) {
	return a.connectAdminFor(ctx, adminWait)
}

// connectOperator is connectAdmin for operations on the cluster.
func (a *app) connectOperator(ctx context.Context) (*client.Client, context.Context, func(), error) {
	return a.connectAdminFor(ctx, operationWait)
}

func (a *app) connectAdminFor(
	ctx context.Context, wait time.Duration,
) (*client.Client, context.Context, func(), error) {
	if err := a.checkOutput(); err != nil {
		return nil, nil, nil, err
	}
	socket := a.admin.socket
	if socket == "" {
		socket = filepath.Join(a.admin.data, "admin.sock")
	}
	c, err := client.New(client.Config{Socket: socket, UserAgent: a.userAgent(), Attempts: 1})
	if err != nil {
		return nil, nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	return c, ctx, func() { cancel(); c.Close() }, nil
}

func (a *app) userAgent() string { return "stillframe/" + a.env.Version.Version }

// find looks up address and key. Flags go before the file of --env-file, that before STILLFRAME_*, that before LEAP0_*.
func (a *app) find() (address, key string, err error) {
	file := map[string]string{}
	if a.node.envFile != "" {
		if file, err = a.readEnvFile(a.node.envFile); err != nil {
			return "", "", err
		}
	}
	lookup := func(names ...string) string {
		for _, from := range []func(string) string{func(n string) string { return file[n] }, a.env.Getenv} {
			for _, name := range names {
				if v := from(name); v != "" {
					return v
				}
			}
		}
		return ""
	}
	if address = a.node.url; address == "" {
		address = lookup("STILLFRAME_URL", "LEAP0_BASE_URL")
	}
	if address == "" {
		return "", "", usagef("no node is given: set LEAP0_BASE_URL or STILLFRAME_URL, or use --url or --env-file")
	}
	if a.node.keyFile != "" {
		key, err = a.readKeyFile(a.node.keyFile)
		return address, key, err
	}
	if key = lookup("STILLFRAME_API_KEY", "LEAP0_API_KEY"); key == "" {
		return "", "", errNoKey
	}
	return address, key, nil
}

// readSecret reads a file that holds a key and says aloud when others of the host can read it too.
func (a *app) readSecret(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, usageError{err}
	}
	if info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 {
		fmt.Fprintf(a.env.Err, "stillframe: warning: other users can read the key in %s; chmod 600 it\n", path)
	}
	if info.Size() > 64<<10 {
		return nil, usagef("%s is too large to be a key or environment file", path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, usageError{err}
	}
	return b, nil
}

func (a *app) readKeyFile(path string) (string, error) {
	b, err := a.readSecret(path)
	if err != nil {
		return "", err
	}
	key := strings.TrimSpace(string(b))
	if key == "" || strings.ContainsAny(key, " \t\r\n=") {
		return "", usagef("%s does not hold one API key and nothing else", path)
	}
	return key, nil
}

// readEnvFile reads NAME=VALUE lines as a shell would: # begins a comment line, quotes around a value are dropped.
func (a *app) readEnvFile(path string) (map[string]string, error) {
	b, err := a.readSecret(path)
	if err != nil {
		return nil, err
	}
	values := map[string]string{}
	lines := bufio.NewScanner(strings.NewReader(string(b)))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimPrefix(strings.TrimSpace(lines.Text()), "export ")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok {
			return nil, usagef("%s:%d: not a NAME=VALUE line", path, n)
		}
		if len(value) >= 2 && (value[0] == '"' || value[0] == '\'') && value[len(value)-1] == value[0] {
			value = value[1 : len(value)-1]
		}
		values[strings.TrimSpace(name)] = value
	}
	return values, nil
}

// warnPlaintext says that a key goes over a network without encryption. Loopback is no network.
func (a *app) warnPlaintext(address string) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" || u.Hostname() == "localhost" {
		return
	}
	if ip := net.ParseIP(u.Hostname()); ip != nil && ip.IsLoopback() {
		return
	}
	fmt.Fprintf(a.env.Err, "stillframe: warning: the API key goes to %s unencrypted; use https\n", u.Host)
}

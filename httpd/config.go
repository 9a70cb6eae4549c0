package httpd

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Config is what a Server is made of. Log, Guests, Policies and Secrets are required; the rest has defaults.
type Config struct {
	Addr string // host:port of the API
	// TLS is for the API's port; nil: it speaks plain HTTP. The administration socket never has it.
	TLS         *tls.Config
	AdminSocket string // path of the administration socket; empty: none

	Log      Log
	Guests   Guests
	Policies Policies
	Secrets  Secrets

	// Ready says why the node is not ready to serve, nil when it is. nil: always ready.
	Ready func() error
	// NodeStatus answers GET /v1/node. nil: 501.
	NodeStatus func() NodeStatus
	// ClusterStatus answers GET /v1/cluster, with digests of the nodes' states where asked for. nil: 501.
	ClusterStatus func(ctx context.Context, digest bool) ClusterStatus
	// Operations carries out what operators ask for through the administration socket. nil: it does not offer that.
	Operations Operations
	// Backup takes a backup of the whole replicated state for GET /admin/v1/backup. nil: 501.
	Backup func(ctx context.Context) (io.WriterTo, error)
	// Reseal seals all that the state holds with the newest key. nil: 501.
	Reseal func(ctx context.Context) (Resealed, error)
	// Registry takes the metrics of this package and is what /metrics shows. nil: a new one.
	Registry *prometheus.Registry
	Logger   *slog.Logger // nil: slog.Default
	Version  string       // of this program

	Now             func() time.Time           // nil: time.Now
	NewID           func(prefix string) string // nil: NewID
	NewSnapshotName func() string              // nil: NewSnapshotName

	DefaultDiskMiB int64 // of a new sandbox; 0: 10240

	Limits Limits
}

// Limits bound what one request may take. Zero fields have defaults.
type Limits struct {
	Body       int // bytes of a request's body, and of a file that is read; default 10 MiB
	JSON       int // bytes of a JSON body; default 1 MiB
	Header     int // bytes of the request line and headers together; default 16 KiB
	ExecOutput int // bytes of a command's stdout, and of its stderr; default 4 MiB

	HeaderTimeout time.Duration // to receive the headers; default 10 s
	BodyTimeout   time.Duration // to receive the body; default 60 s
	WriteTimeout  time.Duration // to send the answer; default 60 s
	IdleTimeout   time.Duration // between requests of a connection; default 120 s

	Wait       time.Duration // for a call that waits for a virtual machine; default 120 s
	ExecMargin time.Duration // on top of a command's own timeout; default 10 s
	Data       time.Duration // for a file call; default 60 s
}

func (c Config) withDefaults() Config {
	setDefault(&c.DefaultDiskMiB, 10240)
	setDefault(&c.Limits.Body, 10<<20)
	setDefault(&c.Limits.JSON, 1<<20)
	setDefault(&c.Limits.Header, 16<<10)
	setDefault(&c.Limits.ExecOutput, 4<<20)
	setDefault(&c.Limits.HeaderTimeout, 10*time.Second)
	setDefault(&c.Limits.BodyTimeout, 60*time.Second)
	setDefault(&c.Limits.WriteTimeout, 60*time.Second)
	setDefault(&c.Limits.IdleTimeout, 120*time.Second)
	setDefault(&c.Limits.Wait, 120*time.Second)
	setDefault(&c.Limits.ExecMargin, 10*time.Second)
	setDefault(&c.Limits.Data, 60*time.Second)
	if c.Ready == nil {
		c.Ready = func() error { return nil }
	}
	if c.Registry == nil {
		c.Registry = prometheus.NewRegistry()
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.NewID == nil {
		c.NewID = NewID
	}
	if c.NewSnapshotName == nil {
		c.NewSnapshotName = NewSnapshotName
	}
	return c
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"stillframe/netpolicy"
)

const (
	bridge         = "sfch-br0"
	network        = "10.113.0."
	clientsPerNode = 3
	// recovery bounds how long after the healing everything must be in order again.
	recovery = 60 * time.Second
)

// run is one run of the test.
type run struct {
	o       options
	work    string
	nodes   []*node
	faults  *injector
	history *history
	clients []*clientLoop
	pool    *pool
	pauses  *pauses
	outage  *outage

	workGroups
	went, healed time.Time
	unwatch      context.CancelFunc

	// For the report.
	judged, restored, rechecked, unknowns, policed int
	digested                                       map[string]bool

	mu    sync.Mutex
	wrong []violation
}

type workGroups struct{ tasks, watching sync.WaitGroup }

// violation is an invariant that did not hold.
type violation struct {
	Invariant string `json:"invariant"`
	What      string `json:"what"`
	After     string `json:"after"`
}

// violated notes that an invariant did not hold.
func (r *run) violated(invariant, format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := violation{invariant, fmt.Sprintf(format, args...), time.Since(r.went).Round(time.Millisecond).String()}
	r.wrong = append(r.wrong, v)
	if len(r.wrong) <= 20 {
		fmt.Printf("VIOLATED %s, after %s: %s\n", v.Invariant, v.After, v.What)
	}
}

func (r *run) violations() []violation {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.wrong
}

// random gives a source of random numbers of its own for a part of the run, so that parts do not disturb each other's.
func (r *run) random(part uint64) *rand.Rand { return rand.New(rand.NewPCG(r.o.seed, part)) }

func newRun(o options, work string) (*run, error) {
	if o.nodes != 3 && o.nodes != 5 {
		return nil, fmt.Errorf("%d nodes: 3 or 5 are possible", o.nodes)
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return nil, err
	}
	r := &run{o: o, work: work, pool: newPool(), went: time.Now()}
	r.history = &history{}
	r.pauses = &pauses{dir: filepath.Join(work, "pauses")}
	r.outage = &outage{}
	if err := os.Mkdir(r.pauses.dir, 0o700); err != nil {
		return nil, err
	}
	// Nothing that is mounted in here shows outside.
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return nil, fmt.Errorf("this test needs root: %w", err)
	}
	if err := os.MkdirAll(netpolicy.Dir, 0o755); err != nil {
		return nil, err
	}
	if err := unix.Mount("tmpfs", netpolicy.Dir, "tmpfs", 0, ""); err != nil {
		return nil, err
	}
	for i := range o.nodes {
		r.nodes = append(r.nodes, newNode(r, i))
	}
	r.faults = newInjector(r)
	return r, nil
}

// command runs a program that must succeed.
func command(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%v: %w: %s", args, err, out)
	}
	return nil
}

// start brings up the cluster.
func (r *run) start(ctx context.Context) error {
	for _, args := range [][]string{
		{"ip", "link", "set", "lo", "up"},
		{"ip", "link", "add", bridge, "type", "bridge"},
		{"ip", "addr", "add", network + "1/24", "dev", bridge},
		{"ip", "link", "set", bridge, "up"},
	} {
		if err := command(ctx, args...); err != nil {
			return err
		}
	}
	members := ""
	for i, n := range r.nodes {
		if err := n.prepare(ctx); err != nil {
			return err
		}
		if i > 0 {
			members += ","
		}
		members += n.name + "=" + n.addr + ":7071"
	}
	pki := filepath.Join(r.work, "pki")
	if err := command(ctx, r.program(), "cluster", "init", "--dir", pki, "--nodes", members); err != nil {
		return err
	}
	for _, n := range r.nodes {
		if err := n.launch(); err != nil {
			return err
		}
	}
	for _, n := range r.nodes {
		if err := n.awaitReady(ctx, recovery); err != nil {
			return err
		}
	}
	return r.makeKey(ctx)
}

func (r *run) program() string { return filepath.Join(r.work, "stillframe") }

// makeKey makes the organization and the key that all clients use, and has every node know it.
func (r *run) makeKey(ctx context.Context) error {
	admin := r.nodes[0].admin()
	if a := admin.do(ctx, "POST", "/admin/v1/orgs", map[string]string{"name": "chaos"}, ""); a.status != 201 {
		return fmt.Errorf("make an organization: %s", a)
	}
	a := admin.do(ctx, "POST", "/admin/v1/keys", map[string]string{"org": "chaos", "label": ""}, "")
	var key struct {
		Key string `json:"key"`
	}
	if err := json.Unmarshal(a.body, &key); err != nil || key.Key == "" {
		return fmt.Errorf("make a key: %s", a)
	}
	for _, n := range r.nodes {
		n.api.key = key.Key
		for deadline := time.Now().Add(recovery); ; time.Sleep(50 * time.Millisecond) {
			if a := n.api.do(ctx, "GET", "/v1/sandboxes", nil, ""); a.status == 200 {
				break
			} else if time.Now().After(deadline) {
				return fmt.Errorf("node %s: %s", n.name, a)
			}
		}
	}
	return nil
}

// remove ends everything that is left; the namespaces take the rest along.
func (r *run) remove() {
	if r.unwatch != nil {
		r.unwatch()
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r.faults.heal(ctx)
	for _, n := range r.nodes {
		n.signal(unix.SIGKILL)
	}
	endLeftovers(r.work)
	for _, n := range r.nodes {
		n.unmount()
	}
}

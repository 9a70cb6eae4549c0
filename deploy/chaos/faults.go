package main

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"stillframe/hypervisor"
)

// injector brings faults about, by a schedule that the seed decides, several at a time.
type injector struct {
	r   *run
	rnd *rand.Rand

	mu     sync.Mutex
	counts map[string]int
	live   sync.WaitGroup
	// undo are what heals a fault that is going on, by number.
	undo map[int]func()
	next int
}

func newInjector(r *run) *injector {
	return &injector{r: r, rnd: r.random(1), counts: map[string]int{}, undo: map[int]func(){}}
}

// fault is one kind of fault. It is given a source of chance of its own, brings the fault about, and gives what ends
// it, or nil where there was nothing to do it to.
type fault struct {
	name   string
	weight int
	// lasts bounds how long it goes on, in seconds.
	least, most int
	begin       func(*run, context.Context, *rand.Rand) (end func())
}

var catalogue = []fault{
	{"kill leader", 8, 0, 5, onLeader((*run).kill)},
	{"kill a node", 8, 0, 5, onAny((*run).kill)},
	{"kill an owner at work", 6, 0, 5, func(r *run, _ context.Context, rnd *rand.Rand) func() {
		return r.kill(r.busyOwner(rnd))
	}},
	{"kill all", 2, 0, 3, func(r *run, _ context.Context, _ *rand.Rand) func() { return r.kill(r.nodes...) }},
	{"kill at a step", 14, 3, 8, (*run).killAtStep},
	{"stop a daemon", 6, 3, 10, onAny((*run).stop)},
	{"stop the leader", 4, 3, 10, onLeader((*run).stop)},
	{"cut a node off", 6, 3, 10, onAny((*run).isolate)},
	{"cut the leader off", 4, 3, 10, onLeader((*run).isolate)},
	{"one-way cut", 6, 3, 10, (*run).cutOneWay},
	{"ring", 3, 3, 8, (*run).ring},
	{"lossy network", 6, 3, 10, (*run).loss},
	{"slow network", 5, 3, 10, (*run).slow},
	{"full disk", 4, 3, 8, (*run).fillDisk},
	{"hanging disk", 4, 2, 8, (*run).hangDisk},
	{"rolling restart", 2, 0, 1, (*run).roll},
	{"leadership transfer", 4, 0, 1, (*run).transfer},
	{"kill a VMM", 5, 0, 1, (*run).killVMM},
	{"kill the VMM of a snapshot", 4, 0, 1, (*run).killSnapshottedVMM},
	{"hang a VMM", 5, 3, 8, (*run).hangVMM},
}

// onAny does something to a node by chance, onLeader to the one that leads.
func onAny(do func(*run, ...*node) func()) func(*run, context.Context, *rand.Rand) func() {
	return func(r *run, _ context.Context, rnd *rand.Rand) func() { return do(r, r.anyNode(rnd)) }
}

func onLeader(do func(*run, ...*node) func()) func(*run, context.Context, *rand.Rand) func() {
	return func(r *run, ctx context.Context, rnd *rand.Rand) func() { return do(r, r.leader(ctx, rnd)) }
}

// atOnce bounds how many faults go on at a time.
const atOnce = 3

// run begins faults until the storm is over.
func (i *injector) run(storm context.Context) {
	chosen := i.chosen()
	for storm.Err() == nil {
		pauseFor(storm, time.Duration(300+i.rnd.IntN(2500))*time.Millisecond)
		f := pick(i.rnd, chosen)
		own := rand.New(rand.NewPCG(i.rnd.Uint64(), 7))
		lasts := time.Duration(f.least)*time.Second + time.Duration(own.Int64N(int64(1+f.most-f.least)*int64(time.Second)))
		if storm.Err() != nil || i.going() >= atOnce {
			continue
		}
		i.live.Go(func() { i.bring(storm, f, own, lasts) })
	}
}

func (i *injector) chosen() []fault {
	if i.r.o.only == "" {
		return catalogue
	}
	var out []fault
	for name := range strings.SplitSeq(i.r.o.only, ",") {
		for _, f := range catalogue {
			if f.name == strings.TrimSpace(name) {
				out = append(out, f)
			}
		}
	}
	if len(out) == 0 {
		fmt.Println("chaos: -only names no fault that there is; none is brought about")
		return []fault{{name: "none", weight: 1, begin: func(*run, context.Context, *rand.Rand) func() { return nil }}}
	}
	return out
}

func pick(rnd *rand.Rand, of []fault) fault {
	total := 0
	for _, f := range of {
		total += f.weight
	}
	at := rnd.IntN(total)
	for _, f := range of {
		if at -= f.weight; at < 0 {
			return f
		}
	}
	return of[0]
}

func (i *injector) going() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.undo)
}

// bring brings one fault about and ends it after its time, or when everything is healed.
func (i *injector) bring(storm context.Context, f fault, rnd *rand.Rand, lasts time.Duration) {
	end := f.begin(i.r, storm, rnd)
	if end == nil {
		return
	}
	var once sync.Once
	undo := func() { once.Do(end) }
	i.mu.Lock()
	i.counts[f.name]++
	no := i.next
	i.next++
	i.undo[no] = undo
	i.mu.Unlock()
	pauseFor(storm, lasts)
	undo()
	i.mu.Lock()
	delete(i.undo, no)
	i.mu.Unlock()
}

// heal ends every fault, and starts what does not run.
func (i *injector) heal(ctx context.Context) {
	i.live.Wait() // they end with the storm
	for _, n := range i.r.nodes {
		_ = os.Remove(n.order)
		n.signal(unix.SIGCONT)
		i.r.clean(ctx, n)
		n.restart()
	}
	i.r.eachVMM(func(_ *node, pid int) { _ = unix.Kill(pid, unix.SIGCONT) })
}

// clean takes away what faults have done to a node's network and disk.
func (r *run) clean(ctx context.Context, n *node) {
	_ = command(ctx, "nsenter", "--net=/run/netns/"+n.netns, "iptables", "-w", "-F") // there may be nothing
	_ = command(ctx, "ip", "netns", "exec", n.netns, "tc", "qdisc", "del", "dev", "eth0", "root")
	_ = command(ctx, "fsfreeze", "--unfreeze", n.mount)
	_ = os.RemoveAll(filepath.Join(n.mount, "full"))
}

// restart starts the daemon where it does not run.
func (n *node) restart() {
	n.life.Lock()
	defer n.life.Unlock()
	if n.running() {
		return
	}
	_ = os.Remove(n.order) // an order was for the process that is gone
	if err := n.launch(); err != nil {
		n.r.violated("10 recovery", "node %s cannot be started: %v", n.name, err)
	}
}

func (r *run) anyNode(rnd *rand.Rand) *node { return r.nodes[rnd.IntN(len(r.nodes))] }

// leader gives the node that leads, as the others see it, or one by chance.
func (r *run) leader(ctx context.Context, rnd *rand.Rand) *node {
	asked, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for _, n := range r.nodes {
		members, ok := r.status(asked, n, false)
		for _, m := range members {
			i := slices.IndexFunc(r.nodes, func(n *node) bool { return n.name == m.Name })
			if ok && m.Role == "leader" && i >= 0 {
				return r.nodes[i]
			}
		}
	}
	return r.anyNode(rnd)
}

// busyOwner gives a node that is making a snapshot now, or one by chance.
func (r *run) busyOwner(rnd *rand.Rand) *node {
	for _, n := range r.nodes {
		if tmp, _ := filepath.Glob(filepath.Join(n.dir, "snapshots", "*.tmp")); len(tmp) > 0 {
			return n
		}
	}
	return r.anyNode(rnd)
}

// kill ends daemons by SIGKILL; they are started again at the end.
func (r *run) kill(nodes ...*node) func() {
	var over []func()
	for _, n := range nodes {
		over = append(over, n.impair())
		go n.signal(unix.SIGKILL)
	}
	return func() {
		for i, n := range nodes {
			n.signal(unix.SIGKILL)
			n.restart()
			n.impairedUntilReady(over[i])
		}
	}
}

// impairedUntilReady ends a node's impairment when it serves again: until then it may still be on its way.
func (n *node) impairedUntilReady(over func()) {
	n.r.tasks.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), recovery)
		defer cancel()
		_ = n.awaitReady(ctx, recovery) // who is not ready is found out when everything is healed
		over()
	})
}

// killAtStep has a daemon die at a named step of an intent, before or after it: mostly one between pause and resume.
func (r *run) killAtStep(_ context.Context, rnd *rand.Rand) func() {
	n := r.anyNode(rnd)
	kinds := slices.Sorted(maps.Keys(hypervisor.Steps))
	kind := kinds[rnd.IntN(len(kinds))]
	steps := hypervisor.Steps[kind]
	at := string(kind) + "/" + string(steps[rnd.IntN(len(steps))]) + "/" + []string{"before", "after"}[rnd.IntN(2)]
	if rnd.IntN(2) == 0 {
		inPause := []string{"pause/after", "vm-snapshot/after", "capture/before", "capture/after", "resume/before"}
		at = "snapshot/" + inPause[rnd.IntN(len(inPause))]
	}
	if !n.running() || os.WriteFile(n.order+".new", []byte("kill:"+at), 0o600) != nil ||
		os.Rename(n.order+".new", n.order) != nil {
		return nil
	}
	over := n.impair()
	return func() {
		_ = os.Remove(n.order)
		n.restart()
		n.impairedUntilReady(over)
	}
}

// stop stops daemons without ending them.
func (r *run) stop(nodes ...*node) func() {
	var over []func()
	for _, n := range nodes {
		over = append(over, n.impair())
		n.signal(unix.SIGSTOP)
	}
	return func() {
		for i, n := range nodes {
			n.signal(unix.SIGCONT)
			over[i]()
		}
	}
}

// transfer has the leadership handed over, asked at a node by chance.
func (r *run) transfer(ctx context.Context, rnd *rand.Rand) func() {
	a := r.anyNode(rnd).admin().do(ctx, "POST", "/admin/v1/cluster/transfer", map[string]string{}, "")
	if a.status != http.StatusOK {
		return nil // other faults may be in its way
	}
	return func() {}
}

// rule adds a rule to a node's firewall; the result takes it away.
func (n *node) rule(args ...string) func() {
	run := func(op string) error {
		all := append([]string{"nsenter", "--net=/run/netns/" + n.netns, "iptables", "-w", op}, args...)
		return command(context.Background(), all...)
	}
	if err := run("-A"); err != nil {
		fmt.Println("chaos:", err)
		return func() {}
	}
	return func() { _ = run("-D") } // healing flushes all of them
}

func all(undo []func()) func() {
	return func() {
		for _, u := range undo {
			u()
		}
	}
}

// peers are the other nodes.
func (r *run) peers(of *node) []*node {
	return slices.DeleteFunc(slices.Clone(r.nodes), func(n *node) bool { return n == of })
}

// isolate cuts nodes off from all others, both ways.
func (r *run) isolate(nodes ...*node) func() {
	var undo []func()
	for _, n := range nodes {
		for _, p := range r.peers(n) {
			undo = append(undo, n.rule("INPUT", "-s", p.addr, "-j", "DROP"), n.rule("OUTPUT", "-d", p.addr, "-j", "DROP"))
		}
	}
	return all(undo)
}

// cutOneWay lets a node be heard by the others and not hear them, or the other way.
func (r *run) cutOneWay(_ context.Context, rnd *rand.Rand) func() {
	n := r.anyNode(rnd)
	chain, side := "INPUT", "-s"
	if rnd.IntN(2) == 0 {
		chain, side = "OUTPUT", "-d"
	}
	var undo []func()
	for _, p := range r.peers(n) {
		undo = append(undo, n.rule(chain, side, p.addr, "-j", "DROP"))
	}
	return all(undo)
}

// ring lets each node hear only one neighbour.
func (r *run) ring(context.Context, *rand.Rand) func() {
	var undo []func()
	for i, n := range r.nodes {
		for j, p := range r.nodes {
			if j != i && j != (i+1)%len(r.nodes) {
				undo = append(undo, n.rule("INPUT", "-s", p.addr, "-j", "DROP"))
			}
		}
	}
	return all(undo)
}

// loss drops packets between a node and the others by chance.
func (r *run) loss(_ context.Context, rnd *rand.Rand) func() {
	n := r.anyNode(rnd)
	share := fmt.Sprintf("0.%02d", 5+rnd.IntN(40))
	var undo []func()
	for _, p := range r.peers(n) {
		undo = append(undo, n.rule("INPUT", "-s", p.addr, "-m", "statistic", "--mode", "random", "--probability", share,
			"-j", "DROP"))
	}
	return all(undo)
}

// slow makes what a node sends wait in a narrow line.
func (r *run) slow(ctx context.Context, rnd *rand.Rand) func() {
	n := r.anyNode(rnd)
	rate := fmt.Sprintf("%dkbit", 256<<rnd.IntN(4))
	args := []string{"ip", "netns", "exec", n.netns, "tc", "qdisc"}
	add := append(slices.Clone(args), "replace", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "4kb",
		"latency", "800ms")
	if err := command(context.WithoutCancel(ctx), add...); err != nil {
		fmt.Println("chaos:", err)
		return nil
	}
	return func() {
		_ = command(context.Background(), append(slices.Clone(args), "del", "dev", "eth0", "root")...) // healing repeats it
	}
}

// fillDisk leaves no block free on a node's filesystem.
func (r *run) fillDisk(_ context.Context, rnd *rand.Rand) func() {
	n := r.anyNode(rnd)
	dir := filepath.Join(n.mount, "full")
	if os.Mkdir(dir, 0o700) != nil {
		return nil
	}
	over := n.impair()
	for i, chunk := 0, int64(1<<30); chunk >= 4096; i++ {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			break
		}
		err = unix.Fallocate(int(f.Fd()), 0, 0, chunk)
		_ = f.Close()
		if err != nil {
			chunk /= 2
		}
	}
	return func() {
		_ = os.RemoveAll(dir) // healing repeats it
		over()
	}
}

// hangDisk has every write to a node's filesystem wait.
func (r *run) hangDisk(_ context.Context, rnd *rand.Rand) func() {
	n := r.anyNode(rnd)
	n.life.Lock() // a daemon that waits for its disk cannot be killed
	over := n.impair()
	if err := command(context.Background(), "fsfreeze", "--freeze", n.mount); err != nil {
		n.life.Unlock()
		over()
		return nil
	}
	return func() {
		_ = command(context.Background(), "fsfreeze", "--unfreeze", n.mount) // healing repeats it
		n.life.Unlock()
		n.impairedUntilReady(over)
	}
}

// roll stops and starts every node in its turn, as an upgrade does.
func (r *run) roll(_ context.Context, _ *rand.Rand) func() {
	for _, n := range r.nodes {
		over := n.impair()
		n.signal(unix.SIGTERM)
		n.restart()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		_ = n.awaitReady(ctx, 10*time.Second) // other faults may be going on
		cancel()
		n.impairedUntilReady(over)
	}
	return func() {}
}

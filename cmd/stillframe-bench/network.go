package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"stillframe/netpolicy"
	"stillframe/netpolicy/gate"
	"stillframe/netpolicy/policy"
)

// networkChild says that the process is the one that measures networks, in namespaces of its own: a thousand links and
// the rules of a host are nothing for the machine's own namespace.
const networkChild = "STILLFRAME_BENCH_NETWORK"

// networkFigures has a child measure what a policy costs, and takes over its figures.
func (b *bench) networkFigures(ctx context.Context) error {
	b.say("networks: rules of one, and %d at once", b.networks)
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), networkChild+"="+strconv.Itoa(b.networks))
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
	}
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("measure networks: %w", err)
	}
	var results []Result
	if err := json.Unmarshal(out, &results); err != nil {
		return fmt.Errorf("figures of networks: %w", err)
	}
	for _, r := range results {
		b.add(r)
	}
	return nil
}

// measureNetworks is the child. It writes its figures as JSON.
func measureNetworks(ctx context.Context, number string) error {
	n, err := strconv.Atoi(number)
	if err != nil {
		return err
	}
	if err := ownNamespaces(); err != nil {
		return err
	}
	m := &networkBench{count: n}
	if m.manager, err = m.newManager("bench", 0); err != nil {
		return err
	}
	for _, measure := range []func(context.Context) error{m.one, m.many} {
		if err := measure(ctx); err != nil {
			return err
		}
	}
	return json.NewEncoder(os.Stdout).Encode(m.results)
}

func ownNamespaces() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := os.MkdirAll(netpolicy.Dir, 0o755); err != nil { // as ip-netns makes it
		return err
	}
	if err := unix.Mount("tmpfs", netpolicy.Dir, "tmpfs", 0, ""); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

type networkBench struct {
	count   int
	manager *netpolicy.Manager
	results []Result
}

func (m *networkBench) newManager(instance string, ready int) (*netpolicy.Manager, error) {
	floor := policy.NewFloor(nil, nil, netpolicy.Reserved(netpolicy.DefaultPool))
	g, err := gate.New(gate.Config{Floor: floor})
	if err != nil {
		return nil, err
	}
	return netpolicy.NewManager(netpolicy.Config{
		Instance: instance, Floor: floor, Gate: netpolicy.Through(g), Ready: ready, Interval: time.Hour,
	})
}

// The policy with the most rules that the API takes, and one of names alone.
func rangesPolicy() policy.Policy {
	p := policy.Policy{Mode: policy.ModeCustom}
	for i := range 10 {
		p.AllowCIDRs = append(p.AllowCIDRs, fmt.Sprintf("203.0.%d.0/24", i))
	}
	return p
}

func namesPolicy() policy.Policy {
	return policy.Policy{Mode: policy.ModeCustom, AllowDomains: []string{"example.com", "*.example.org"}}
}

const networkRounds = 20

// one measures a single network against one iptables-restore of the same rules.
func (m *networkBench) one(ctx context.Context) error {
	bare, err := m.bareRestore(ctx)
	if err != nil {
		return err
	}
	readyManager, err := m.newManager("ready", networkRounds)
	if err != nil {
		return err
	}
	for _, c := range []struct {
		name string
		p    policy.Policy
	}{{"10 ranges", rangesPolicy()}, {"names only", namesPolicy()}} {
		if err := readyManager.Fill(ctx); err != nil {
			return err
		}
		took, err := m.creates(ctx, readyManager, c.p)
		if err != nil {
			return err
		}
		m.add("policy on a ready namespace ÷ bare iptables-restore", took, bare, 1, c.name)
		if took, err = m.creates(ctx, m.manager, c.p); err != nil {
			return err
		}
		m.add("network made, policy in force ÷ bare iptables-restore", took, bare, 0, c.name)
	}
	took, err := m.replaces(ctx)
	if err != nil {
		return err
	}
	m.add("policy replaced ÷ bare iptables-restore", took, bare, 0, "10 ranges, tightened")
	return nil
}

func (m *networkBench) add(name string, value, baseline time.Duration, aim float64, note string) {
	r := Result{Name: name, Value: float64(value.Microseconds()) / 1000,
		Baseline: float64(baseline.Microseconds()) / 1000, Unit: "ms", Aim: aim, Note: note}
	m.results = append(m.results, r)
}

// bareRestore is the median time of one iptables-restore of the largest policy's rules in a fresh namespace.
func (m *networkBench) bareRestore(ctx context.Context) (time.Duration, error) {
	rules, err := m.rulesOf(ctx, rangesPolicy())
	if err != nil {
		return 0, err
	}
	var took []time.Duration
	for range networkRounds {
		ns, err := netpolicy.Create(ctx, "bench-bare")
		if err != nil {
			return 0, err
		}
		var t time.Duration
		err = ns.Do(func() error {
			began := time.Now()
			defer func() { t = time.Since(began) }()
			cmd := exec.CommandContext(ctx, "iptables-nft-restore")
			cmd.Stdin = strings.NewReader(rules)
			return cmd.Run()
		})
		if err := errors.Join(err, netpolicy.Destroy(ctx, ns.Name())); err != nil {
			return 0, err
		}
		took = append(took, t)
	}
	return middle(took), nil
}

// rulesOf reads the rules that a policy makes.
func (m *networkBench) rulesOf(ctx context.Context, p policy.Policy) (rules string, err error) {
	n, err := m.manager.Create(ctx, "bench-rules", netpolicy.Spec{ID: "bench-rules", Policy: p}, unwatched)
	if err != nil {
		return "", err
	}
	err = n.Namespace().Do(func() error {
		out, err := exec.CommandContext(ctx, "iptables-nft-save").Output()
		rules = string(out)
		return err
	})
	return rules, errors.Join(err, m.manager.Destroy(ctx, "bench-rules"))
}

func unwatched(string) {}

// creates is the median time that a manager takes to make a network.
func (m *networkBench) creates(ctx context.Context, manager *netpolicy.Manager, p policy.Policy) (time.Duration,
	error,
) {
	var took []time.Duration
	for i := range networkRounds {
		name := "bench-one-" + strconv.Itoa(i)
		began := time.Now()
		_, err := manager.Create(ctx, name, netpolicy.Spec{ID: name, Policy: p}, unwatched)
		took = append(took, time.Since(began))
		if err := errors.Join(err, manager.Destroy(ctx, name)); err != nil {
			return 0, err
		}
	}
	return middle(took), nil
}

func (m *networkBench) replaces(ctx context.Context) (time.Duration, error) {
	p, q := rangesPolicy(), rangesPolicy()
	q.AllowCIDRs = q.AllowCIDRs[1:]
	n, err := m.manager.Create(ctx, "bench-replace", netpolicy.Spec{ID: "bench-replace", Policy: p}, unwatched)
	if err != nil {
		return 0, err
	}
	var took []time.Duration
	for range networkRounds {
		began := time.Now()
		if err := n.Replace(ctx, q, unwatched); err != nil {
			return 0, err
		}
		took = append(took, time.Since(began))
		if err := n.Replace(ctx, p, unwatched); err != nil {
			return 0, err
		}
	}
	return middle(took), m.manager.Destroy(ctx, "bench-replace")
}

func middle(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// many measures as many networks as were asked for at once, against as many bare namespaces with a tap, and a look at
// all of them against reading their rules with iptables-save.
func (m *networkBench) many(ctx context.Context) error {
	bareTime, bareMemory, err := m.all(func(name string) error {
		_, err := netpolicy.Create(ctx, name)
		return err
	})
	if err != nil {
		return err
	}
	if err := m.each(func(name string) error { return netpolicy.Destroy(ctx, name) }); err != nil {
		return err
	}
	time.Sleep(5 * time.Second) // the kernel frees namespaces behind one's back
	fullTime, fullMemory, err := m.all(func(name string) error {
		_, err := m.manager.Create(ctx, name, netpolicy.Spec{ID: name, Policy: rangesPolicy()}, unwatched)
		return err
	})
	if err != nil {
		return err
	}
	note := fmt.Sprintf("%d networks", m.count)
	m.add("all networks, rules and listeners ÷ bare namespaces", fullTime, bareTime, 0, note)
	m.results = append(m.results, Result{Name: "memory of one network ÷ bare namespace", Value: fullMemory,
		Baseline: bareMemory, Unit: "KiB", Note: note + ", of the kernel and the daemon"})
	look, read, err := m.looks(ctx)
	if err != nil {
		return err
	}
	m.add("a look at all networks ÷ iptables-save of all", look, read, 0.05, note)
	return m.each(func(name string) error { return m.manager.Destroy(ctx, name) })
}

func (m *networkBench) each(f func(name string) error) error {
	for i := range m.count {
		if err := f("bench-many-" + strconv.Itoa(i)); err != nil {
			return err
		}
	}
	return nil
}

// all makes one of each name, and gives the time and the memory of each in KiB.
func (m *networkBench) all(create func(name string) error) (time.Duration, float64, error) {
	before, err := held()
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	err = m.each(create)
	took := time.Since(began)
	if err != nil {
		return 0, 0, err
	}
	after, err := held()
	return took, float64(after-before) / float64(m.count), err
}

// held is the memory, in KiB, that the kernel holds for itself, and this process. What virtual machines and files take
// elsewhere is not in it.
func held() (int, error) {
	sum := 0
	for file, keys := range map[string][]string{
		"/proc/meminfo":     {"SUnreclaim:", "KernelStack:", "PageTables:", "VmallocUsed:", "Percpu:"},
		"/proc/self/status": {"VmRSS:"},
	} {
		b, err := os.ReadFile(file)
		if err != nil {
			return 0, err
		}
		for _, key := range keys {
			_, rest, _ := bytes.Cut(b, []byte(key))
			var kib int
			if _, err := fmt.Sscan(string(rest), &kib); err != nil {
				return 0, fmt.Errorf("%s: %s %w", file, key, err)
			}
			sum += kib
		}
	}
	return sum, nil
}

// looks gives the time of one look at all networks, and that of reading the rules of all with the tool.
func (m *networkBench) looks(ctx context.Context) (look, read time.Duration, err error) {
	var took []time.Duration
	for range networkRounds {
		began := time.Now()
		m.manager.Look(ctx)
		took = append(took, time.Since(began))
	}
	began := time.Now()
	sample := min(m.count, 50)
	for i := range sample {
		ns, err := netpolicy.Open("bench-many-" + strconv.Itoa(i))
		if err != nil {
			return 0, 0, err
		}
		if err := ns.Do(exec.CommandContext(ctx, "iptables-nft-save").Run); err != nil {
			return 0, 0, err
		}
	}
	return middle(took), time.Since(began) / time.Duration(sample) * time.Duration(m.count), nil
}

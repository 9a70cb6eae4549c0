package netpolicy_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"stillframe/netpolicy"
	"stillframe/netpolicy/farside"
	"stillframe/netpolicy/policy"
)

// A child is the test binary once more, in the same namespaces, as the daemon that is killed.
const childEnv = "STILLFRAME_NETPOLICY_CHILD"

// errand is what a child is told to do before it kills itself as the step KillAt begins; if there is none, it says
// "done" and waits to be killed.
type errand struct {
	Name    string
	Create  bool // with Old; else it takes the network up with Old and replaces that by New
	Old     policy.Policy
	New     policy.Policy
	KillAt  string
	Ready   int
	Instant bool // say "begun" before the call
}

func TestMain(m *testing.M) {
	if text := os.Getenv(childEnv); text != "" {
		fmt.Fprintln(os.Stderr, "child:", child(text))
		os.Exit(1)
	}
	os.Exit(farside.Main(m))
}

func child(text string) error {
	var e errand
	if err := json.Unmarshal([]byte(text), &e); err != nil {
		return err
	}
	cfg := config()
	cfg.Ready = e.Ready
	m, err := netpolicy.NewManager(cfg)
	if err != nil {
		return err
	}
	ctx := context.Background()
	if e.Ready > 0 {
		go func() { _ = m.Run(ctx) }()
		time.Sleep(time.Duration(e.Ready) * 100 * time.Millisecond) // some of them, or all
	}
	step := func(s string) {
		if s == e.KillAt {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	spec := netpolicy.Spec{ID: e.Name, Policy: e.Old}
	if e.Instant {
		fmt.Println("begun")
	}
	if e.Create {
		_, err = m.Create(ctx, e.Name, spec, step)
	} else {
		var n *netpolicy.Network
		if n, err = m.TakeUp(ctx, e.Name, spec); err == nil {
			err = n.Replace(ctx, e.New, step)
		}
	}
	if err != nil {
		return err
	}
	fmt.Println("done")
	select {}
}

// daemon is a child that runs.
type daemon struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines *bufio.Scanner
}

func start(t *testing.T, e errand) *daemon {
	t.Helper()
	text, err := json.Marshal(e)
	require.NoError(t, err)
	d := &daemon{t: t, cmd: exec.Command("/proc/self/exe")}
	d.cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	d.cmd.Stderr = os.Stderr
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := d.cmd.StdoutPipe()
	require.NoError(t, err)
	d.lines = bufio.NewScanner(out)
	require.NoError(t, d.cmd.Start())
	t.Cleanup(d.kill)
	return d
}

func (d *daemon) says(line string) {
	d.t.Helper()
	require.True(d.t, d.lines.Scan(), "the child ended instead of saying %q", line)
	require.Equal(d.t, line, d.lines.Text())
}

func (d *daemon) kill() {
	_ = d.cmd.Process.Kill()
	_ = d.cmd.Wait()
}

// died waits for the child to have killed itself, which is told by its status.
func (d *daemon) died() {
	d.t.Helper()
	for d.lines.Scan() {
		d.t.Fatalf("the child got past its step: %s", d.lines.Text())
	}
	_ = d.cmd.Wait()
	status, ok := d.cmd.ProcessState.Sys().(syscall.WaitStatus)
	require.True(d.t, ok && status.Signaled() && status.Signal() == syscall.SIGKILL, d.cmd.ProcessState)
}

// uplinks counts the pairs that there are.
func uplinks(t *testing.T) (n int) {
	t.Helper()
	links, err := netlink.LinkList()
	require.NoError(t, err)
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, netpolicy.HostLinkPrefix) {
			n++
		}
	}
	return n
}

// wellAfterwards does what the next start of a daemon does about a sandbox that was being made: makes it again.
func wellAfterwards(t *testing.T, w *farside.World, name string) {
	t.Helper()
	m := newManager(t)
	pools, err := netpolicy.List("sfpool-")
	require.NoError(t, err)
	require.Empty(t, pools, "what was kept ready is still there")
	n, err := m.Create(t.Context(), name, netpolicy.Spec{ID: name, Policy: cidrs("203.0.113.0/24")}, nothing)
	require.NoError(t, err)
	g := farside.NewGuest(t, n.Namespace().Do, netpolicy.TapName)
	fence(t, g)
	passes(t, w, g, farside.Frame{Dst: allowed, Payload: hello()})
	silent(t, w, g, farside.Frame{Dst: denied, Payload: hello()})
	g.Close()
	require.NoError(t, m.Destroy(t.Context(), name))
	require.Eventually(t, func() bool { return uplinks(t) == 0 }, soon, time.Millisecond, "pairs are left")
}

// leaks attaches a guest to whatever there is under a name, and has it try everything that the policy denies.
func leaks(t *testing.T, w *farside.World, name string) {
	t.Helper()
	ns, err := netpolicy.Open(name)
	if err != nil {
		require.ErrorIs(t, err, netpolicy.ErrNotFound)
		return
	}
	g := farside.NewGuest(t, ns.Do, netpolicy.TapName)
	defer g.Close()
	for range 20 {
		for _, f := range []farside.Frame{
			{Dst: denied, Payload: hello()}, {Dst: "169.254.169.254", Payload: hello()},
			{Dst: denied, Protocol: unix.IPPROTO_ICMP, Payload: farside.Echo("x")},
			{Src: "100.126.0.1", Dst: denied, Payload: hello()},
			{EtherType: unix.ETH_P_IPV6, Payload: ipv6(unix.IPPROTO_UDP, "2001:db8::2", "2001:db8::3", hello())},
			{Dst: denied, Protocol: unix.IPPROTO_TCP, Payload: farside.TCP(netpolicy.GuestIP, denied, 5000, 443, 2)},
		} {
			_ = g.Send(f.Bytes()) // a link that is down takes nothing
		}
		time.Sleep(time.Millisecond)
	}
	require.Empty(t, w.Packets())
}

func TestKilledInEveryStepOfCreate(t *testing.T) {
	for _, ready := range []int{0, 2} {
		for _, step := range netpolicy.CreateSteps {
			t.Run(fmt.Sprintf("%s of %d ready", step, ready), func(t *testing.T) {
				w, name := farside.New(t), testName(t)
				start(t, errand{Name: name, Create: true, Old: cidrs("203.0.113.0/24"), KillAt: step, Ready: ready}).died()
				leaks(t, w, name)
				wellAfterwards(t, w, name)
			})
		}
	}
}

func TestKilledAtAnyInstantOfCreate(t *testing.T) {
	for seed := range uint64(25) {
		r := rand.New(rand.NewPCG(seed, 3))
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			w, name := farside.New(t), testName(t)
			d := start(t, errand{Name: name, Create: true, Old: cidrs("203.0.113.0/24"), Ready: r.IntN(3), Instant: true})
			d.says("begun")
			time.Sleep(time.Duration(r.IntN(120_000)) * time.Microsecond)
			d.kill()
			leaks(t, w, name)
			wellAfterwards(t, w, name)
		})
	}
}

// While a policy is replaced there are four kinds of destinations.
const (
	oldOnly = "198.51.100.1"
	newOnly = "198.51.100.2"
	both    = "198.51.100.3"
	neither = "198.51.100.4"
)

// reached tells which destinations a guest reaches.
func reached(t *testing.T, w *farside.World, g *farside.Guest, port uint16) (out []string) {
	t.Helper()
	w.Reset()
	for _, to := range []string{oldOnly, newOnly, both, neither} {
		require.NoError(t, g.Send(farside.Frame{Dst: to, Payload: farside.UDP(port, 4000, "hello")}.Bytes()))
	}
	// There may be no gate. What is refused after them says that they have been dealt with.
	_, err := g.Ask("198.51.100.5:4000", []byte("hello"))
	require.True(t, farside.Refused(err), err)
	seen := map[netip.Addr]bool{}
	for _, p := range w.Packets() {
		seen[p.Dst.Addr()] = true
	}
	for _, to := range []string{oldOnly, newOnly, both, neither} {
		if seen[netip.MustParseAddr(to)] {
			out = append(out, to)
		}
	}
	return out
}

func TestKilledInEveryStepOfReplace(t *testing.T) {
	single := func(addrs ...string) policy.Policy {
		var p []string
		for _, a := range addrs {
			p = append(p, a+"/32")
		}
		return cidrs(p...)
	}
	for name, c := range map[string]struct {
		old, new policy.Policy
		before   []string            // what is reached while old is in force
		at       map[string][]string // what is reached once killed as a step began
		after    []string
	}{
		"tighten": {old: single(oldOnly, both), new: single(both), before: []string{oldOnly, both},
			at: map[string][]string{
				netpolicy.StepTighten: {oldOnly, both}, netpolicy.StepGate: {both}, netpolicy.StepCut: {both},
				netpolicy.StepLoosen: {both},
			}, after: []string{both}},
		"loosen": {old: single(both), new: single(both, newOnly), before: []string{both},
			at: map[string][]string{
				netpolicy.StepTighten: {both}, netpolicy.StepGate: {both}, netpolicy.StepCut: {both},
				netpolicy.StepLoosen: {both},
			}, after: []string{newOnly, both}},
		"both": {old: single(oldOnly, both), new: single(newOnly, both), before: []string{oldOnly, both},
			at: map[string][]string{
				netpolicy.StepTighten: {oldOnly, both}, netpolicy.StepGate: {both}, netpolicy.StepCut: {both},
				netpolicy.StepLoosen: {both},
			}, after: []string{newOnly, both}},
		"deny": {old: single(oldOnly, both), new: denyAll, before: []string{oldOnly, both},
			at: map[string][]string{
				netpolicy.StepTighten: {oldOnly, both}, netpolicy.StepGate: nil, netpolicy.StepCut: nil,
				netpolicy.StepLoosen: nil,
			}},
	} {
		t.Run(name, func(t *testing.T) {
			w, ns := farside.New(t), testName(t)
			m := newManager(t)
			n, err := m.Create(t.Context(), ns, netpolicy.Spec{ID: ns, Policy: c.old}, nothing)
			require.NoError(t, err)
			g := guestOf(t, n)
			fence(t, g)
			require.NoError(t, m.Close())
			for i, step := range netpolicy.ReplaceSteps {
				port := uint16(6000 + i) // one connection through all of it
				require.Equal(t, c.before, reached(t, w, g, port), "before %s", step)
				start(t, errand{Name: ns, Old: c.old, New: c.new, KillAt: step}).died()
				require.Equal(t, c.at[step], reached(t, w, g, port), "killed at %s", step)

				// The next start goes on to the new one, or back, whichever the log says.
				d := start(t, errand{Name: ns, Old: c.old, New: c.new})
				d.says("done")
				d.kill()
				require.Equal(t, c.after, reached(t, w, g, port), "after %s", step)
				m := newManager(t)
				_, err := m.TakeUp(t.Context(), ns, netpolicy.Spec{ID: ns, Policy: c.old})
				require.NoError(t, err)
				require.NoError(t, m.Close())
			}
		})
	}
}

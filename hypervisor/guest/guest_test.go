package guest_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"stillframe/hypervisor/guest"
	"stillframe/hypervisor/guest/agent"
	"stillframe/hypervisor/guest/clock"
	"stillframe/netpolicy"
)

const patience = time.Minute // for what must happen at some time

// Two packages name the same addresses, as neither may import the other.
func TestAddressesAgree(t *testing.T) {
	require.Equal(t,
		[]string{netpolicy.HostIP, netpolicy.GuestIP, netpolicy.HostMAC, netpolicy.GuestMAC},
		[]string{guest.HostIP, guest.GuestIP, guest.HostMAC, guest.GuestMAC})
	require.Equal(t, []int{netpolicy.AgentPort, netpolicy.ClockPort}, []int{guest.Port, guest.ClockPort})
	require.Equal(t, net.JoinHostPort(guest.GuestIP, strconv.Itoa(guest.Port)), guest.Addr)
}

// TestGuest boots one machine and uses it for everything that leaves it usable.
func TestGuest(t *testing.T) {
	v := boot(t, "system-busybox")
	for _, tc := range []struct {
		name string
		test func(*testing.T, *vm)
	}{
		{"root", testRoot},
		{"network", testNetwork},
		{"agent is out of reach in the guest", testAgentOutOfReach},
		{"commands", testCommands},
		{"orphans are reaped", testReaping},
		{"files", testFiles},
		{"identity", testIdentity},
		{"agent is started again", testAgentRestart},
		{"stillness", testStillness},
		{"counter", testCounter},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.test(t, v) })
	}
}

func testRoot(t *testing.T, v *vm) {
	mounts := v.sh(t, "cat /proc/mounts")
	for _, want := range []string{
		"sandbox / overlay rw", "proc /proc proc", "sys /sys sysfs", "cgroup2 /sys/fs/cgroup cgroup2", "devpts /dev/pts",
		"run /run tmpfs", "tmp /tmp tmpfs", "shm /dev/shm tmpfs",
	} {
		require.Contains(t, mounts, want)
	}
	require.NotContains(t, mounts, "/dev/vd", "the layers are not in the tree")
	for _, initramfs := range []string{"/init", "/modules", "/newroot", "/base", "/overlay"} {
		exists, err := v.client.Exists(t.Context(), initramfs)
		require.NoError(t, err)
		require.False(t, exists, initramfs)
	}
	v.sh(t, "echo x > /etc/changed && rm /etc/group && sync")
	require.Equal(t, "/home/user\n", v.sh(t, "pwd"))
	require.Equal(t, "stillframe\n", v.sh(t, "cat /proc/$PPID/comm"))
}

func testNetwork(t *testing.T, v *vm) {
	require.Contains(t, v.sh(t, "ip addr show eth0"), "inet 10.111.0.2/30")
	require.Contains(t, v.sh(t, "ip route"), "default via 10.111.0.1 dev eth0")
	require.Contains(t, v.sh(t, "ip neigh"), "10.111.0.1 dev eth0 lladdr "+guest.HostMAC)
	require.Equal(t, "nameserver 10.111.0.1\n", v.sh(t, "cat /etc/resolv.conf"))
	require.Empty(t, v.sh(t, "cat /proc/net/if_inet6 2>/dev/null || true"), "no IPv6")
	v.sh(t, "ping -c 1 -W 10 127.0.0.1")
	// The node's own ports are in another namespace: nothing listens where the guest looks.
	require.Contains(t, v.sh(t, "nc -w 10 10.111.0.1 22 </dev/null 2>&1 || true"), "refused")
	v.sh(t, "! ping -c 1 -W 1 192.0.2.1")
}

func testAgentOutOfReach(t *testing.T, v *vm) {
	for addr, says := range map[string]string{
		guest.GuestIP: "error getting response", // closed by the agent, as it comes from another address than the node's
		"127.0.0.1":   "refused",
		"0.0.0.0":     "refused",
	} {
		out := v.sh(t, "wget -q -O - http://"+addr+":1031/v1/health 2>&1 || true")
		require.Contains(t, out, says, addr)
		require.NotContains(t, out, "version", addr)
	}
	out := v.sh(t, "ip addr add 10.9.9.9/32 dev eth0; wget -q -O - http://10.9.9.9:1031/v1/health 2>&1 || true; "+
		"ip addr del 10.9.9.9/32 dev eth0")
	require.Contains(t, out, "refused")

	// Over the tap, but not from the node's address: accepted by the kernel, closed by the agent without a word.
	var conn net.Conn
	require.NoError(t, v.ns.Do(func() error {
		tap, err := netlink.LinkByName(netpolicy.TapName)
		if err != nil {
			return err
		}
		other := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 9, 9, 1).To4(), Mask: net.CIDRMask(32, 32)}}
		if err := netlink.AddrAdd(tap, other); err != nil {
			return err
		}
		d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: other.IP}}
		conn, err = d.DialContext(t.Context(), "tcp4", guest.Addr)
		return err
	}))
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	_, _ = io.WriteString(conn, "GET /v1/health HTTP/1.0\r\n\r\n")
	answer, _ := io.ReadAll(conn) // a reset is as good as an end
	require.Empty(t, answer)
}

func testCommands(t *testing.T, v *vm) {
	res, err := v.client.Exec(t.Context(), guest.ExecRequest{Command: "echo out; echo err >&2; exit 3"})
	require.NoError(t, err)
	require.Equal(t, 3, res.ExitCode)
	require.Equal(t, "out\n", string(res.Stdout))
	require.Equal(t, "err\n", string(res.Stderr))

	res, err = v.client.Exec(t.Context(), guest.ExecRequest{
		Command: "sleep 3600 & echo so far; sleep 3600", Timeout: 500 * time.Millisecond,
	})
	require.NoError(t, err)
	require.True(t, res.TimedOut)
	require.Equal(t, 137, res.ExitCode)
	require.Equal(t, "so far\n", string(res.Stdout))
	require.Eventually(t, func() bool { return v.sh(t, "pgrep -x -f 'sleep 3600' || true") == "" }, patience, time.Second)

	res, err = v.client.Exec(t.Context(), guest.ExecRequest{Command: "sleep 600 & echo $!", Timeout: 10 * time.Minute})
	require.NoError(t, err)
	v.sh(t, "kill "+string(res.Stdout)) // it lives, and did not hold the answer

	res, err = v.client.Exec(t.Context(), guest.ExecRequest{Command: "head -c 9000000 /dev/zero", Timeout: patience})
	require.NoError(t, err)
	require.True(t, res.StdoutTruncated)
	require.Len(t, res.Stdout, guest.DefaultMaxOutput)

	var out bytes.Buffer
	res, err = v.client.ExecStream(t.Context(), guest.ExecRequest{Command: "seq 1000; exit 5"}, &out, io.Discard)
	require.NoError(t, err)
	require.Equal(t, 5, res.ExitCode)
	require.Equal(t, 3893, out.Len())

	_, err = v.client.Exec(t.Context(), guest.ExecRequest{Argv: []string{"no-such-program"}})
	require.Equal(t, guest.CodeNotFound, guest.CodeOf(err))

	status := v.sh(t, "grep -E '^(SigIgn|SigBlk)' /proc/self/status; cat /proc/self/oom_score_adj; umask")
	require.Equal(t, []string{"SigBlk:", strings.Repeat("0", 16), "SigIgn:", strings.Repeat("0", 16), "0", "0022"},
		strings.Fields(status), "an ordinary process")
}

func testReaping(t *testing.T, v *vm) {
	v.sh(t, "for i in 1 2 3 4 5 6 7 8; do (sleep 0.1 &) ; done")
	require.Eventually(t, func() bool {
		return strings.TrimSpace(v.sh(t, "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l")) == "0" &&
			v.sh(t, "pgrep -x sleep || true") == ""
	}, patience, 200*time.Millisecond)
}

func testFiles(t *testing.T, v *vm) {
	big := make([]byte, 4<<20)
	_, _ = rand.Read(big)
	const p = "/workspace/a/b/big file"
	require.NoError(t, v.client.WriteFile(t.Context(), p, 0o640, bytes.NewReader(big)))
	r, err := v.client.ReadFile(t.Context(), guest.ReadFileRequest{Path: p})
	require.NoError(t, err)
	got, err := io.ReadAll(r)
	require.NoError(t, err)
	require.NoError(t, r.Close())
	require.True(t, bytes.Equal(big, got))

	st, err := v.client.Stat(t.Context(), p)
	require.NoError(t, err)
	require.Equal(t, []any{int64(len(big)), "640", "root"}, []any{st.Size, st.Mode, st.Owner})
	st, err = v.client.Stat(t.Context(), "/home/user")
	require.NoError(t, err)
	require.Equal(t, "user", st.Owner, "by the template's own accounts")
	items, err := v.client.Ls(t.Context(), guest.LsRequest{Path: "/workspace", Recursive: true})
	require.NoError(t, err)
	require.Len(t, items, 3)
	require.NoError(t, v.client.Move(t.Context(), guest.TransferRequest{Src: p, Dst: "/tmp/moved"})) // another file system
	exists, err := v.client.Exists(t.Context(), p)
	require.NoError(t, err)
	require.False(t, exists)
	require.NoError(t, v.client.Delete(t.Context(), guest.DeleteRequest{Path: "/tmp/moved"}))
	err = v.client.WriteFile(t.Context(), "/proc/no-such", 0, strings.NewReader("x"))
	require.NotEmpty(t, guest.CodeOf(err))
}

func testIdentity(t *testing.T, v *vm) {
	_, err := v.client.SetIdentity(t.Context(), guest.Identity{SandboxID: "not a label"})
	require.Equal(t, guest.CodeInvalid, guest.CodeOf(err))
	_, err = v.client.SetIdentity(t.Context(), guest.Identity{SandboxID: "sbx-one", Seed: []byte("short")})
	require.Equal(t, guest.CodeInvalid, guest.CodeOf(err))

	id := guest.Identity{
		SandboxID: "sbx-one", UnixNano: time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC).UnixNano(),
		Env: map[string]string{"GREETING": "hello there"},
	}
	one, err := v.client.SetIdentity(t.Context(), id)
	require.NoError(t, err)
	require.True(t, one.Changed && one.Reseeded)
	require.Equal(t, guest.SeedSize, one.SeedBytes)
	require.Positive(t, one.ClockStep)
	require.Equal(t, "2031-05-06 07", v.sh(t, "date -u '+%Y-%m-%d %H' | tr -d '\\n'"))
	require.Equal(t, "sbx-one "+one.MachineID+" sbx-one hello there\n",
		v.sh(t, "echo $(hostname) $(cat /etc/machine-id) $(cat /etc/hostname) $GREETING"))
	v.sh(t, "ping -c 1 -W 10 sbx-one")

	again, err := v.client.SetIdentity(t.Context(), guest.Identity{SandboxID: "sbx-one"})
	require.NoError(t, err)
	require.False(t, again.Changed)
	require.Equal(t, []any{one.MachineID, one.Generation}, []any{again.MachineID, again.Generation})
	require.Negative(t, again.ClockStep, "the time is the node's again")
	require.Equal(t, "hello there\n", v.sh(t, "echo $GREETING"), "kept when not given")

	two, err := v.client.SetIdentity(t.Context(), guest.Identity{SandboxID: "sbx-two", Env: map[string]string{}})
	require.NoError(t, err)
	require.True(t, two.Changed)
	require.NotEqual(t, one.MachineID, two.MachineID)
	require.Equal(t, one.Generation+1, two.Generation)
	require.Equal(t, "sbx-two\n", v.sh(t, "echo $GREETING$(hostname)"))
	var public struct {
		SandboxID string `json:"sandbox_id"`
	}
	require.NoError(t, json.Unmarshal([]byte(v.sh(t, "cat /run/stillframe/identity")), &public))
	require.Equal(t, "sbx-two", public.SandboxID)
	h, err := v.client.Health(t.Context())
	require.NoError(t, err)
	require.Equal(t, "sbx-two", h.SandboxID)

	// An authority to trust, in an image that has no store of them.
	require.Empty(t, v.sh(t, "env | grep _CA_ || true"))
	_, err = v.client.SetIdentity(t.Context(), guest.Identity{SandboxID: "sbx-two", CAPEM: "no certificate"})
	require.Equal(t, guest.CodeInvalid, guest.CodeOf(err))
	ca := newCA(t)
	trusted, err := v.client.SetIdentity(t.Context(), guest.Identity{SandboxID: "sbx-two", CAPEM: ca})
	require.NoError(t, err)
	require.NotEmpty(t, trusted.CA)
	require.Equal(t, ca, v.sh(t, "cat $SSL_CERT_FILE"))
	kept, err := v.client.SetIdentity(t.Context(), guest.Identity{SandboxID: "sbx-two"})
	require.NoError(t, err)
	require.Equal(t, trusted.CA, kept.CA)
	require.Equal(t, ca, v.sh(t, "cat $CURL_CA_BUNDLE"))
}

func testAgentRestart(t *testing.T, v *vm) {
	_, err := v.client.SetIdentity(t.Context(), guest.Identity{SandboxID: "sbx-three", Env: map[string]string{"A": "b"}})
	require.NoError(t, err)
	_, err = v.client.Exec(t.Context(), guest.ExecRequest{Command: "kill -9 $PPID"})
	require.ErrorIs(t, err, guest.ErrUnreachable)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	h, err := v.client.WaitHealthy(ctx)
	require.NoError(t, err)
	require.Equal(t, "sbx-three", h.SandboxID)
	require.Equal(t, "b\n", v.sh(t, "echo $A"))
	v.sh(t, "kill -TERM 1; kill -INT 1; kill -HUP 1; sleep 1") // and the machine is still there
}

// The machine is stopped for a known time, which the measurement inside it has to find.
func testStillness(t *testing.T, v *vm) {
	var socket net.PacketConn
	require.NoError(t, v.ns.Do(func() (err error) {
		socket, err = net.ListenPacket("udp4", net.JoinHostPort(guest.HostIP, strconv.Itoa(guest.ClockPort)))
		return err
	}))
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- clock.Serve(ctx, socket) }()
	defer func() {
		cancel()
		require.NoError(t, <-served)
	}()
	v.sh(t, "stillframe-guest stillness -for 6s -file /dev/shm/progress > /dev/shm/report &")
	require.Eventually(t, func() bool {
		exists, err := v.client.Exists(t.Context(), "/dev/shm/progress")
		return err == nil && exists
	}, patience, 10*time.Millisecond)
	const still = 1500 * time.Millisecond
	require.NoError(t, v.process.Signal(syscall.SIGSTOP))
	time.Sleep(still)
	require.NoError(t, v.process.Signal(syscall.SIGCONT))
	var report agent.StillnessReport
	require.Eventually(t, func() bool {
		out := v.sh(t, "cat /dev/shm/report")
		return out != "" && json.Unmarshal([]byte(out), &report) == nil
	}, patience, 100*time.Millisecond)
	t.Logf("%+v", report)
	require.GreaterOrEqual(t, report.LargestGap, still)
	require.Less(t, report.MedianGap, still)
	require.Greater(t, report.Samples, 10)
}

func testCounter(t *testing.T, v *vm) {
	v.sh(t, "stillframe-guest counter -every 5ms -file /dev/shm/n & echo $! > /dev/shm/pid")
	read := func() int {
		fields := strings.Fields(v.sh(t, "cat /dev/shm/n 2>/dev/null || true"))
		if len(fields) != 3 {
			return 0
		}
		n, err := strconv.Atoi(fields[0])
		require.NoError(t, err)
		return n
	}
	var first int
	require.Eventually(t, func() bool { first = read(); return first > 0 }, patience, 10*time.Millisecond)
	require.Eventually(t, func() bool { return read() > first }, patience, 10*time.Millisecond)
	v.sh(t, "kill $(cat /dev/shm/pid)")
}

func TestDebianTemplate(t *testing.T) {
	v := boot(t, "debian-bookworm")
	_, err := v.client.SetIdentity(t.Context(), guest.Identity{SandboxID: "sbx-debian"})
	require.NoError(t, err)
	require.Contains(t, v.sh(t, "cat /etc/os-release"), "VERSION_CODENAME=bookworm")
	require.Equal(t, "42\n", v.sh(t, "python3 -c 'import json, ssl, sqlite3; print(6 * 7)'"))
	v.sh(t, "git init -q /workspace/repo && curl --version && test -s /etc/ssl/certs/ca-certificates.crt && ps")
	require.Equal(t, "user user 1000\n", v.sh(t, "echo $(stat -c '%U %G %u' /home/user)"))
	require.Equal(t, "sbx-debian\n", v.sh(t, "hostname"))
	testDebianTrusts(t, v)
}

// testDebianTrusts: every way in which a program on Debian finds whom to trust leads to the sandbox's authority too,
// and public ones are still trusted.
func testDebianTrusts(t *testing.T, v *vm) {
	ca := newCA(t)
	id := guest.Identity{SandboxID: "sbx-debian", CAPEM: ca, Env: map[string]string{"GIT_SSL_CAINFO": "/mine"}}
	for range 2 {
		got, err := v.client.SetIdentity(t.Context(), id)
		require.NoError(t, err)
		sum := sha256.Sum256([]byte(ca))
		require.Equal(t, hex.EncodeToString(sum[:]), got.CA)
	}
	require.NoError(t, v.client.WriteFile(t.Context(), "/dev/shm/ca.pem", 0o600, strings.NewReader(ca)))
	const bundle = "/etc/ssl/certs/ca-certificates.crt"
	for name, want := range map[string]string{
		"SSL_CERT_FILE": bundle, "REQUESTS_CA_BUNDLE": bundle, "CURL_CA_BUNDLE": bundle, "AWS_CA_BUNDLE": bundle,
		"NODE_EXTRA_CA_CERTS": "/run/stillframe/ca.crt", "GIT_SSL_CAINFO": "/mine", // what the sandbox was given comes first
	} {
		require.Equal(t, want+"\n", v.sh(t, "echo $"+name), name)
	}
	v.sh(t, "cmp /dev/shm/ca.pem $NODE_EXTRA_CA_CERTS")
	// By the file, by the folder (as a program without the variables does), and where the store is made anew from.
	v.sh(t, "openssl verify -no-CApath -CAfile $SSL_CERT_FILE /dev/shm/ca.pem")
	v.sh(t, "env -i /usr/bin/openssl verify /dev/shm/ca.pem")
	v.sh(t, "env -i /usr/bin/python3 -c '"+
		"import ssl; c = ssl.create_default_context(cafile=\""+bundle+"\"); assert len(c.get_ca_certs()) > 100'")
	v.sh(t, "cmp /dev/shm/ca.pem /usr/local/share/ca-certificates/stillframe.crt")
}

// newCA makes the certificate of an authority, in PEM form.
func newCA(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Test Authority"},
		IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().AddDate(-1, 0, 0), NotAfter: time.Now().AddDate(1, 0, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// A machine that cannot be brought up says why and goes away, instead of hanging half made.
func TestBootWithoutOverlayPowersOff(t *testing.T) {
	v := start(t, "system-busybox", "base")
	select {
	case <-v.ended:
	case <-time.After(3 * time.Minute):
		t.Fatal("still there")
	}
	require.Contains(t, v.console(), `boot failed: disks: no disk with serial "overlay"`)
}

package vmmtest

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"stillframe/hypervisor/vmm"
)

func itoa(n uintptr) string { return strconv.FormatUint(uint64(n), 10) }

func digest(t *testing.T, path string) [32]byte {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Close()) }()
	h := sha256.New()
	_, err = io.Copy(h, f)
	require.NoError(t, err)
	return [32]byte(h.Sum(nil))
}

func TestKilledVMMLeavesNothing(t *testing.T) {
	forEachVMM(t, func(t *testing.T, binary string) {
		v := startVMM(t, binary)
		cfg := v.config()
		v.boot(cfg)
		children := childrenOf(t, v.proc.Record().PID)
		t.Logf("children: %v", children)
		require.NoError(t, v.proc.Kill(within(t, time.Minute)))
		requireGone(t, children)
		require.Equal(t, "signal: killed", v.proc.ExitStatus())

		// Its socket is stale and in the way of nobody; its disk is not locked any more.
		again := startVMM(t, binary, func(o *vmm.StartOptions) { o.SocketPath = v.path("vmm.sock") })
		require.NoError(t, again.api.Create(within(t, time.Minute), cfg))
		require.NoError(t, again.api.Boot(within(t, time.Minute)))
	})
}

func TestTerminatedVMMEndsItsVM(t *testing.T) {
	forEachVMM(t, func(t *testing.T, binary string) {
		v := startVMM(t, binary)
		v.boot(v.config())
		children := childrenOf(t, v.proc.Record().PID)
		require.NoError(t, unix.Kill(v.proc.Record().PID, unix.SIGTERM))
		requireExit(t, v)
		requireGone(t, children)
	})
}

func TestSocketInUseIsRefused(t *testing.T) {
	forEachVMM(t, func(t *testing.T, binary string) {
		v := startVMM(t, binary)
		// A second one would answer pings of the first: look at its own end instead of waiting for an answer.
		cmd := exec.Command(binary, "--api-socket", "path=vmm.sock")
		cmd.Dir = v.dir
		ended := make(chan error, 1)
		require.NoError(t, cmd.Start())
		go func() { ended <- cmd.Wait() }()
		select {
		case err := <-ended:
			require.Error(t, err)
		case <-time.After(patience(30 * time.Second)):
			require.NoError(t, cmd.Process.Kill())
			<-ended
			t.Fatal("it serves the socket of another VMM")
		}
		ping, err := v.api.Ping(within(t, time.Minute))
		require.NoError(t, err)
		require.Equal(t, v.proc.Record().PID, ping.PID)
	})
}

func TestDiskHasOneWriter(t *testing.T) {
	forEachVMM(t, func(t *testing.T, binary string) {
		first := startVMM(t, binary)
		first.boot(first.config())
		second := startVMM(t, binary)
		cfg := second.config()
		cfg.Disks[0].Path = first.disk()
		require.NoError(t, second.api.Create(within(t, time.Minute), cfg))
		requireRefused(t, second.api.Boot(within(t, time.Minute)), 500)
		require.NoError(t, second.api.Delete(within(t, time.Minute)))

		// But many readers: the base image of a template is shared.
		base := first.path("base")
		makeFile(t, base, diskSize)
		for range 2 {
			v := startVMM(t, binary)
			cfg := v.config()
			cfg.Disks = append(cfg.Disks, vmm.Disk{
				ID: "base", Path: base, Serial: "base", ReadOnly: true, ImageType: vmm.ImageRaw,
			})
			require.NoError(t, v.api.Create(within(t, time.Minute), cfg))
			require.NoError(t, v.api.Boot(within(t, time.Minute)))
		}
		first.awaitMore()
		requireWhole(t, first.serialBytes())
	})
}

func TestGuestThatPowersOffEndsTheVMM(t *testing.T) {
	forEachVMM(t, func(t *testing.T, binary string) {
		v := startVMM(t, binary)
		v.boot(v.config(wordPowerOff + "10"))
		requireExit(t, v)
		require.Equal(t, "exit status 0", v.proc.ExitStatus())
		all := v.ticks()
		require.Equal(t, uint64(10), all[len(all)-1].number)
	})
}

func TestGuestThatResetsIsBootedAgain(t *testing.T) {
	forEachVMM(t, func(t *testing.T, binary string) {
		v := startVMM(t, binary)
		v.boot(v.config(wordReset + "40"))
		first := v.ticks()[0].nonce
		require.Eventually(t, func() bool {
			all := v.ticks()
			return len(all) > 0 && all[len(all)-1].nonce != first
		}, patience(2*time.Minute), 20*time.Millisecond, "no new guest in the serial file")
		require.True(t, v.proc.Alive())
		v.requireState(vmm.StateRunning)
	})
}

// diskFull takes a snapshot where there is no room. The VMM may say so or not; what it must not do is to leave the VM
// unusable, and what it wrote must be recognizable as broken.
func diskFull(t *testing.T, v *vm) {
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16k"))
	defer func() { require.NoError(t, unix.Unmount(dir, 0)) }()
	v.pause()
	err := v.snapshot(dir)
	if err == nil {
		_, err = vmm.CheckSnapshot(dir)
	}
	require.Error(t, err)
	t.Logf("refused as it should be: %v", err)
	v.requireState(vmm.StatePaused)
	v.resume()
	v.awaitMore()
}

const (
	starterEnv = "STILLFRAME_VMMTEST_STARTER"
	recordFile = "record.json"
)

// runStarter is the process that starts a VMM and then dies like a killed daemon.
func runStarter() int {
	dir, binary := os.Getenv(starterEnv), os.Args[1]
	ctx, cancel := context.WithTimeout(context.Background(), patience(time.Minute))
	defer cancel()
	p, err := vmm.Start(ctx, vmm.StartOptions{
		Binary: binary, Dir: dir, SocketPath: filepath.Join(dir, "vmm.sock"), LogPath: filepath.Join(dir, "vmm.log"),
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	raw, err := json.Marshal(p.Record())
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, recordFile), raw, 0o600)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	select {}
}

func TestVMMOutlivesItsStarter(t *testing.T) {
	forEachVMM(t, func(t *testing.T, binary string) {
		dir := t.TempDir()
		self, err := os.Executable()
		require.NoError(t, err)
		cmd := exec.Command(self, binary)
		cmd.Env = append(os.Environ(), starterEnv+"="+dir)
		said, err := cmd.CombinedOutput()
		require.ErrorContains(t, err, "signal: killed", string(said))

		raw, err := os.ReadFile(filepath.Join(dir, recordFile))
		require.NoError(t, err)
		var rec vmm.Record
		require.NoError(t, json.Unmarshal(raw, &rec))
		found, err := vmm.Find(rec.SocketPath)
		require.NoError(t, err)
		require.Equal(t, rec.PID, found.PID)
		require.Equal(t, rec.StartTime, found.StartTime)

		proc, err := vmm.Adopt(rec)
		require.NoError(t, err)
		v := &vm{t: t, dir: dir, proc: proc, api: proc.Client()}
		t.Cleanup(func() {
			require.NoError(t, proc.Kill(within(t, time.Minute)))
			require.NoError(t, proc.Close())
		})
		ping, err := v.api.Ping(within(t, time.Minute))
		require.NoError(t, err)
		require.Equal(t, rec.PID, ping.PID)
		v.boot(v.config())
		children := childrenOf(t, rec.PID)
		require.NoError(t, proc.Kill(within(t, time.Minute)))
		requireExit(t, v)
		requireGone(t, children)
		_, err = vmm.Adopt(rec)
		require.ErrorIs(t, err, vmm.ErrGone)
	})
}

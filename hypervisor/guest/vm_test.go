package guest_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/hypervisor/guest"
	"stillframe/netpolicy"
)

// vm is a real virtual machine under QEMU's software emulation, in a network namespace of its own.
type vm struct {
	ns      *netpolicy.Namespace
	client  *guest.Client
	serial  string // file with the console's output
	process *os.Process
	ended   chan struct{} // closed when QEMU has ended
}

var vmNumber atomic.Int32

// imagesDir finds the images or fails: without them nothing here is tested.
func imagesDir(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("STILLFRAME_IMAGES")
	if dir == "" {
		dir = filepath.Join("..", "..", "build", "images")
	}
	for _, f := range []string{"vmlinux", "initramfs.img", "overlay.ext4", "templates/system-busybox.ext4"} {
		if _, err := os.Stat(filepath.Join(dir, f)); err != nil {
			t.Fatalf("no images to boot from: %v (run `make setup`)", err)
		}
	}
	return dir
}

// start starts a machine from a template; it ends with the test. Disks are given to it as far as they are named.
func start(t *testing.T, template string, disks ...string) *vm {
	t.Helper()
	images := imagesDir(t)
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Fatalf("no QEMU to boot with: %v (run `make setup`)", err)
	}
	dir := t.TempDir()
	overlay := filepath.Join(dir, "overlay")
	out, err := exec.CommandContext(t.Context(), "cp", "--sparse=always",
		filepath.Join(images, "overlay.ext4"), overlay).CombinedOutput()
	require.NoError(t, err, "%s", out)

	name := fmt.Sprintf("sfguesttest-%d-%d", os.Getpid(), vmNumber.Add(1))
	ns, err := netpolicy.Create(t.Context(), name)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, netpolicy.Destroy(context.Background(), name)) })

	v := &vm{
		ns: ns, client: guest.NewClient(ns.DialContext), serial: filepath.Join(dir, "serial"), ended: make(chan struct{}),
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "256", "-smp", "1",
		"-kernel", filepath.Join(images, "vmlinux"), "-initrd", filepath.Join(images, "initramfs.img"),
		"-append", "console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check nokaslr mitigations=off",
		"-serial", "file:" + v.serial,
		"-netdev", "tap,id=net0,ifname=tap0,script=no,downscript=no",
		"-device", "virtio-net-pci,netdev=net0,mac=" + guest.GuestMAC + ",romfile=",
		"-device", "virtio-rng-pci",
	}
	files := map[string]string{
		"base":    "readonly=on,file=" + filepath.Join(images, "templates", template+".ext4"),
		"overlay": "discard=unmap,file=" + overlay,
	}
	for _, d := range disks {
		args = append(args, "-drive", "if=none,format=raw,id="+d+","+files[d],
			"-device", "virtio-blk-pci,drive="+d+",serial="+d)
	}
	v.run(t, exec.Command(qemu, args...)) // without the test's context: a cleanup ends it
	return v
}

func (v *vm) run(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	require.NoError(t, v.ns.Do(cmd.Start)) // a child is in the namespace of the thread that made it
	v.process = cmd.Process
	go func() {
		_ = cmd.Wait()
		close(v.ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-v.ended
		if t.Failed() {
			t.Logf("qemu: %s\nconsole: %s", stderr.Bytes(), v.console())
		}
	})
}

func (v *vm) console() string {
	b, _ := os.ReadFile(v.serial)
	return string(b)
}

// boot starts a whole machine and waits for its agent.
func boot(t *testing.T, template string) *vm {
	t.Helper()
	v := start(t, template, "overlay", "base") // not in the usual order: the agent goes by serial numbers
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	h, err := v.client.WaitHealthy(ctx)
	require.NoError(t, err)
	t.Logf("%s: %+v", template, h)
	return v
}

func (v *vm) sh(t *testing.T, command string) string {
	t.Helper()
	res, err := v.client.Exec(t.Context(), guest.ExecRequest{Command: command, Timeout: time.Minute})
	require.NoError(t, err)
	require.Zero(t, res.ExitCode, "%s: %s%s", command, res.Stdout, res.Stderr)
	return string(res.Stdout)
}

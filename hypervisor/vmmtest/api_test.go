package vmmtest

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/hypervisor/vmm"
)

// requireRefused checks for a refusal in the API's form. The status is checked because it is the VMM's behaviour, not
// because anybody may depend on it.
func requireRefused(t *testing.T, err error, status int) {
	t.Helper()
	var refused *vmm.Error
	require.ErrorAs(t, err, &refused)
	require.Equal(t, status, refused.Status, refused.Error())
	require.NotEmpty(t, refused.Messages, "a refusal says why")
}

func TestPingTellsWhoItIs(t *testing.T) {
	forEachVMM(t, func(t *testing.T, binary string) {
		v := startVMM(t, binary)
		ping, err := v.api.Ping(within(t, time.Minute))
		require.NoError(t, err)
		require.Equal(t, v.proc.Record().PID, ping.PID)
		require.Regexp(t, `^\d+\.\d+\.\d+`, ping.Version)
		require.NotEmpty(t, ping.BuildVersion)
		require.Equal(t, ping.Version, v.proc.Record().Version)

		choice, err := vmm.Detect(within(t, time.Minute), func(string) string { return binary })
		require.NoError(t, err)
		require.Contains(t, choice.Version, ping.BuildVersion)
		fingerprint, err := vmm.CPUFingerprint(choice)
		require.NoError(t, err)
		require.Regexp(t, `^sha256:[0-9a-f]{64}$`, fingerprint)
	})
}

// operations that need a VM in some state, by their API name.
func operations(ctx context.Context, c *vmm.Client, dir string) map[string]error {
	_, counters := c.Counters(ctx)
	return map[string]error{
		"vm.counters": counters, "vm.pause": c.Pause(ctx), "vm.resume": c.Resume(ctx), "vm.shutdown": c.Shutdown(ctx),
		"vm.power-button": c.PowerButton(ctx), "vm.snapshot": c.Snapshot(ctx, dir),
	}
}

func TestWrongStates(t *testing.T) {
	forEachVMM(t, func(t *testing.T, binary string) {
		v := startVMM(t, binary)
		ctx := within(t, 2*time.Minute)
		t.Run("without a VM", func(t *testing.T) {
			v.requireState(vmm.StateNone)
			for op, err := range operations(ctx, v.api, t.TempDir()) {
				t.Log(op)
				requireRefused(t, err, 500)
			}
			requireRefused(t, v.api.Boot(ctx), 404)
			requireRefused(t, v.restore(filepath.Join(t.TempDir(), "missing"), false), 500)
			require.NoError(t, v.api.Delete(ctx), "deleting nothing succeeds")
			v.requireState(vmm.StateNone)
		})
		t.Run("created", func(t *testing.T) {
			require.NoError(t, v.api.Create(ctx, v.config()))
			v.requireState(vmm.StateCreated)
			for op, err := range operations(ctx, v.api, t.TempDir()) {
				t.Log(op)
				requireRefused(t, err, 500)
			}
			requireRefused(t, v.api.Create(ctx, v.config()), 500)
			requireRefused(t, v.restore(t.TempDir(), false), 500)
			v.requireState(vmm.StateCreated)
			require.NoError(t, v.api.Delete(ctx))
			v.requireState(vmm.StateNone)
		})
	})
}

// TestBadConfigurationsFailAtBoot: creating checks little, booting says what is wrong, and the process can go on.
func TestBadConfigurationsFailAtBoot(t *testing.T) {
	forEachVMM(t, func(t *testing.T, binary string) {
		v := startVMM(t, binary)
		ctx := within(t, 2*time.Minute)
		for name, spoil := range map[string]func(*vmm.Config){
			"no payload":     func(c *vmm.Config) { c.Payload = vmm.Payload{} },
			"no kernel file": func(c *vmm.Config) { c.Payload.Kernel = v.path("missing") },
			"no initramfs":   func(c *vmm.Config) { c.Payload.Initramfs = v.path("missing") },
			"no disk file":   func(c *vmm.Config) { c.Disks[0].Path = v.path("missing") },
			"no memory file": func(c *vmm.Config) { c.Memory.Zones[0].File = v.path("missing") },
			"no tap":         func(c *vmm.Config) { c.Net = []vmm.Net{{ID: netID, Tap: "sf-none/", MAC: guestMAC}} },
		} {
			t.Run(name, func(t *testing.T) {
				cfg := v.config()
				spoil(&cfg)
				require.NoError(t, v.api.Create(ctx, cfg))
				requireRefused(t, v.api.Boot(ctx), 500)
				require.NoError(t, v.api.Delete(ctx))
				v.requireState(vmm.StateNone)
				require.Empty(t, childrenOf(t, v.proc.Record().PID))
			})
		}
		v.boot(v.config())
		requireWhole(t, v.serialBytes())
	})
}

func TestRequestsThatAreNotUnderstood(t *testing.T) {
	forEachVMM(t, func(t *testing.T, binary string) {
		v := startVMM(t, binary)
		for name, r := range map[string]struct {
			method, path, body string
			status             int
		}{
			"unknown path":        {"GET", "/api/v1/vm.nonsense", "", 404},
			"outside the API":     {"GET", "/vmm.ping", "", 404},
			"GET of an action":    {"GET", "/api/v1/vm.boot", "", 400},
			"PUT of information":  {"PUT", "/api/v1/vm.info", "", 400},
			"another method":      {"POST", "/api/v1/vm.boot", "", 400},
			"body where none is":  {"PUT", "/api/v1/vm.boot", "{}", 400},
			"no body where one":   {"PUT", "/api/v1/vm.snapshot", "", 400},
			"create without body": {"PUT", "/api/v1/vm.create", "", 400},
			"half a document":     {"PUT", "/api/v1/vm.create", `{"cpus":`, 400},
			"wrong type":          {"PUT", "/api/v1/vm.create", `{"cpus":{"boot_vcpus":"two","max_vcpus":2}}`, 400},
			"missing field":       {"PUT", "/api/v1/vm.restore", `{"resume":true}`, 400},
			"no URL":              {"PUT", "/api/v1/vm.restore", `{"source_url":"/tmp"}`, 500},
		} {
			status, body := rawRequest(t, v, r.method, r.path, r.body)
			require.Equal(t, r.status, status, "%s: %s", name, body)
		}
		v.requireState(vmm.StateNone)

		status, body := rawRequest(t, v, "GET", "/api/v1/vm.info", "")
		require.Equal(t, 404, status)
		var messages []string
		require.NoError(t, json.Unmarshal([]byte(body), &messages), "errors are arrays of strings: %s", body)
		require.GreaterOrEqual(t, len(messages), 2)

		// What nobody knows is no error.
		status, body = rawRequest(t, v, "PUT", "/api/v1/vm.create", `{"memory":{"size":1048576,"sice":1},"nonsense":1}`)
		require.Equal(t, 204, status, body)
		v.requireState(vmm.StateCreated)
	})
}

func rawRequest(t *testing.T, v *vm, method, path, body string) (int, string) {
	t.Helper()
	dir, err := os.Open(v.dir)
	require.NoError(t, err)
	defer func() { require.NoError(t, dir.Close()) }()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", "/proc/self/fd/"+itoa(dir.Fd())+"/vmm.sock")
		},
	}}
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(within(t, time.Minute), method, "http://vmm"+path, reader)
	require.NoError(t, err)
	resp, err := client.Do(req)
	require.NoError(t, err)
	defer func() { require.NoError(t, resp.Body.Close()) }()
	raw, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(raw)
}

// TestLifeOfAVM goes through the states of one VM and the events that tell of them.
func TestLifeOfAVM(t *testing.T) {
	forEachVMM(t, func(t *testing.T, binary string) {
		v := startVMM(t, binary)
		ctx := within(t, 10*time.Minute)
		cfg := v.config()
		v.boot(cfg)
		v.requireState(vmm.StateRunning)
		requireRefused(t, v.api.Boot(ctx), 500)
		info, err := v.api.Info(ctx)
		require.NoError(t, err)
		require.Equal(t, int64(ramSize), info.MemoryActualSize)
		var seen vmm.Config
		require.NoError(t, json.Unmarshal(info.Config, &seen))
		require.Equal(t, cfg.Memory.Zones, seen.Memory.Zones)
		require.Equal(t, cfg.Payload, seen.Payload)
		require.Equal(t, cfg.Disks, seen.Disks)
		counters, err := v.api.Counters(ctx)
		require.NoError(t, err)
		require.Positive(t, counters[diskID]["write_bytes"], "counters %v", counters)

		first := v.ticks()[0].nonce
		require.NoError(t, v.api.Shutdown(ctx))
		v.requireState(vmm.StateCreated)
		require.NoError(t, v.api.Boot(ctx))
		v.awaitTick(1)
		require.NotEqual(t, first, v.ticks()[0].nonce, "it booted anew, into a new serial file")
		v.pause()
		require.NoError(t, v.api.Delete(ctx), "a paused VM can be deleted")
		v.requireState(vmm.StateNone)
		require.NoError(t, v.api.VMMShutdown(ctx))
		requireExit(t, v)
		require.Equal(t, "exit status 0", v.proc.ExitStatus())
		requireEvents(t, v, "starting", "booting", "booted", "shutdown", "booting", "booted", "pausing", "paused",
			"shutdown", "deleted", "shutdown")
	})
}

func requireExit(t *testing.T, v *vm) {
	t.Helper()
	select {
	case <-v.proc.Exited():
	case <-within(t, time.Minute).Done():
		t.Fatal("the VMM has not ended")
	}
}

// requireEvents checks that the event file is a row of JSON documents in which these events occur in this order.
func requireEvents(t *testing.T, v *vm, want ...string) {
	t.Helper()
	f, err := os.Open(v.path("events.json"))
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Close()) }()
	var all []string
	for d := json.NewDecoder(f); ; {
		var e struct{ Source, Event string }
		err := d.Decode(&e)
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		require.NotEmpty(t, e.Source)
		all = append(all, e.Event)
		if len(want) > 0 && want[0] == e.Event {
			want = want[1:]
		}
	}
	require.Empty(t, want, "not among the events %v", all)
}

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// api serves requests one at a time, as the real VMM does.
type api struct {
	mu     sync.Mutex
	log    *slog.Logger
	stop   func()
	report *report

	config json.RawMessage // nil: no VM
	vm     *vm             // nil: not booted
}

// config is what is read of a VM's configuration; the rest is kept as it came.
type config struct {
	Memory struct {
		Zones []struct {
			Size   int64  `json:"size"` // bytes
			File   string `json:"file"`
			Shared bool   `json:"shared"`
		} `json:"zones"`
	} `json:"memory"`
	Disks []struct {
		ID   string `json:"id"`
		Path string `json:"path"`
	} `json:"disks"`
	Net []struct {
		Tap string `json:"tap"`
	} `json:"net"`
	Serial struct {
		File string `json:"file"`
	} `json:"serial"`
}

var (
	errNoVM       = errors.New("VM is not created")
	errNotRunning = errors.New("VM is not running")
	errThere      = errors.New("VM is already created")
)

func (a *api) handler() http.Handler {
	mux := http.NewServeMux()
	get := func(name string, f func() (any, error)) {
		mux.HandleFunc("GET /api/v1/"+name, a.answer(func([]byte) (any, error) { return f() }))
	}
	put := func(name string, f func(body []byte) error) {
		mux.HandleFunc("PUT /api/v1/"+name, a.answer(func(body []byte) (any, error) { return nil, f(body) }))
	}
	get("vmm.ping", func() (any, error) {
		return map[string]any{"build_version": version, "version": version, "pid": os.Getpid(), "features": []string{}}, nil
	})
	get("vm.info", a.info)
	get("vm.counters", func() (any, error) { return map[string]any{}, nil })
	put("vm.create", a.create)
	put("vm.boot", func([]byte) error { return a.boot() })
	put("vm.pause", func([]byte) error { return a.onVM((*vm).pause) })
	put("vm.resume", func([]byte) error { return a.onVM((*vm).resume) })
	put("vm.snapshot", a.snapshot)
	put("vm.restore", a.restore)
	put("vm.shutdown", func([]byte) error { a.end(); return nil })
	put("vm.delete", func([]byte) error { a.end(); a.config = nil; return nil })
	put("vmm.shutdown", func([]byte) error { a.end(); a.stop(); return nil })
	return mux
}

// answer makes a handler of a function, with the real VMM's way of telling errors.
func (a *api) answer(f func(body []byte) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		a.mu.Lock()
		defer a.mu.Unlock()
		var out any
		if err == nil {
			out, err = f(body)
		}
		w.Header().Set("Content-Type", "application/json")
		switch {
		case errors.Is(err, errNoVM):
			w.WriteHeader(http.StatusNotFound)
			out = []string{"Error from API", err.Error()}
		case err != nil:
			a.log.Warn("request refused", "path", r.URL.Path, "error", err)
			w.WriteHeader(http.StatusInternalServerError)
			out = []string{"Error from API", err.Error()}
		case out == nil:
			w.WriteHeader(http.StatusNoContent)
			return
		}
		_ = json.NewEncoder(w).Encode(out) // a caller that has gone
	}
}

func (a *api) info() (any, error) {
	if a.config == nil {
		return nil, errNoVM
	}
	state := "Created"
	var size int64
	if a.vm != nil {
		state, size = a.vm.state(), int64(len(a.vm.ram))
	}
	return map[string]any{"config": a.config, "state": state, "memory_actual_size": size}, nil
}

func (a *api) create(body []byte) error {
	if a.config != nil {
		return errThere
	}
	var c config
	if err := json.Unmarshal(body, &c); err != nil {
		return err
	}
	a.config = body
	return c.makeConsole()
}

func (c *config) makeConsole() error {
	if c.Serial.File == "" {
		return nil
	}
	return os.WriteFile(c.Serial.File, nil, 0o600)
}

func (a *api) boot() error {
	if a.config == nil {
		return errNoVM
	}
	if a.vm != nil {
		return errThere
	}
	v, err := a.open()
	if err != nil {
		return err
	}
	if err := v.format(); err != nil {
		return errors.Join(err, v.close())
	}
	a.vm = v
	v.start()
	return nil
}

// open opens the files and the tap of the configuration.
func (a *api) open() (*vm, error) {
	var c config
	if err := json.Unmarshal(a.config, &c); err != nil {
		return nil, err
	}
	return openVM(c, a.log, a.report)
}

func (a *api) onVM(f func(*vm) error) error {
	if a.vm == nil {
		return errNotRunning
	}
	return f(a.vm)
}

// saved is state.json.
type saved struct {
	Format  string `json:"format"`
	Counter uint64 `json:"counter"`
	Digest  string `json:"digest"` // of RAM and disk as far as they are used
}

const savedFormat = "lightvmm 1"

func (a *api) snapshot(body []byte) error {
	var in struct {
		URL string `json:"destination_url"`
	}
	if err := json.Unmarshal(body, &in); err != nil {
		return err
	}
	if a.vm == nil {
		return errNotRunning
	}
	s, err := a.vm.save()
	if err != nil {
		return err
	}
	raw, err := json.Marshal(s)
	if err != nil {
		return err
	}
	dir := strings.TrimPrefix(in.URL, "file://")
	return errors.Join(writeNew(filepath.Join(dir, "config.json"), a.config),
		writeNew(filepath.Join(dir, "state.json"), raw))
}

func writeNew(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) // named by the caller
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Close())
}

func (a *api) restore(body []byte) error {
	var in struct {
		URL    string `json:"source_url"`
		Resume bool   `json:"resume"`
	}
	if err := json.Unmarshal(body, &in); err != nil {
		return err
	}
	if a.config != nil {
		return errThere
	}
	dir := strings.TrimPrefix(in.URL, "file://")
	v, err := a.load(dir)
	if err != nil {
		a.config = nil
		return fmt.Errorf("restore %s: %w", dir, err)
	}
	a.vm = v
	v.start()
	if in.Resume {
		return v.resume()
	}
	return nil
}

func (a *api) load(dir string) (*vm, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "config.json")) // named by the caller
	if err != nil {
		return nil, err
	}
	a.config = raw
	raw, err = os.ReadFile(filepath.Join(dir, "state.json")) // named by the caller
	if err != nil {
		return nil, err
	}
	var s saved
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, fmt.Errorf("state.json: %w", err)
	}
	v, err := a.open()
	if err != nil {
		return nil, err
	}
	if err := v.load(s); err != nil {
		return nil, errors.Join(err, v.close())
	}
	return v, nil
}

// end ends the VM, if there is one.
func (a *api) end() {
	if a.vm != nil {
		if err := a.vm.close(); err != nil {
			a.log.Warn("end", "error", err)
		}
		a.vm = nil
	}
}

func (a *api) remove() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.end()
}

package devvmm

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
)

// maxBody is the longest request body, in bytes: the limit of Cloud Hypervisor up to v53.
const maxBody = 51200

// api turns requests into operations on the machine, one at a time: a request waits until those before it are answered,
// whatever they take, and is carried out even if its sender has gone.
type api struct {
	mu      sync.Mutex
	machine *machine
	version Version
	log     *slog.Logger
	stop    func() // asks the program to end, after the reply
}

// endpoint is one path: what a GET or a PUT does, nil where that is not possible. They return the reply's body or nil.
type endpoint struct {
	get func() (any, error)
	// put gets no body; putBody needs one.
	put     func() error
	putBody func(body []byte) error
	// status is the code of success without a body, 204 unless set.
	status int
}

func (a *api) endpoints() map[string]endpoint {
	m := a.machine
	named := func(operation string, f func() error) func() error {
		return func() error { return wrap(operation, f()) }
	}
	return map[string]endpoint{
		"vmm.ping":     {get: a.ping},
		"vmm.shutdown": {put: a.shutdown, status: http.StatusOK},
		"vm.info": {get: func() (any, error) {
			info, err := m.info()
			return info, wrap("The VM info is not available", err)
		}},
		"vm.counters": {get: func() (any, error) {
			counters, err := m.counters()
			return counters, wrap("The VM info is not available", err)
		}},
		"vm.create":       {putBody: a.create},
		"vm.boot":         {put: named("The VM could not boot", m.boot)},
		"vm.pause":        {put: named("The VM could not be paused", m.pause)},
		"vm.resume":       {put: named("The VM could not resume", m.resume)},
		"vm.shutdown":     {put: named("The VM could not shutdown", m.shutdown)},
		"vm.reboot":       {put: named("The VM could not reboot", m.reboot)},
		"vm.delete":       {put: named("The VM could not be deleted", m.delete)},
		"vm.power-button": {put: named("Error triggering power button", m.powerButton)},
		"vm.nmi":          {put: named("Error triggering NMI", m.nmi)},
		"vm.snapshot":     {putBody: a.snapshot},
		"vm.restore":      {putBody: a.restore},
	}
}

// absent are the paths that Cloud Hypervisor has and this program does not serve.
var absent = []string{
	"vm.add-device", "vm.add-disk", "vm.add-fs", "vm.add-generic-vhost-user", "vm.add-net", "vm.add-pmem",
	"vm.add-user-device", "vm.add-vdpa", "vm.add-vsock", "vm.receive-migration", "vm.remove-device", "vm.resize",
	"vm.resize-disk", "vm.resize-zone", "vm.send-migration",
}

// wrap names the operation in an error that does not already say how it is to be answered.
func wrap(operation string, err error) error {
	var ready *replyError
	if err == nil || errors.As(err, &ready) {
		return err
	}
	return refuse(operation, err)
}

func (a *api) handler() http.Handler {
	endpoints := a.endpoints()
	for _, name := range absent {
		endpoints[name] = endpoint{putBody: func([]byte) error {
			return refuse("The development VMM does not serve "+name, errors.New("not supported"))
		}}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, rooted := strings.CutPrefix(r.URL.Path, "/api/v1/")
		e, known := endpoints[name]
		if !rooted || !known {
			a.fail(w, errNotFound)
			return
		}
		a.serve(w, r, e)
	})
}

func (a *api) serve(w http.ResponseWriter, r *http.Request, e endpoint) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		a.fail(w, errBadRequest)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	var result any
	switch {
	case r.Method == http.MethodGet && e.get != nil:
		result, err = e.get()
	case r.Method == http.MethodPut && e.put != nil && len(body) == 0:
		err = e.put()
	case r.Method == http.MethodPut && e.putBody != nil && len(body) > 0:
		err = e.putBody(body)
	default:
		err = errBadRequest
	}
	if err != nil {
		a.fail(w, err)
		return
	}
	a.reply(w, result, e.status)
}

func (a *api) reply(w http.ResponseWriter, result any, status int) {
	w.Header().Set("Content-Type", "application/json")
	if result == nil {
		if status == 0 {
			status = http.StatusNoContent
		}
		w.WriteHeader(status)
		return
	}
	if err := json.NewEncoder(w).Encode(result); err != nil {
		a.log.Warn("reply", "error", err)
	}
}

func (a *api) fail(w http.ResponseWriter, err error) {
	var r *replyError
	if !errors.As(err, &r) {
		r = &replyError{http.StatusInternalServerError, []string{"Internal Server Error", err.Error()}}
	}
	a.log.Info("request refused", "status", r.status, "messages", r.messages)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(r.status)
	if err := json.NewEncoder(w).Encode(r.messages); err != nil {
		a.log.Warn("reply", "error", err)
	}
}

func (a *api) ping() (any, error) {
	v, err := a.version.resolve()
	if err != nil {
		return nil, refuse("The VMM does not know its QEMU", err)
	}
	return v, nil
}

func (a *api) shutdown() error {
	if err := a.machine.delete(); err != nil {
		return wrap("The VMM could not shutdown", err)
	}
	a.machine.events.emit("vmm", "shutdown")
	a.stop()
	return nil
}

func (a *api) create(body []byte) error {
	cfg, err := decodeConfig(body)
	if err != nil {
		return errBadJSON(err)
	}
	return wrap("The VM could not be created", a.machine.create(cfg))
}

func (a *api) snapshot(body []byte) error {
	var request struct {
		URL *string `json:"destination_url"`
	}
	if err := json.Unmarshal(body, &request); err != nil {
		return errBadJSON(err)
	}
	if request.URL == nil {
		return errBadJSON(errors.New("missing field `destination_url`"))
	}
	return wrap("The VM could not be snapshotted", a.machine.snapshot(*request.URL))
}

func (a *api) restore(body []byte) error {
	var request struct {
		URL    *string `json:"source_url"`
		Resume bool    `json:"resume"`
	}
	if err := json.Unmarshal(body, &request); err != nil {
		return errBadJSON(err)
	}
	if request.URL == nil {
		return errBadJSON(errors.New("missing field `source_url`"))
	}
	return wrap("The VM could not be restored", a.machine.restore(*request.URL, request.Resume))
}

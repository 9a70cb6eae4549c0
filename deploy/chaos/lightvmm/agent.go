package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"

	"stillframe/hypervisor/guest"
)

// counterFile is a file that is not kept but made when it is read: the counter now and the one that this VM began
// with.
const counterFile = "/proc/lightvmm"

// identity is what the agent was told. It is the process's and not the memory's, as far as nobody asks for it.
type identity struct {
	mu         sync.Mutex
	sandbox    string
	generation int
	ca         string // digest of the authority that it was given; it makes no connection that would need it
}

// agent serves the calls that an owner and a client of files make.
func (v *vm) agent() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+guest.PathHealth, v.health)
	mux.HandleFunc("PUT "+guest.PathIdentity, v.setIdentity)
	mux.HandleFunc("POST "+guest.PathRead, v.serveRead)
	mux.HandleFunc("PUT "+guest.PathWrite, v.serveWrite)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, guest.Errorf(guest.CodeInvalid, "the light VMM does not answer %s", r.URL.Path))
	})
	return mux
}

func reply(w http.ResponseWriter, out any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out) // a caller that has gone
}

func refuse(w http.ResponseWriter, e *guest.Error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.Status())
	_ = json.NewEncoder(w).Encode(e) // a caller that has gone
}

func (v *vm) health(w http.ResponseWriter, _ *http.Request) {
	v.gate()
	v.id.mu.Lock()
	defer v.id.mu.Unlock()
	reply(w, guest.Health{Version: version, SandboxID: v.id.sandbox, Generation: v.id.generation})
}

// setIdentity takes a name and mixes the seed into what stands for a random generator.
func (v *vm) setIdentity(w http.ResponseWriter, r *http.Request) {
	var in guest.Identity
	if err := json.NewDecoder(io.LimitReader(r.Body, guest.MaxRequestBody)).Decode(&in); err != nil {
		refuse(w, guest.Errorf(guest.CodeInvalid, "request body: %v", err))
		return
	}
	v.run.Lock()
	sum := sha256.Sum256(append(v.ram[seedAt:seedAt+sha256.Size:seedAt+sha256.Size], in.Seed...))
	copy(v.ram[seedAt:], sum[:])
	v.run.Unlock()
	v.id.mu.Lock()
	defer v.id.mu.Unlock()
	if in.CAPEM != "" {
		sum := sha256.Sum256([]byte(in.CAPEM))
		v.id.ca = hex.EncodeToString(sum[:])
	}
	changed := v.id.sandbox != in.SandboxID
	if changed {
		v.id.sandbox = in.SandboxID
		v.id.generation++
	}
	reply(w, guest.IdentityResult{
		SandboxID: in.SandboxID, Hostname: in.SandboxID, Changed: changed, SeedBytes: len(in.Seed), Reseeded: true,
		Generation: v.id.generation, CA: v.id.ca,
	})
}

func (v *vm) serveRead(w http.ResponseWriter, r *http.Request) {
	var in guest.ReadFileRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, guest.MaxRequestBody)).Decode(&in); err != nil {
		refuse(w, guest.Errorf(guest.CodeInvalid, "request body: %v", err))
		return
	}
	v.run.Lock()
	var content []byte
	var err error
	if in.Path == counterFile {
		content = fmt.Appendf(nil, "%d %d\n", v.counter(), v.base)
	} else {
		content, err = v.readFile(in.Path)
	}
	v.run.Unlock()
	switch {
	case errors.Is(err, os.ErrNotExist):
		refuse(w, guest.Errorf(guest.CodeNotFound, "%s is not there", in.Path))
	case err != nil:
		refuse(w, guest.Errorf(guest.CodeInternal, "%v", err))
	default:
		_, _ = w.Write(content) // a caller that has gone
	}
}

func (v *vm) serveWrite(w http.ResponseWriter, r *http.Request) {
	content, err := io.ReadAll(io.LimitReader(r.Body, slotBytes+1))
	if err == nil {
		v.run.Lock()
		err = v.writeFile(r.URL.Query().Get("path"), content)
		v.run.Unlock()
	}
	if err != nil {
		refuse(w, guest.Errorf(guest.CodeInternal, "%v", err))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

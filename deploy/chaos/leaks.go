package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"stillframe/netpolicy"
)

type sandboxItem struct {
	ID    string `json:"id"`
	State string `json:"state"`
}

func (r *run) sandboxes(ctx context.Context) ([]sandboxItem, answer) {
	var all []sandboxItem
	for page := 1; ; page++ {
		var list struct {
			Items []sandboxItem `json:"items"`
			Total int           `json:"total_items"`
		}
		a := r.nodes[0].api.do(ctx, "GET", fmt.Sprintf("/v1/sandboxes?page-size=100&page=%d", page), nil, "")
		if a.status != http.StatusOK || json.Unmarshal(a.body, &list) != nil {
			return nil, a
		}
		all = append(all, list.Items...)
		if len(list.Items) == 0 || len(all) >= list.Total {
			return all, a
		}
	}
}

// checkOpen has nothing be under way any more, a bound after the healing (invariant 10).
func (r *run) checkOpen(ctx context.Context) {
	deadline := time.Now().Add(recovery)
	for {
		items, a := r.sandboxes(ctx)
		var open []string
		for _, sb := range items {
			if sb.State != "running" && sb.State != "stopped" {
				open = append(open, sb.ID+" is "+sb.State)
			}
		}
		if a.status == http.StatusOK && len(open) == 0 {
			return
		}
		if time.Now().After(deadline) {
			r.violated("10 recovery", "intents are open %s after everything was healed: %s (%v)", recovery,
				strings.Join(open, ", "), a.err)
			return
		}
		pauseFor(ctx, 300*time.Millisecond)
	}
}

// checkLeaks deletes everything, and looks for what is left (invariant 10).
func (r *run) checkLeaks(ctx context.Context) {
	deadline := time.Now().Add(2 * recovery)
	for {
		left := r.deleteAll(ctx)
		if len(left) == 0 {
			if left = r.leftOnNodes(); len(left) == 0 {
				return
			}
		}
		if time.Now().After(deadline) {
			r.violated("10 leaks", "left when everything is deleted: %s", strings.Join(left[:min(len(left), 12)], "; "))
			return
		}
		pauseFor(ctx, 500*time.Millisecond)
	}
}

func (r *run) deleteAll(ctx context.Context) (left []string) {
	items, a := r.sandboxes(ctx)
	if a.status != http.StatusOK {
		return []string{"sandboxes are not listed: " + a.String()}
	}
	for _, sb := range items {
		if a := r.nodes[0].api.do(ctx, "DELETE", "/v1/sandbox/"+sb.ID, nil, ""); a.status != http.StatusNoContent {
			left = append(left, fmt.Sprintf("sandbox %s (%s): %s", sb.ID, sb.State, a))
		}
	}
	a = r.nodes[0].api.do(ctx, "GET", "/v1/snapshots?page-size=100", nil, "")
	snapshots, err := listed(a.body)
	if err != nil || a.status != http.StatusOK {
		return append(left, "snapshots are not listed: "+a.String())
	}
	for _, sn := range snapshots {
		if a := r.nodes[0].api.do(ctx, "DELETE", "/v1/snapshot/"+sn.ID, nil, ""); a.status != http.StatusNoContent {
			left = append(left, fmt.Sprintf("snapshot %s: %s", sn.ID, a))
		}
	}
	return left
}

// leftOnNodes looks at folders, namespaces, mounts and processes.
func (r *run) leftOnNodes() (left []string) {
	for _, n := range r.nodes {
		for _, kind := range []string{"sandboxes", "snapshots", "copies"} {
			entries, err := os.ReadDir(filepath.Join(n.dir, kind))
			if err != nil {
				left = append(left, err.Error())
			}
			for _, e := range entries {
				if strings.HasPrefix(e.Name(), "sbx-") || strings.HasPrefix(e.Name(), "snap-") {
					left = append(left, fmt.Sprintf("folder %s of node %s", e.Name(), n.name))
				}
			}
		}
		left = append(left, r.processesOf(n)...)
	}
	named, err := netpolicy.List("sf-")
	if err != nil {
		left = append(left, err.Error())
	}
	for _, name := range named {
		left = append(left, "namespace "+name)
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range bytes.Lines(mounts) {
		if bytes.Contains(line, []byte(netpolicy.Dir+"/sf-")) {
			left = append(left, "mount "+string(line))
		}
	}
	return left
}

// processesOf gives the processes that have a node's data folder in their arguments, but for the daemon.
func (r *run) processesOf(n *node) (left []string) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err == nil && bytes.Contains(raw, []byte(n.dir+"/sandboxes/")) {
			left = append(left, "process "+string(bytes.ReplaceAll(raw[:min(len(raw), 150)], []byte{0}, []byte{' '})))
		}
	}
	return left
}

// maxDescriptors is more than a daemon without sandboxes has any use for.
const maxDescriptors = 300

// checkLogs looks for what must never be in a daemon's log, and for descriptors that were not closed.
func (r *run) checkLogs() {
	for _, n := range r.nodes {
		raw, err := os.ReadFile(n.log)
		if err != nil {
			r.violated("10 leaks", "%v", err)
			continue
		}
		if bytes.Contains(raw, []byte(n.api.key)) {
			r.violated("secrets", "the API key is in the log of node %s", n.name)
		}
		for _, word := range []string{"\npanic: ", "\nfatal error: ", "WARNING: DATA RACE"} {
			if at := bytes.Index(raw, []byte(word)); at >= 0 {
				r.violated("panics", "the daemon of node %s: %s", n.name, raw[at:min(len(raw), at+2000)])
			}
		}
		if p, _ := n.process(); p != nil {
			fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.Pid))
			if err == nil && len(fds) > maxDescriptors {
				r.violated("10 leaks", "the daemon of node %s has %d open descriptors with nothing to do", n.name, len(fds))
			}
		}
	}
}

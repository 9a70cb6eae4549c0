package main

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
)

// policies are what clients set, by turns. What counts here is how narrow each is: none lets this test's address
// through but the first.
var policies = []map[string]any{
	{"mode": "allow-all"},
	{"mode": "deny-all"},
	{"mode": "custom", "allow_domains": []string{"a.example"}},
}

// testAddress is of a range that is kept for documentation: nothing is ever sent to it, it is only asked about.
const testAddress = "203.0.113.9"

// setPolicy replaces a sandbox's network policy.
func (c *clientLoop) setPolicy(ctx context.Context) {
	id, _ := c.r.pool.any(c.rnd)
	if id == "" {
		return
	}
	op := &operation{Kind: "policy", Key: c.key(), Sandbox: id, request: request{
		"PUT", "/v1/sandbox/" + id + "/network-policy", policies[c.rnd.IntN(len(policies))],
	}}
	c.try(ctx, op)
}

// checkPolicies has what is in force be at most what is stored, and what is stored be what was last acknowledged
// (invariants 6 and 7).
func (r *run) checkPolicies(ctx context.Context) {
	items, _ := r.sandboxes(ctx)
	for _, item := range items {
		var sb struct {
			Policy *struct {
				Mode string `json:"mode"`
			} `json:"network_policy"`
		}
		a := r.nodes[0].api.do(ctx, "GET", "/v1/sandbox/"+item.ID, nil, "")
		if item.State != "running" || a.status != http.StatusOK || json.Unmarshal(a.body, &sb) != nil {
			continue
		}
		mode := "allow-all"
		if sb.Policy != nil {
			mode = sb.Policy.Mode
		}
		if want := r.lastPolicy(item.ID); want != "" && want != mode {
			r.violated("6 policy", "sandbox %s was last given policy %s, acknowledged, and has %s", item.ID, want, mode)
		}
		var decision struct {
			Action string `json:"action"`
		}
		path := "/v1/sandbox/" + item.ID + "/network-policy/check?port=443&host=" + testAddress
		a = r.nodes[0].api.do(ctx, "GET", path, nil, "")
		if a.status != http.StatusOK || json.Unmarshal(a.body, &decision) != nil {
			continue
		}
		r.policed++
		if mode != "allow-all" && decision.Action != "deny" {
			r.violated("6 policy", "sandbox %s has policy %s, and %s is answered %s", item.ID, mode, testAddress, a)
		}
	}
}

// lastPolicy gives the mode that a sandbox was last given, where that is certain: the last request was acknowledged,
// and began after all others had ended.
func (r *run) lastPolicy(sandbox string) string {
	ops := slices.DeleteFunc(r.history.all(), func(op *operation) bool {
		return op.Kind != "policy" || op.Sandbox != sandbox
	})
	if len(ops) == 0 {
		return ""
	}
	last := slices.MaxFunc(ops, func(a, b *operation) int { return int(min(max(a.Call-b.Call, -1), 1)) })
	for _, op := range ops {
		if op.Outcome == outcomeUnknown || (op != last && op.Return > last.Call) {
			return ""
		}
	}
	given, ok := last.request.body.(map[string]any)
	if !ok || last.Outcome != outcomeOK {
		return ""
	}
	mode, _ := given["mode"].(string)
	return mode
}

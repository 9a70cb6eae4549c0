//go:build deep

package hypervisor

import (
	"testing"

	"stillframe/fsm"
)

// TestModelDeep explores models that take minutes: more of what can go wrong, and all of it together.
func TestModelDeep(t *testing.T) {
	explore(t, []scenario{
		{
			name: "two nodes, one name",
			ops: []op{
				{kind: fsm.IntentSnapshot, sandbox: 0, snapshot: "x", key: true},
				{kind: fsm.IntentSnapshot, sandbox: 1, snapshot: "x"},
			},
			limits: limits{crashes: 1, losses: 1, giveUps: 1},
		},
		{
			name: "one source, two names",
			ops: []op{
				{kind: fsm.IntentSnapshot, sandbox: 0, snapshot: "x", key: true},
				{kind: fsm.IntentSnapshot, sandbox: 0, snapshot: "y"},
			},
			limits: limits{crashes: 1, failures: 1, giveUps: 1},
		},
		{
			name: "a name, taken and given back",
			ops: []op{
				{kind: fsm.IntentSnapshot, sandbox: 0, snapshot: "x", key: true},
				{kind: fsm.IntentDeleteSnapshot, target: 0, after: 1},
				{kind: fsm.IntentSnapshot, sandbox: 1, snapshot: "x"},
			},
			limits: limits{crashes: 1, cuts: 1, losses: 1},
		},
		{
			name: "a power cut at any step",
			ops: []op{
				{kind: fsm.IntentSnapshot, sandbox: 0, snapshot: "x", key: true},
				{kind: fsm.IntentRestore, sandbox: 2, snapshot: "x", key: true, after: 1},
			},
			limits: limits{crashes: 1, cuts: 1, losses: 1},
		},
		{
			name: "an owner that is given up",
			ops: []op{
				{kind: fsm.IntentCreate, sandbox: 2, key: true},
				{kind: fsm.IntentSnapshot, sandbox: 2, snapshot: "x", key: true, after: 1},
				{kind: fsm.IntentDelete, sandbox: 2, after: 2},
			},
			limits: limits{crashes: 1, losses: 1, giveUps: 1},
		},
		{
			name: "machines that end",
			ops: []op{
				{kind: fsm.IntentSnapshot, sandbox: 0, snapshot: "x", key: true, killAfter: true},
				{kind: fsm.IntentRestore, sandbox: 2, snapshot: "x", key: true, after: 1},
			},
			limits: limits{crashes: 1, failures: 1, deaths: 1, giveUps: 1},
		},
	})
}

package httpd

import (
	"fmt"
	"time"

	"stillframe/fsm"
)

// timeLayout is RFC 3339 in UTC to the microsecond: more digits make some parsers fail.
const timeLayout = "2006-01-02T15:04:05.000000Z"

func timeView(t fsm.Time) string {
	if t == 0 {
		return ""
	}
	return t.Std().Format(timeLayout)
}

func unixView(t fsm.Time) int64 {
	if t == 0 {
		return 0
	}
	return int64(t) / int64(time.Second)
}

// Sandbox is a sandbox on the wire.
type Sandbox struct {
	ID           fsm.SandboxID    `json:"id"`
	TemplateID   fsm.TemplateID   `json:"template_id"`
	TemplateName string           `json:"template_name"`
	VCPU         int              `json:"vcpu"`
	Memory       int64            `json:"memory"`  // MiB
	Disk         int64            `json:"disk"`    // MiB
	Timeout      int64            `json:"timeout"` // seconds
	State        fsm.SandboxState `json:"state"`
	StateReason  string           `json:"state_reason,omitempty"`
	// NodeUnreachable: State is as last known, for the sandbox's node does not answer.
	NodeUnreachable bool               `json:"node_unreachable,omitempty"`
	AutoPause       bool               `json:"auto_pause"`
	EnvVars         map[string]string  `json:"env_vars,omitempty"`
	NetworkPolicy   *fsm.NetworkPolicy `json:"network_policy,omitempty"`
	// NetworkStatus says how NetworkPolicy relates to what the network can reach now: "enforced" that it is in force;
	// "isolated" that nothing is reached, for the VM does not run; "changing" that another policy is being put in force;
	// "denied" that nothing is let through, for which NetworkNote has the reason.
	NetworkStatus string         `json:"network_status"`
	NetworkNote   string         `json:"network_note,omitempty"`
	SnapshotID    fsm.SnapshotID `json:"snapshot_id,omitempty"` // restored from this one
	PodID         fsm.NodeID     `json:"pod_id"`
	TimeoutAt     int64          `json:"timeout_at,omitempty"` // Unix seconds
	CreatedAt     string         `json:"created_at"`
	UpdatedAt     string         `json:"updated_at"`
	Warnings      []string       `json:"warnings,omitempty"` // what was accepted and is not carried out
}

// warnAutoPause is the honest half of accepting auto_pause.
const warnAutoPause = "auto_pause is kept but not carried out by this version: at its timeout the sandbox is " +
	"deleted; take a snapshot to keep it"

func (s *Server) sandboxView(sb fsm.Sandbox) Sandbox {
	v := Sandbox{
		ID: sb.ID, TemplateID: sb.Template, TemplateName: sb.TemplateName, VCPU: sb.VCPU, Memory: sb.MemoryMiB,
		Disk: sb.DiskMiB, Timeout: sb.TimeoutSec, State: sb.State, StateReason: sb.StateReason, AutoPause: sb.AutoPause,
		EnvVars: sb.EnvVars, NetworkPolicy: redactPolicy(sb.NetworkPolicy), NetworkStatus: networkStatus(sb),
		NetworkNote: sb.PolicyNote,
		SnapshotID:  sb.Snapshot, PodID: sb.Owner, TimeoutAt: unixView(sb.TimeoutAt), CreatedAt: timeView(sb.CreatedAt),
		UpdatedAt: timeView(sb.UpdatedAt),
	}
	if n, lost := s.lostNode(sb); lost {
		v.NodeUnreachable, v.StateReason = true, lostReason(n)
	}
	if sb.AutoPause {
		v.Warnings = append(v.Warnings, warnAutoPause)
	}
	return v
}

// networkStatus says how the policy that is shown relates to what the sandbox can reach now.
func networkStatus(sb fsm.Sandbox) string {
	switch {
	case sb.State != fsm.SandboxRunning && sb.State != fsm.SandboxSnapshotting:
		return "isolated"
	case sb.State == fsm.SandboxRunning && sb.Intent != "":
		return "changing"
	case sb.PolicyNote != "":
		return "denied"
	}
	return "enforced"
}

// sandboxItem is a sandbox in a list.
type sandboxItem struct {
	ID              fsm.SandboxID    `json:"id"`
	TemplateID      fsm.TemplateID   `json:"template_id"`
	TemplateName    string           `json:"template_name"`
	PodID           fsm.NodeID       `json:"pod_id"`
	State           fsm.SandboxState `json:"state"`
	NodeUnreachable bool             `json:"node_unreachable,omitempty"` // see Sandbox
	LaunchTime      string           `json:"launch_time,omitempty"`
	StateChangeTime string           `json:"state_change_time,omitempty"`
	TimeoutAt       int64            `json:"timeout_at,omitempty"` // Unix seconds
	CreatedAt       string           `json:"created_at"`
}

// lostNode gives the node of a sandbox where the cluster has given it up.
func (s *Server) lostNode(sb fsm.Sandbox) (fsm.Node, bool) {
	n, _ := s.log.State().Node(sb.Owner)
	return n, n.Lost()
}

func lostReason(n fsm.Node) string {
	return fmt.Sprintf("as last known: node %s has not answered since %s", n.Label(), timeView(n.LostAt))
}

func (s *Server) sandboxItemView(sb fsm.Sandbox) sandboxItem {
	_, lost := s.lostNode(sb)
	return sandboxItem{
		ID: sb.ID, TemplateID: sb.Template, TemplateName: sb.TemplateName, PodID: sb.Owner, State: sb.State,
		NodeUnreachable: lost,
		LaunchTime:      timeView(sb.LaunchedAt), StateChangeTime: timeView(sb.StateAt), TimeoutAt: unixView(sb.TimeoutAt),
		CreatedAt: timeView(sb.CreatedAt),
	}
}

// Snapshot is a snapshot on the wire.
type Snapshot struct {
	ID            fsm.SnapshotID     `json:"id"`
	Name          string             `json:"name"`
	TemplateID    fsm.TemplateID     `json:"template_id"`
	TemplateName  string             `json:"template_name"`
	SandboxID     fsm.SandboxID      `json:"sandbox_id"` // the source
	VCPU          int                `json:"vcpu"`
	Memory        int64              `json:"memory"` // MiB
	Disk          int64              `json:"disk"`   // MiB
	NetworkPolicy *fsm.NetworkPolicy `json:"network_policy,omitempty"`
	PodID         fsm.NodeID         `json:"pod_id"`                 // the node that holds the data
	StoredBytes   int64              `json:"stored_bytes"`           // allocated when it was taken
	PauseMS       float64            `json:"pause_ms"`               // how long the source's VM was held
	CloneMethod   string             `json:"clone_method,omitempty"` // "reflink" or "copy"
	CreatedAt     string             `json:"created_at"`
}

func snapshotView(sn fsm.Snapshot) Snapshot {
	v := Snapshot{
		ID: sn.ID, Name: sn.Name, TemplateID: sn.Template, TemplateName: sn.TemplateName, SandboxID: sn.Sandbox,
		VCPU: sn.VCPU, Memory: sn.MemoryMiB, Disk: sn.DiskMiB, NetworkPolicy: redactPolicy(sn.NetworkPolicy),
		PodID: sn.Owner, CreatedAt: timeView(sn.CreatedAt),
	}
	if m := sn.Manifest; m != nil {
		for _, f := range m.Files {
			v.StoredBytes += f.Stored
		}
		v.PauseMS = float64(m.PauseNanos/1000) / 1000
		v.CloneMethod = m.CloneMethod
	}
	return v
}

// template is a template on the wire.
type template struct {
	ID        fsm.TemplateID `json:"id"`
	Name      string         `json:"name"`
	Digest    string         `json:"digest"`
	IsSystem  bool           `json:"is_system"`
	CreatedAt string         `json:"created_at"`
}

func templateView(t fsm.Template) template {
	return template{t.ID, t.Name, t.Digest, t.Org == "", timeView(t.CreatedAt)}
}

// page is one page of a list.
type page[T any] struct {
	Items      []T `json:"items"`
	TotalItems int `json:"total_items"` // of all pages
}

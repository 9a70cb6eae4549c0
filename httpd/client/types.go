package client

import (
	"encoding/json"
	"time"
)

// NetworkPolicy is the egress policy of a sandbox. Values of InjectHeaders are secrets: a node answers them redacted.
type NetworkPolicy struct {
	Mode         string      `json:"mode"` // allow-all, deny-all or custom
	AllowDomains []string    `json:"allow_domains,omitempty"`
	AllowCIDRs   []string    `json:"allow_cidrs,omitempty"`
	Transforms   []Transform `json:"transforms,omitempty"`
}

// Transform changes requests from a sandbox to a domain.
type Transform struct {
	Domain        string            `json:"domain"`
	InjectHeaders map[string]string `json:"inject_headers,omitempty"`
	StripHeaders  []string          `json:"strip_headers,omitempty"`
}

// Sandbox is a sandbox as a node describes it. Memory and Disk are MiB, Timeout is seconds.
type Sandbox struct {
	ID           string `json:"id"`
	TemplateID   string `json:"template_id"`
	TemplateName string `json:"template_name"`
	VCPU         int    `json:"vcpu"`
	Memory       int64  `json:"memory"`
	Disk         int64  `json:"disk"`
	Timeout      int64  `json:"timeout"`
	State        string `json:"state"`
	StateReason  string `json:"state_reason"`
	// NodeUnreachable: State is as last known, for the sandbox's node does not answer.
	NodeUnreachable bool              `json:"node_unreachable"`
	AutoPause       bool              `json:"auto_pause"`
	EnvVars         map[string]string `json:"env_vars"`
	NetworkPolicy   *NetworkPolicy    `json:"network_policy"`
	NetworkStatus   string            `json:"network_status"` // enforced, isolated, changing or denied
	NetworkNote     string            `json:"network_note"`   // why the policy is not what was last asked for
	SnapshotID      string            `json:"snapshot_id"`    // restored from this one; empty for a created one
	PodID           string            `json:"pod_id"`         // the node
	TimeoutAt       int64             `json:"timeout_at"`     // Unix seconds; 0 while there is none
	Warnings        []string          `json:"warnings"`       // what was accepted and is not carried out
	CreatedAt       time.Time         `json:"created_at"`
	UpdatedAt       time.Time         `json:"updated_at"`
	Raw             json.RawMessage   `json:"-"`
}

// UnmarshalJSON decodes and keeps the exact input in Raw.
func (s *Sandbox) UnmarshalJSON(b []byte) error {
	type plain Sandbox
	return keepRaw(b, (*plain)(s), &s.Raw)
}

// SandboxItem is a sandbox in a list. TimeoutAt is Unix seconds, 0 while there is none.
type SandboxItem struct {
	ID              string          `json:"id"`
	TemplateID      string          `json:"template_id"`
	TemplateName    string          `json:"template_name"` // empty where the node does not tell
	PodID           string          `json:"pod_id"`        // the node; empty while unplaced
	State           string          `json:"state"`
	LaunchTime      time.Time       `json:"launch_time"`
	StateChangeTime time.Time       `json:"state_change_time"`
	TimeoutAt       int64           `json:"timeout_at"`
	CreatedAt       time.Time       `json:"created_at"`
	Raw             json.RawMessage `json:"-"`
}

// UnmarshalJSON decodes and keeps the exact input in Raw.
func (s *SandboxItem) UnmarshalJSON(b []byte) error {
	type plain SandboxItem
	return keepRaw(b, (*plain)(s), &s.Raw)
}

// Snapshot is a snapshot as a node describes it. Memory and Disk are MiB.
type Snapshot struct {
	ID            string          `json:"id"`
	Name          string          `json:"name"`
	TemplateID    string          `json:"template_id"`
	TemplateName  string          `json:"template_name"`
	SandboxID     string          `json:"sandbox_id"` // the source
	VCPU          int             `json:"vcpu"`
	Memory        int64           `json:"memory"`
	Disk          int64           `json:"disk"`
	NetworkPolicy *NetworkPolicy  `json:"network_policy"`
	StoredBytes   int64           `json:"stored_bytes"` // allocated when it was taken
	PauseMS       float64         `json:"pause_ms"`     // how long the source was held, milliseconds
	CloneMethod   string          `json:"clone_method"` // reflink or copy
	CreatedAt     time.Time       `json:"created_at"`
	Raw           json.RawMessage `json:"-"`
}

// UnmarshalJSON decodes and keeps the exact input in Raw.
func (s *Snapshot) UnmarshalJSON(b []byte) error {
	type plain Snapshot
	return keepRaw(b, (*plain)(s), &s.Raw)
}

func keepRaw(b []byte, into any, raw *json.RawMessage) error {
	if err := json.Unmarshal(b, into); err != nil {
		return err
	}
	*raw = append(json.RawMessage(nil), b...)
	return nil
}

package vmm

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// The shape is that of Cloud Hypervisor v53; the number is one that a float64 would not keep.
const stateWithClock = `{"id":"","snapshots":{"cpu":{"x":18446744073709551615}},` +
	`"snapshot_data":{"state":"{\"clock\":{\"Kvm\":[1,2,3,4,5,6,7,8,14,0,0,0,9]},\"big\":18446744073709551615}","v":1}}`

func TestKeepClockStillClearsOneFlagAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, StateFile)
	require.NoError(t, os.WriteFile(path, []byte(stateWithClock), 0o600))

	changed, err := KeepClockStill(dir)
	require.NoError(t, err)
	require.True(t, changed)
	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	var doc struct {
		Snapshots json.RawMessage `json:"snapshots"`
		Data      struct {
			State string `json:"state"`
			V     int    `json:"v"`
		} `json:"snapshot_data"`
	}
	require.NoError(t, json.Unmarshal(raw, &doc))
	require.JSONEq(t, `{"clock":{"Kvm":[1,2,3,4,5,6,7,8,10,0,0,0,9]},"big":18446744073709551615}`, doc.Data.State)
	require.Contains(t, doc.Data.State, "18446744073709551615")
	require.Contains(t, string(doc.Snapshots), "18446744073709551615")
	require.Equal(t, 1, doc.Data.V)

	changed, err = KeepClockStill(dir)
	require.NoError(t, err)
	require.False(t, changed, "a second time there is nothing to do")
}

func TestKeepClockStillLeavesOtherStatesAlone(t *testing.T) {
	for _, state := range []string{
		`{"version":1}`, `{"snapshot_data":{"state":"not JSON"}}`, `{"snapshot_data":{"state":"{\"clock\":{\"Kvm\":[1]}}"}}`,
		`{"snapshot_data":{"state":"{\"clock\":{\"Kvm\":\"text\"}}"}}`, `{"snapshot_data":{"state":"{\"clock\":null}"}}`,
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, StateFile)
		require.NoError(t, os.WriteFile(path, []byte(state), 0o600))
		changed, err := KeepClockStill(dir)
		require.NoError(t, err)
		require.False(t, changed)
		raw, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, state, string(raw))
	}
}

package cluster

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/cluster/seal"
)

// Init gives every member the same keys for secrets, readable by nobody else, and RotateSecrets adds one everywhere.
func TestMembersShareTheirKeys(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "c")
	members := []Member{{"node-a", "a", "127.0.0.1:1"}, {"node-b", "b", "127.0.0.1:2"}}
	require.NoError(t, Init(dir, members))
	var rings []*seal.Ring
	for _, m := range members {
		id, err := OpenIdentity(filepath.Join(dir, m.Name), slog.Default())
		require.NoError(t, err)
		st, err := os.Stat(id.SecretsFile())
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), st.Mode().Perm())
		ring, err := seal.Open(id.SecretsFile(), slog.Default())
		require.NoError(t, err)
		rings = append(rings, ring)
	}
	require.Len(t, rings[0].KeyIDs(), 1)
	require.Equal(t, rings[0].KeyIDs(), rings[1].KeyIDs())

	require.NoError(t, os.Mkdir(filepath.Join(dir, "notes"), 0o755), "a folder of no member")
	key, from, err := RotateSecrets(dir, time.Now().Add(time.Hour))
	require.NoError(t, err)
	require.True(t, from.After(time.Now()))
	for _, ring := range rings {
		require.Len(t, ring.KeyIDs(), 2)
		require.Equal(t, key, ring.KeyIDs()[0])
		require.NotEqual(t, key, ring.SealingKey(), "not before its time")
	}
	_, err = os.Stat(filepath.Join(dir, "notes", seal.FileName))
	require.ErrorIs(t, err, os.ErrNotExist)
	_, _, err = RotateSecrets(t.TempDir(), time.Now())
	require.ErrorContains(t, err, "holds no cluster")
	_, _, err = RotateSecrets(filepath.Join(dir, "none"), time.Now())
	require.ErrorIs(t, err, os.ErrNotExist)
}

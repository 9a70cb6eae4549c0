package fsm

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestEveryCommandHasALevel holds the versions of every command to levels that this program has, in order.
func TestEveryCommandHasALevel(t *testing.T) {
	for _, cmd := range everyCommand() {
		b, err := Encode(cmd)
		require.NoError(t, err)
		require.Positive(t, Needs(b))
		require.LessOrEqual(t, Needs(b), Level, "%T", cmd)
	}
	for typ, of := range levels {
		require.Len(t, decoders[typ], len(of), "type %d: a new version has a level of its own", typ)
		require.IsNonDecreasing(t, of)
	}
	require.Equal(t, 1, Needs([]byte{envelopeFormat, byte(TypeTick), 1}))
	for _, newer := range [][]byte{nil, {1, 200, 1}, {1, byte(TypeTick), 2}, {1, byte(TypeTick), 0}} {
		require.Equal(t, Level, Needs(newer))
	}
}

// TestClusterLevel is the least of what the registered nodes know, and falls when one goes back.
func TestClusterLevel(t *testing.T) {
	w := newWorld(t) // with a node that says nothing of its level
	require.Equal(t, 1, New().Level())
	require.Equal(t, 1, w.s.Level())
	at := func(id NodeID, level int) {
		w.ok(RegisterNode{Now: w.now, Node: Node{ID: id, Name: string(id), Level: level}})
	}
	for _, n := range w.s.Nodes() {
		at(n.ID, 3)
	}
	require.Equal(t, 3, w.s.Level())
	at("node-old", 2)
	require.Equal(t, 2, w.s.Level())
	require.Equal(t, "node-old", w.s.Outdated())
	at("node-old", 5)
	require.Equal(t, 3, w.s.Level())
	at("node-old", 0)
	require.Equal(t, 1, w.s.Level())
	w.refused(RegisterNode{Now: w.now, Node: Node{ID: "n", Level: -1}}, KindInvalid, "level")
	require.Equal(t, w.s.Level(), roundTrip(t, w.s).Level())
}

// TestNewerStateIsToldFromADamagedOne gives Read what a newer program would write: a version, a table and a field that
// it does not know, each with a digest that is right, and with one that is not.
func TestNewerStateIsToldFromADamagedOne(t *testing.T) {
	var buf bytes.Buffer
	_, err := fullWorld(t).s.WriteTo(&buf)
	require.NoError(t, err)
	rows := buf.Bytes()[len(streamMagic) : buf.Len()-sha256.Size-1]
	field := frame(tagRequest, []byte{0x81, 0xa2, 'z', 'z', 1})
	for name, body := range map[string][]byte{
		"version": append([]byte("stillframe state 2\n"), rows...),
		"table":   bytes.Join([][]byte{streamMagic, rows, frame(200, []byte("row"))}, nil),
		"field":   bytes.Join([][]byte{streamMagic, rows, field}, nil),
		"between": bytes.Join([][]byte{streamMagic, rows, field, frame(99, nil), frame(200, nil)}, nil),
	} {
		t.Run(name, func(t *testing.T) {
			body = append(body, tagEnd)
			sum := sha256.Sum256(body)
			s, err := Read(bytes.NewReader(append(bytes.Clone(body), sum[:]...)))
			require.ErrorIs(t, err, ErrUnknownState)
			require.Nil(t, s)
			if name == "version" {
				return // nothing is known of its digest
			}
			sum[0]++
			_, err = Read(bytes.NewReader(append(body, sum[:]...)))
			require.ErrorIs(t, err, errDamaged)
			require.NotErrorIs(t, err, ErrUnknownState)
		})
	}
}

// frame is a row as it stands in a stream.
func frame(tag byte, row []byte) []byte {
	return append(binary.AppendUvarint([]byte{tag}, uint64(len(row))), row...)
}

// sealed is a stream of parts, with its end and its digest.
func sealed(parts ...[]byte) []byte {
	body := append(bytes.Join(parts, nil), tagEnd)
	sum := sha256.Sum256(body)
	return append(body, sum[:]...)
}

// What an older program knows is written as it knows it; what it does not know needs more than its level.
func TestFieldsOfALaterLevel(t *testing.T) {
	for _, cmd := range []Command{
		PutOrg{Now: t0, Org: Org{MaxRequests: 1}}, CreateSandbox{Now: t0, CA: []byte("ca")},
		RestoreSnapshot{Now: t0, CA: []byte("ca")}, Complete{Now: t0, PolicyFellBack: true},
	} {
		b, err := Encode(cmd)
		require.NoError(t, err)
		require.Equal(t, 2, Needs(b), "%T", cmd)
		b, err = Encode(zeroOf(cmd))
		require.NoError(t, err)
		require.Equal(t, 1, Needs(b), "%T", cmd)
	}
	for _, cmd := range []Command{SetNetworkPolicy{}, Reseal{}, SetOrgLimits{}} {
		b, err := Encode(cmd)
		require.NoError(t, err)
		require.Equal(t, 2, Needs(b), "%T", cmd)
	}
}

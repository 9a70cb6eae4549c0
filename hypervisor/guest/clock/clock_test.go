package clock

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTimestampsSurviveTheWire(t *testing.T) {
	for _, want := range []time.Time{
		time.Unix(0, 0), time.Unix(1_790_000_000, 999_999_999), time.Unix(1_790_000_000, 1),
		time.Date(2036, 2, 7, 6, 28, 15, 0, time.UTC), time.Date(2036, 2, 7, 6, 28, 16, 5, time.UTC), // the era ends
		time.Date(2090, 1, 1, 0, 0, 0, 123, time.UTC),
	} {
		require.WithinDuration(t, want, fromNTP(toNTP(want)), time.Nanosecond, want)
	}
}

func TestServe(t *testing.T) {
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, conn) }()

	client, err := net.Dial("udp4", conn.LocalAddr().String())
	require.NoError(t, err)
	defer client.Close()
	require.NoError(t, client.SetDeadline(time.Now().Add(10*time.Second)))
	for _, junk := range [][]byte{{1}, make([]byte, PacketSize)} { // too short; not a client's
		_, err = client.Write(junk)
		require.NoError(t, err)
	}
	var last time.Time
	for token := uint64(1); token <= 3; token++ {
		before := time.Now()
		p := Request(token)
		_, err = client.Write(p[:])
		require.NoError(t, err)
		b := make([]byte, 512)
		n, err := client.Read(b)
		require.NoError(t, err)
		got, at, err := ParseReply(b[:n])
		require.NoError(t, err)
		require.Equal(t, token, got, "junk has no answer")
		require.False(t, at.Before(before.Add(-time.Microsecond)) || at.After(time.Now().Add(time.Microsecond)))
		require.True(t, at.After(last))
		last = at
	}
	cancel()
	require.NoError(t, <-served)
}

func FuzzReply(f *testing.F) {
	p := Request(7)
	f.Add(p[:])
	f.Fuzz(func(t *testing.T, b []byte) {
		now := time.Unix(1_790_000_000, 0)
		r, ok := reply(b, now, func() time.Time { return now })
		if !ok {
			return
		}
		_, at, err := ParseReply(r[:])
		require.NoError(t, err)
		require.WithinDuration(t, now, at, time.Nanosecond)
	})
}

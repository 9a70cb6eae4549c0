// Package clock lets a guest read the node's time over UDP, in the packet format of NTP. Its use is to measure, from
// inside the guest, how long the guest stood still: the guest's own clocks may stand still with it.
//
// The package imports the standard library only. The caller makes the socket, inside the sandbox's network namespace.
//
// It promises nothing about accuracy beyond that of the node's clock, and it is no time service for the guest: the
// guest's clock is set by its identity call.
package clock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// Serve answers requests that arrive at conn until ctx ends, then closes conn. The times it gives are those of the
// monotonic clock since it began, on top of the wall clock then, so that an adjustment of the node's clock does not
// look like a gap.
func Serve(ctx context.Context, conn net.PacketConn) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer conn.Close() //nolint:errcheck // closed twice at worst
	start := time.Now()
	now := func() time.Time { return start.Add(time.Since(start)) }
	buf := make([]byte, 512)
	for {
		n, peer, err := conn.ReadFrom(buf)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("clock: %w", err)
		}
		if p, ok := reply(buf[:n], now(), now); ok {
			_, _ = conn.WriteTo(p[:], peer) // a lost answer is asked for again
		}
	}
}

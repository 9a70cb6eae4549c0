package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
)

// DialFunc opens a connection inside the sandbox's network namespace.
type DialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

const (
	// hedgeFirst is the pause between the first attempt to connect and the next beside it. Linux sends a lost SYN again
	// only after a second, and the first packets after a boot or a restore are the ones that get lost.
	hedgeFirst = 20 * time.Millisecond
	// hedgeLast is what the pause grows to by doubling: a guest that is too slow to answer must not be given ever more to
	// do, or it never will.
	hedgeLast = time.Second
	// attemptLife bounds one attempt. It is far longer than the pause, because a guest under load answers late, and
	// attempts that are given up before the answer would never succeed.
	attemptLife = 5 * time.Second
	// connectTimeout bounds connecting as a whole, for calls whose context allows more.
	connectTimeout = 10 * time.Second
)

// Connect opens one connection to the agent, as a Client does for each of its calls.
func Connect(ctx context.Context, dial DialFunc) (net.Conn, error) {
	return connect(ctx, dial, "tcp", Addr)
}

type dialResult struct {
	conn net.Conn
	err  error
}

// connect opens one connection by starting a new attempt after ever longer pauses until any succeeds. An answer that is
// not a mere timeout (refused, for one) ends it at once: waiting for an agent to appear is WaitHealthy's work.
func connect(ctx context.Context, dial DialFunc, network, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	results := make(chan dialResult)
	running := 0
	start := func() {
		running++
		go func() {
			actx, acancel := context.WithTimeout(ctx, attemptLife)
			defer acancel()
			c, err := dial(actx, network, addr)
			results <- dialResult{c, err}
		}()
	}
	defer func() {
		cancel()
		go closeLosers(results, running)
	}()

	pause := hedgeFirst
	tick := time.NewTimer(pause)
	defer tick.Stop()
	start()
	for {
		select {
		case r := <-results:
			running--
			if r.err == nil {
				return r.conn, nil
			}
			if !isTimeout(r.err) {
				return nil, r.err
			}
		case <-tick.C:
			start()
			pause = min(2*pause, hedgeLast)
			tick.Reset(pause)
		case <-ctx.Done():
			return nil, fmt.Errorf("connect to %s: %w", addr, ctx.Err())
		}
	}
}

// closeLosers takes the results of the attempts that were still under way, which their cancelled context ends soon.
func closeLosers(results <-chan dialResult, running int) {
	for ; running > 0; running-- {
		if r := <-results; r.conn != nil {
			_ = r.conn.Close()
		}
	}
}

// isTimeout: nobody answered, yet. An unreachable host counts, as that is what a lost ARP answer looks like.
func isTimeout(err error) bool {
	var ne net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) ||
		errors.Is(err, syscall.ETIMEDOUT) || errors.Is(err, syscall.EHOSTUNREACH) ||
		(errors.As(err, &ne) && ne.Timeout())
}

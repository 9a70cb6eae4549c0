package cli

import (
	"fmt"
	"time"
)

// progress tells a person that something is under way and for how long, on one line of Err that is gone afterwards.
// Without a terminal it says nothing. The returned function ends it and must be called; it returns once the line is
// gone.
func (a *app) progress(format string, args ...any) func() {
	if !a.env.Terminal(a.env.Err) {
		return func() {}
	}
	what := clean(fmt.Sprintf(format, args...))
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		ticks := time.NewTicker(200 * time.Millisecond)
		defer ticks.Stop()
		start := a.env.Now()
		for frame := 0; ; frame++ {
			elapsed := a.env.Now().Sub(start).Seconds()
			fmt.Fprintf(a.env.Err, "\r\033[K%c %s… %.1fs", `|/-\`[frame%4], what, elapsed)
			select {
			case <-stop:
				fmt.Fprint(a.env.Err, "\r\033[K")
				return
			case <-ticks.C:
			}
		}
	}()
	return func() { close(stop); <-done }
}

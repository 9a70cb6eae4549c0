package agent

import (
	"context"
	"flag"
	"fmt"
	"time"
)

// Counter counts until ctx ends. The number is kept in this process's memory only; each time it grows, it is written
// to a file together with the wall clock and the monotonic clock, all in nanoseconds.
func Counter(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("counter", flag.ContinueOnError)
	every := flags.Duration("every", 10*time.Millisecond, "how often to count")
	file := flags.String("file", "/dev/shm/counter", "the file to write: NUMBER UNIX_NS BOOT_NS")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *every <= 0 {
		return fmt.Errorf("-every must be positive")
	}
	tick := time.NewTicker(*every)
	defer tick.Stop()
	for n := uint64(1); ; n++ {
		line := fmt.Sprintf("%d %d %d\n", n, time.Now().UnixNano(), sinceBoot().Nanoseconds())
		if err := replaceFile(*file, []byte(line), 0o644); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"stillframe/hypervisor/guest"
)

// probe runs the guest's own tools: whatever is told of a guest here was measured in it.
type probe struct{ client *guest.Client }

func (p probe) sh(ctx context.Context, command string) (string, error) {
	r, err := p.client.Exec(ctx, guest.ExecRequest{Command: command, Timeout: 5 * time.Minute})
	if err != nil {
		return "", err
	}
	if r.ExitCode != 0 {
		return "", fmt.Errorf("%s: exit code %d: %s", command, r.ExitCode, r.Stderr)
	}
	return strings.TrimSpace(string(r.Stdout)), nil
}

// load fills three quarters of the guest's memory and then writes to it at a rate, in MiB/s, until unload.
func (p probe) load(ctx context.Context, memoryMiB, rate int) error {
	_, err := p.sh(ctx, fmt.Sprintf(`rm -f /run/loaded
stillframe-guest load --mib %d --rate %d --ready /run/loaded >/run/load.log 2>&1 & echo $! >/run/load.pid
until [ -e /run/loaded ]; do kill -0 $(cat /run/load.pid) || { cat /run/load.log >&2; exit 1; }; sleep 0.1; done`,
		memoryMiB*3/4-64, rate))
	return err
}

func (p probe) unload(ctx context.Context) error {
	_, err := p.sh(ctx, `kill $(cat /run/load.pid); while kill -0 $(cat /run/load.pid) 2>/dev/null; do sleep 0.05; done`)
	return err
}

// stillness calls during while the guest watches the host's clock, and gives the longest time that the guest saw none
// of it pass, less the usual time between two looks.
func (p probe) stillness(ctx context.Context, during func() error) (time.Duration, error) {
	_, err := p.sh(ctx, `stillframe-guest stillness --for 0 --every 200us >/run/still 2>&1 &
echo $! >/run/still.pid; sleep 1`)
	if err != nil {
		return 0, err
	}
	if err := during(); err != nil {
		return 0, err
	}
	out, err := p.sh(ctx, `sleep 0.5; kill $(cat /run/still.pid); while kill -0 $(cat /run/still.pid) 2>/dev/null
do sleep 0.05; done; cat /run/still`)
	if err != nil {
		return 0, err
	}
	var report struct {
		Samples    int           `json:"samples"`
		LargestGap time.Duration `json:"largest_gap_ns"`
		MedianGap  time.Duration `json:"median_gap_ns"`
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		return 0, fmt.Errorf("stillness report %q: %w", out, err)
	}
	return report.LargestGap - report.MedianGap, nil
}

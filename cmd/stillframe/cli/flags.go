package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// seconds is a flag that takes whole seconds ("300") or a duration ("5m"); part of a second counts as one.
type seconds int64

func (s *seconds) String() string {
	if *s == 0 {
		return ""
	}
	return (time.Duration(*s) * time.Second).String()
}
func (s *seconds) Type() string { return "duration" }
func (s *seconds) Set(text string) error {
	if n, err := strconv.ParseInt(text, 10, 32); err == nil && n > 0 {
		*s = seconds(n)
		return nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return fmt.Errorf("want seconds or a duration like 90s, 5m or 2h")
	}
	*s = seconds(math.Ceil(d.Seconds()))
	return nil
}

// mib is a flag that takes MiB ("1024") or a size ("512MiB", "2GiB").
type mib int64

func (m *mib) String() string {
	if *m == 0 {
		return ""
	}
	return mebibytes(int64(*m))
}
func (m *mib) Type() string { return "size" }
func (m *mib) Set(text string) error {
	number, factor := text, int64(1)
	for suffix, f := range map[string]int64{"MiB": 1, "M": 1, "GiB": 1024, "G": 1024} {
		if cut, ok := strings.CutSuffix(text, suffix); ok {
			number, factor = strings.TrimSpace(cut), f
		}
	}
	n, err := strconv.ParseInt(number, 10, 32)
	if err != nil || n <= 0 {
		return fmt.Errorf("want MiB, or a size like 512MiB or 2GiB")
	}
	*m = mib(n * factor)
	return nil
}

// environment reads NAME=VALUE or NAME settings; a bare NAME takes the value from the caller's environment, so that a
// secret need not stand in a process list.
func (a *app) environment(settings []string) (map[string]string, error) {
	if len(settings) == 0 {
		return nil, nil
	}
	env := make(map[string]string, len(settings))
	for _, s := range settings {
		name, value, given := strings.Cut(s, "=")
		if name == "" {
			return nil, usagef("--env %q: want NAME=VALUE or NAME", s)
		}
		if !given {
			if value = a.env.Getenv(name); value == "" {
				return nil, usagef("--env %s: no such variable here; to set it empty write %s=", name, name)
			}
		}
		env[name] = value
	}
	return env, nil
}

// network is the pair of flags for an egress policy.
type network struct {
	mode string
	file string
}

func (n *network) flags(cmd *cobra.Command) {
	wordFlag(cmd, cmd.Flags(), &n.mode, "network", "", []string{"allow-all", "deny-all"}, "egress policy in a word")
	cmd.Flags().StringVar(&n.file, "network-policy", "", "file with an egress policy as JSON; - is standard input")
}

// policy gives the policy as JSON, nil when none is asked for. What it says is the node's to judge.
func (n *network) policy(a *app) (json.RawMessage, error) {
	if n.mode != "" && n.file != "" {
		return nil, usagef("--network and --network-policy exclude each other")
	}
	if n.mode != "" {
		return json.Marshal(map[string]string{"mode": n.mode})
	}
	if n.file == "" {
		return nil, nil
	}
	var b []byte
	var err error
	if n.file == "-" {
		b, err = io.ReadAll(io.LimitReader(a.env.In, 1<<20))
	} else {
		b, err = os.ReadFile(n.file)
	}
	if err != nil {
		return nil, usagef("--network-policy: %w", err)
	}
	if !json.Valid(b) {
		return nil, usagef("--network-policy: %s is not JSON", n.file)
	}
	return b, nil
}

func idempotencyFlag(cmd *cobra.Command, into *string) {
	cmd.Flags().StringVar(into, "idempotency-key", "",
		"repeat a request by its key: the answer is that of the first (default: a new key)")
}

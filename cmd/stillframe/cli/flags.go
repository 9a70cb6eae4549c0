package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"stillframe/httpd/client"
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

// network is the flags for a network policy.
type network struct {
	modeFlag, fileFlag string   // their names
	modes              []string // that may be said in a word

	mode    string
	file    string
	domains []string
	cidrs   []string
	inject  []string
}

// newNetwork is the flags of commands that make sandboxes.
func newNetwork() network {
	return network{modeFlag: "network", fileFlag: "policy-file", modes: []string{"allow-all", "deny-all"}}
}

func (n *network) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	wordFlag(cmd, f, &n.mode, n.modeFlag, "", n.modes, "network policy in a word, "+strings.Join(n.modes, ", "))
	f.StringArrayVar(&n.domains, "allow-domain", nil, "host name, or *. and a host name, that it may reach (repeatable)")
	f.StringArrayVar(&n.cidrs, "allow-cidr", nil, "range of addresses that it may reach (repeatable)")
	f.StringArrayVar(&n.inject, "inject", nil,
		"set a header towards a domain, from a variable: `DOMAIN:HEADER=VAR` (repeatable)")
	f.StringVar(&n.file, n.fileFlag, "", "file with a network policy as JSON; - is standard input")
	_ = cmd.MarkFlagFilename(n.fileFlag, "json")
}

// policy gives the policy as JSON, nil when none is asked for. What it says is the node's to judge.
func (n *network) policy(a *app) (json.RawMessage, error) {
	lists := len(n.domains) + len(n.cidrs)
	switch {
	case n.file != "" && (n.mode != "" || lists+len(n.inject) > 0):
		return nil, usagef("--%s and the other flags for the network exclude each other", n.fileFlag)
	case n.file != "":
		return n.read(a)
	case lists > 0 && n.mode != "" && n.mode != modeCustom:
		return nil, usagef("--%s %s and --allow-domain or --allow-cidr exclude each other", n.modeFlag, n.mode)
	case n.mode == "" && lists+len(n.inject) == 0:
		return nil, nil
	}
	p := client.NetworkPolicy{Mode: either(n.mode, modeCustom), AllowDomains: n.domains, AllowCIDRs: n.cidrs}
	for _, text := range n.inject {
		if err := addInjection(a, &p, text); err != nil {
			return nil, err
		}
	}
	return json.Marshal(p)
}

const modeCustom = "custom"

// addInjection reads DOMAIN:HEADER=VAR. The value is a secret and stands in no argument, error or process list; as
// somebody may have put it there all the same, what follows = is not repeated.
func addInjection(a *app, p *client.NetworkPolicy, text string) error {
	where, variable, ok := strings.Cut(text, "=")
	domain, header, both := strings.Cut(where, ":")
	if !ok || !both || domain == "" || header == "" || variable == "" {
		return usagef("--inject: want DOMAIN:HEADER=VAR")
	}
	value := a.env.Getenv(variable)
	if value == "" {
		return usagef("--inject %s: what follows = must be the name of a variable that is set here", where)
	}
	for i := range p.Transforms {
		if t := &p.Transforms[i]; t.Domain == domain {
			if _, twice := t.InjectHeaders[header]; twice {
				return usagef("--inject %s: given twice", where)
			}
			t.InjectHeaders[header] = value
			return nil
		}
	}
	p.Transforms = append(p.Transforms, client.Transform{Domain: domain, InjectHeaders: map[string]string{header: value}})
	return nil
}

// read reads the file.
func (n *network) read(a *app) (json.RawMessage, error) {
	var b []byte
	var err error
	if n.file == "-" {
		b, err = io.ReadAll(io.LimitReader(a.env.In, 1<<20))
	} else {
		b, err = os.ReadFile(n.file)
	}
	if err != nil {
		return nil, usagef("--%s: %w", n.fileFlag, err)
	}
	if !json.Valid(b) {
		return nil, usagef("--%s: %s is not JSON", n.fileFlag, n.file)
	}
	return b, nil
}

func sortedNames(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

func idempotencyFlag(cmd *cobra.Command, into *string) {
	cmd.Flags().StringVar(into, "idempotency-key", "",
		"repeat a request by its key: the answer is that of the first (default: a new key)")
}

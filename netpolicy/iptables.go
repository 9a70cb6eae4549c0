package netpolicy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"
)

// toolDeadline is more than a table of the largest policy takes on a machine that is busy with other things.
const toolDeadline = 30 * time.Second

// tools are the programs that write and read rules: those of iptables-nft, because the kernel tells when an nftables
// rule set has changed, and tells nothing of the older kind.
type tools struct {
	restore, save, restore6, save6, restoreARP, saveARP string
}

// findTools looks for the programs and makes sure that they are of the kind that is meant.
func findTools(ctx context.Context) (tools, error) {
	var t tools
	for _, p := range []struct {
		path  *string
		names []string
	}{
		{&t.restore, []string{"iptables-nft-restore", "iptables-restore"}},
		{&t.save, []string{"iptables-nft-save", "iptables-save"}},
		{&t.restore6, []string{"ip6tables-nft-restore", "ip6tables-restore"}},
		{&t.save6, []string{"ip6tables-nft-save", "ip6tables-save"}},
		{&t.restoreARP, []string{"arptables-nft-restore", "arptables-restore"}},
		{&t.saveARP, []string{"arptables-nft-save", "arptables-save"}},
	} {
		for _, name := range p.names {
			if path, err := exec.LookPath(name); err == nil {
				*p.path = path
				break
			}
		}
		if *p.path == "" {
			return tools{}, fmt.Errorf("%s is not installed (package iptables)", p.names[1])
		}
	}
	for _, path := range []string{t.restore, t.save, t.restore6, t.save6} {
		out, err := exec.CommandContext(ctx, path, "--version").Output()
		if err != nil {
			return tools{}, fmt.Errorf("%s --version: %w", path, err)
		}
		if !bytes.Contains(out, []byte("(nf_tables)")) {
			return tools{}, fmt.Errorf("%s is %q, but only iptables-nft is supported: its changes can be noticed",
				path, strings.TrimSpace(string(out)))
		}
	}
	return t, nil
}

// run runs a program in the network namespace of the calling thread.
func run(ctx context.Context, path, input string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, toolDeadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin = strings.NewReader(input)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = errors.Join(ctx.Err(), err)
		}
		return "", fmt.Errorf("%s: %w: %s", path, err, strings.TrimSpace(complaint.String()))
	}
	return out.String(), nil
}

// tableSet is what iptables-save printed, or what iptables-restore is to be given, in a form that can be compared: for
// each table its lines without counters and comments, in order.
type tableSet map[string][]string

// parseTables reads the text of iptables-save, ip6tables-save or arptables-save. Tables that hold neither rules nor
// chains nor policies that refuse are left out: looking at a table with another tool is enough to make it.
func parseTables(text string) tableSet {
	set := tableSet{}
	name, idle := "", true
	finish := func() {
		if name != "" && idle {
			delete(set, name)
		}
		name, idle = "", true
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "*"):
			finish()
			name = line[1:]
			set[name] = []string{}
		case line == "COMMIT":
			finish()
		case strings.HasPrefix(line, ":"):
			chain, _, _ := strings.Cut(line, " [")
			idle = idle && strings.HasSuffix(chain, " ACCEPT")
			set[name] = append(set[name], chain)
		default:
			idle = false
			set[name] = append(set[name], normalRule(line))
		}
	}
	finish()
	for table := range set {
		slices.SortStableFunc(set[table], chainsFirst)
	}
	return set
}

// normalRule takes the padding out of a rule, and puts what the kernel counts in the place of a rate in bytes, which is
// not printed as it was written. The order of a rule's parts is left as it is: two rules that mean the same are never
// written in two ways here.
func normalRule(line string) string {
	parts := strings.Fields(line)
	for i, part := range parts[:max(len(parts)-1, 0)] {
		if part == byteRateOption {
			parts[i+1] = byteCost(parts[i+1])
		}
	}
	return strings.Join(parts, " ")
}

const byteRateOption = "--hashlimit-above"

// byteCost is what sixteen bytes cost at a rate, as the hashlimit match has it: whole numbers, so that many rates are
// one to it. What is no rate stays as it is.
func byteCost(rate string) string {
	digits := strings.TrimRight(rate, "kmb/s")
	n, err := strconv.ParseUint(digits, 10, 32)
	shift, ok := map[string]int{"b/s": 0, "kb/s": 10, "mb/s": 20}[rate[len(digits):]]
	if err != nil || !ok {
		return rate
	}
	return fmt.Sprintf("cost-%d", math.MaxUint32/(n<<shift>>4+1))
}

// chainsFirst sorts the declarations of chains by name and before the rules; rules of one chain keep their order, and
// that of different chains to each other says nothing.
func chainsFirst(a, b string) int { return strings.Compare(sortKey(a), sortKey(b)) }

func sortKey(line string) string {
	if strings.HasPrefix(line, ":") {
		return line
	}
	chain, _, _ := strings.Cut(strings.TrimPrefix(line, "-A "), " ")
	return "~" + chain // after ':'
}

// diff names the tables that differ, sorted.
func (s tableSet) diff(other tableSet) []string {
	var out []string
	for table, lines := range s {
		if !slices.Equal(lines, other[table]) {
			out = append(out, table)
		}
	}
	for table := range other {
		if _, here := s[table]; !here {
			out = append(out, table)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// explain says what the first difference of a table is, for a log.
func (s tableSet) explain(table string, want tableSet) string {
	have, meant := s[table], want[table]
	for i := range max(len(have), len(meant)) {
		switch {
		case i >= len(have):
			return fmt.Sprintf("%s: missing %q", table, meant[i])
		case i >= len(meant):
			return fmt.Sprintf("%s: too much %q", table, have[i])
		case have[i] != meant[i]:
			return fmt.Sprintf("%s: %q instead of %q", table, have[i], meant[i])
		}
	}
	return table + ": no difference"
}

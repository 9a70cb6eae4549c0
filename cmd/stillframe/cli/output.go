package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"stillframe/httpd/client"
)

const (
	outputTable = "table"
	outputJSON  = "json"
)

// withOutput gives a command and its children the flags that choose between people and programs.
func (a *app) withOutput(cmd *cobra.Command) *cobra.Command {
	f := cmd.PersistentFlags()
	f.BoolVarP(&a.quiet, "quiet", "q", false, "print ids only")
	a.output = outputTable
	wordFlag(cmd, f, &a.output, "output", "o", []string{outputTable, outputJSON}, "table for people, json for programs")
	return cmd
}

// wordFlag is a flag that takes one of a few words, and completes them.
func wordFlag(cmd *cobra.Command, f *pflag.FlagSet, into *string, name, short string, words []string, usage string) {
	f.VarP(&choice{into, words}, name, short, usage)
	err := cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic(err) // there is no such flag, or it was registered before: a fault in this program
	}
}

func (a *app) checkOutput() error {
	if a.quiet && a.output == outputJSON {
		return usagef("-q and -o json exclude each other")
	}
	return nil
}

// choice is a flag that takes one of a few words.
type choice struct {
	value *string
	words []string
}

func (c *choice) String() string { return *c.value }
func (c *choice) Type() string {
	if all := strings.Join(c.words, "|"); len(all) <= 22 { // else the help would be wider than a terminal
		return all
	}
	return "word"
}
func (c *choice) Set(s string) error {
	for _, w := range c.words {
		if s == w {
			*c.value = s
			return nil
		}
	}
	return fmt.Errorf("want one of %s", strings.Join(c.words, ", "))
}

// row is one line of a table: what it stands for, and what each column says.
type row struct {
	id    string
	raw   json.RawMessage
	cells []string
}

// printList writes a list as a table, as the API's JSON, or as ids.
func (a *app) printList(head []string, total int, rows []row) error {
	switch {
	case a.quiet:
		return a.printIDs(rows)
	case a.output == outputJSON:
		items := make([]json.RawMessage, len(rows))
		for i, r := range rows {
			items[i] = r.raw
		}
		b, err := json.Marshal(map[string]any{"items": items, "total_items": total})
		if err != nil {
			return err
		}
		return a.printRaw(b)
	}
	w := tabwriter.NewWriter(a.env.Out, 0, 0, 3, ' ', 0)
	writeLine(w, head)
	for _, r := range rows {
		writeLine(w, r.cells)
	}
	return w.Flush()
}

// printOne writes one thing, its fields below each other for people.
func (a *app) printOne(r row, names []string) error {
	switch {
	case a.quiet:
		return a.printIDs([]row{r})
	case a.output == outputJSON:
		return a.printRaw(r.raw)
	}
	w := tabwriter.NewWriter(a.env.Out, 0, 0, 3, ' ', 0)
	for i, name := range names {
		if r.cells[i] != "" {
			writeLine(w, []string{name, r.cells[i]})
		}
	}
	return w.Flush()
}

func (a *app) printIDs(rows []row) error {
	for _, r := range rows {
		if _, err := fmt.Fprintln(a.env.Out, clean(r.id)); err != nil {
			return err
		}
	}
	return nil
}

// printRaw writes JSON as it came, ended by a newline.
func (a *app) printRaw(b []byte) error {
	_, err := fmt.Fprintf(a.env.Out, "%s\n", strings.TrimRight(string(b), "\r\n"))
	return err
}

// say writes a line for people about what was done; programs that asked for JSON or ids are not told.
func (a *app) say(format string, args ...any) error {
	if a.quiet || a.output == outputJSON {
		return nil
	}
	_, err := fmt.Fprintf(a.env.Out, format+"\n", args...)
	return err
}

func writeLine(w io.Writer, cells []string) {
	safe := make([]string, len(cells))
	for i, c := range cells {
		if safe[i] = clean(c); safe[i] == "" {
			safe[i] = "-"
		}
	}
	_, _ = fmt.Fprintln(w, strings.Join(safe, "\t")) // a tabwriter keeps its error for Flush
}

// clean makes text of others harmless for a terminal: control characters, escapes among them, become spaces.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
			return ' '
		}
		return r
	}, s)
}

// age says how long ago something was, in one unit.
func (a *app) age(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return brief(a.env.Now().Sub(t))
}

// brief gives a duration in its largest whole unit.
func brief(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < 2*time.Minute:
		return strconv.Itoa(int(d/time.Second)) + "s"
	case d < 2*time.Hour:
		return strconv.Itoa(int(d/time.Minute)) + "m"
	case d < 48*time.Hour:
		return strconv.Itoa(int(d/time.Hour)) + "h"
	}
	return strconv.Itoa(int(d/(24*time.Hour))) + "d"
}

// mebibytes gives a size in MiB for people.
func mebibytes(n int64) string {
	switch {
	case n == 0:
		return ""
	case n%1024 == 0:
		return strconv.FormatInt(n/1024, 10) + " GiB"
	case n > 10*1024:
		return strconv.FormatFloat(float64(n)/1024, 'f', 1, 64) + " GiB"
	}
	return strconv.FormatInt(n, 10) + " MiB"
}

// bytesOf gives a size in bytes for people.
func bytesOf(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	v, u := float64(n), 0
	for v >= 1024 && u < len(units)-1 {
		v, u = v/1024, u+1
	}
	if u == 0 || v == float64(int64(v)) {
		return fmt.Sprintf("%d %s", int64(v), units[u])
	}
	return fmt.Sprintf("%.1f %s", v, units[u])
}

// policy names an egress policy in a word or two.
func policy(p *client.NetworkPolicy) string {
	if p == nil || p.Mode == "" {
		return "allow-all"
	}
	if p.Mode != "custom" {
		return p.Mode
	}
	return fmt.Sprintf("custom: %d domains, %d CIDRs, %d transforms",
		len(p.AllowDomains), len(p.AllowCIDRs), len(p.Transforms))
}

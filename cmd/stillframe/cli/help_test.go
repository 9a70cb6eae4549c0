package cli_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"stillframe/cmd/stillframe/cli"
)

var update = flag.Bool("update", false, "write the help texts as they are now")

// commands gives every command of the tree, the root first.
func commands(root *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{root}
	for _, c := range root.Commands() {
		if c.Name() != "completion" && !c.Hidden {
			all = append(all, commands(c)...)
		}
	}
	return all
}

// TestHelp compares every command's help with testdata/help. -update writes what is there now, to be read before it is
// committed.
func TestHelp(t *testing.T) {
	w := newWorld(t)
	known := map[string]bool{}
	for _, c := range commands(cli.New(w.env())) {
		name := strings.ReplaceAll(c.CommandPath(), " ", "-") + ".txt"
		known[name] = true
		t.Run(name, func(t *testing.T) {
			args := strings.Fields(c.CommandPath())[1:]
			got := w.does(append(args, "--help")...)
			require.Equal(t, got, w.does(append([]string{"help"}, args...)...), "both ways to ask give the same")
			golden := filepath.Join("testdata", "help", name)
			if *update {
				require.NoError(t, os.MkdirAll(filepath.Dir(golden), 0o755))
				require.NoError(t, os.WriteFile(golden, []byte(got), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Equal(t, string(want), got)
			for line := range strings.Lines(got) {
				require.LessOrEqual(t, len([]rune(line)), 121, "as wide as a terminal may be: %s", line)
			}
		})
	}
	files, err := os.ReadDir(filepath.Join("testdata", "help"))
	require.NoError(t, err)
	for _, f := range files {
		require.True(t, known[f.Name()], "%s is of no command", f.Name())
	}
}

// TestHelpIsTrue sees to it that every example is a command line that the commands take, and that what people read of
// a flag is all there.
func TestHelpIsTrue(t *testing.T) {
	w := newWorld(t)
	root := cli.New(w.env())
	for _, c := range commands(root) {
		require.NotEmpty(t, c.Short, c.CommandPath())
		require.False(t, strings.HasSuffix(c.Short, "."), c.CommandPath())
		c.Flags().VisitAll(func(f *pflag.Flag) { require.NotEmpty(t, f.Usage, "%s --%s", c.CommandPath(), f.Name) })
		for _, line := range strings.Split(c.Example, "\n") {
			args, ok := exampleArgs(line)
			if !ok {
				continue
			}
			found, rest, err := cli.New(w.env()).Find(args)
			require.NoError(t, err, line)
			require.NotEqual(t, "stillframe", found.Name(), line)
			require.NoError(t, found.ParseFlags(rest), line)
			require.NoError(t, found.ValidateArgs(found.Flags().Args()), line)
		}
	}
}

// exampleArgs takes the arguments of stillframe out of a line of shell, without quotes and what follows a pipe.
func exampleArgs(line string) ([]string, bool) {
	_, line, ok := strings.Cut(line, "stillframe ")
	if !ok {
		return nil, false
	}
	var args []string
	var word strings.Builder
	quoted := false
	for _, r := range line + " " {
		switch {
		case r == '\'':
			quoted = !quoted
		case !quoted && (r == '|' || r == ')'):
			return args, true
		case !quoted && r == ' ':
			if word.Len() > 0 {
				args = append(args, word.String())
			}
			word.Reset()
		default:
			word.WriteRune(r)
		}
	}
	return args, true
}

func TestCompletion(t *testing.T) {
	w := newWorld(t)
	w.answer("GET /v1/sandboxes", 200, `{"items":[{"id":"sbx-a","state":"running","created_at":"2026-01-02T11:57:00Z"},`+
		`{"id":"sbx-b","state":"starting","created_at":"2026-01-02T11:57:00Z"}],"total_items":2}`)
	w.answer("GET /v1/snapshots", 200, `{"items":[`+snapshotJSON+`],"total_items":1}`)
	w.answer("GET /v1/templates", 200, `{"items":[{"id":"tpl-1","name":"system/busybox"}],"total_items":1}`)
	for _, tc := range []struct {
		line string
		want []string
	}{
		{"sandbox get |", []string{"sbx-a\trunning, 3m old", "sbx-b\tstarting, 3m old"}},
		{"sandbox get sbx-a |", nil},
		{"sandbox delete sbx-a |", []string{"sbx-a\trunning, 3m old", "sbx-b\tstarting, 3m old"}},
		{"exec |", []string{"sbx-a\trunning, 3m old", "sbx-b\tstarting, 3m old"}},
		{"snapshot restore |", []string{"warm\t1 GiB, 24h old"}},
		{"sandbox create --template |", []string{"system/busybox"}},
		{"sandbox list --order |", []string{"asc", "desc"}},
		{"sandbox create --network |", []string{"allow-all", "deny-all"}},
		{"sandbox list -o |", []string{"table", "json"}},
		{"sandbox get --url http://127.0.0.1:1 |", nil},
	} {
		before, _ := strings.CutSuffix(tc.line, "|")
		args := strings.Split(before, " ")
		got := strings.Split(strings.TrimSpace(w.does(append([]string{"__complete"}, args...)...)), "\n")
		require.Equal(t, ":4", got[len(got)-1], "no file names for %s", tc.line)
		require.ElementsMatch(t, tc.want, got[:len(got)-1], tc.line)
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		require.NotEmpty(t, w.does("completion", shell))
	}
}

// TestMoreCommands shows how the commands that run a node join the tree.
func TestMoreCommands(t *testing.T) {
	w := newWorld(t)
	serve := func(env cli.Env) *cobra.Command {
		cmd := &cobra.Command{Use: "serve", Short: "Serve", RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cmd.Context().Err(); err != nil {
				return errors.New("could not stop in time")
			}
			_, err := env.Out.Write([]byte("served\n"))
			return err
		}}
		cmd.Flags().String("data", "", "a folder")
		require.NoError(t, cmd.MarkFlagRequired("data"))
		return cmd
	}
	require.Equal(t, cli.ExitUsage, cli.Run(t.Context(), w.env(), []string{"serve"}, serve))
	require.Contains(t, w.err.String(), `required flag(s) "data" not set`)
	require.Equal(t, 0, cli.Run(t.Context(), w.env(), []string{"serve", "--data", "x"}, serve))
	require.Equal(t, "served\n", w.out.String())
	w.out.Reset()
	require.Equal(t, 0, cli.Run(t.Context(), w.env(), nil, serve))
	require.True(t, bytes.Contains(w.out.Bytes(), []byte("  serve       Serve\n")), w.out.String())

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w.err.Reset()
	require.Equal(t, cli.ExitInterrupted, cli.Run(ctx, w.env(), []string{"serve", "--data", "x"}, serve))
	require.Equal(t, "stillframe: interrupted: could not stop in time\n", w.err.String(), "why is not lost")
}

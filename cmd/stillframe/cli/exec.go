package cli

import (
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"stillframe/httpd/client"
)

// execGrace is how much longer than the command's own timeout the node's answer is waited for.
const execGrace = 30 * time.Second

func (a *app) exec() *cobra.Command {
	var (
		in      client.Exec
		shell   bool
		env     []string
		timeout seconds
	)
	cmd := &cobra.Command{
		Use:   "exec [flags] SANDBOX [--] COMMAND [ARGUMENT...]",
		Short: "Run a command in a sandbox",
		Long: `Run a command in a sandbox, write what it wrote when it has ended, and exit with its exit code. A command that
its timeout has ended counts as 124; 125 means that there is no exit code to tell.

The arguments reach the command as they are; with --shell they are joined by spaces and are a line for /bin/sh.
Standard input is not passed on: put what the command should read into a file with "stillframe cp".`,
		Example: `  stillframe exec sbx-… uname -a
  stillframe exec --cwd /tmp --env LANG=C sbx-… -- ls -l
  stillframe exec --shell sbx-… 'cat /proc/meminfo | head -3'`,
		Args:              args("SANDBOX", "COMMAND..."),
		ValidArgsFunction: a.completeSandboxes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			words := args[1:]
			if words[0] == "--" {
				words = words[1:]
			}
			if len(words) == 0 || strings.TrimSpace(strings.Join(words, "")) == "" {
				return usagef("COMMAND is missing")
			}
			in.Command, in.Timeout = commandLine(words, shell), int64(timeout)
			var err error
			if in.Envs, err = a.environment(env); err != nil {
				return err
			}
			if limit := time.Duration(timeout)*time.Second + execGrace; timeout != 0 && a.node.wait < limit {
				a.node.wait = limit
			}
			if err := a.runExec(cmd, args[0], in); err != nil {
				return execError{err}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // flags behind the sandbox are the command's
	f.BoolVar(&shell, "shell", false, "the arguments are a line for /bin/sh")
	f.StringVar(&in.Cwd, "cwd", "", "folder to run it in")
	f.StringArrayVar(&env, "env", nil, "NAME=VALUE for the command; NAME alone takes the value from here (repeatable)")
	f.Var(&timeout, "timeout", "end the command after this long (default 30s)")
	idempotencyFlag(cmd, &in.IdempotencyKey)
	return a.withNode(a.withOutput(cmd))
}

func (a *app) runExec(cmd *cobra.Command, sandbox string, in client.Exec) error {
	c, ctx, done, err := a.connect(cmd.Context())
	if err != nil {
		return err
	}
	defer done()
	if waiting(a.env.In) {
		_, _ = io.WriteString(a.env.Err, "stillframe: note: standard input is not passed on to the command\n")
	}
	result, err := c.Exec(ctx, sandbox, in)
	if err != nil {
		return withHint(sandboxHint(err), http.StatusConflict,
			"Commands run in running sandboxes only: stillframe sandbox get %s", sandbox)
	}
	if err := a.printExec(result); err != nil {
		return err
	}
	if result.TimedOut {
		_, _ = io.WriteString(a.env.Err, "stillframe: note: its timeout ended the command; --timeout gives it longer\n")
	}
	if result.ExitCode != 0 {
		return exitError{result.ExitCode}
	}
	return nil
}

func (a *app) printExec(r client.ExecResult) error {
	if a.output == outputJSON {
		return a.printRaw(r.Raw)
	}
	if _, err := io.WriteString(a.env.Out, r.Stdout); err != nil {
		return err
	}
	if _, err := io.WriteString(a.env.Err, r.Stderr); err != nil {
		return err
	}
	if r.StdoutTruncated || r.StderrTruncated {
		_, _ = io.WriteString(a.env.Err, "stillframe: note: the node kept only the first part of the output\n")
	}
	return nil
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_@%+=:,./-]+$`)

// commandLine makes the line for /bin/sh that the API takes. Without shell each word is quoted, so that the shell hands
// it to the command unchanged.
func commandLine(words []string, shell bool) string {
	if shell {
		return strings.Join(words, " ")
	}
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = w
		if !plainWord.MatchString(w) || (i == 0 && strings.Contains(w, "=")) {
			quoted[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(quoted, " ")
}

// waiting reports whether a pipe or file on standard input has something to read.
func waiting(r io.Reader) bool {
	f, ok := r.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil || (!info.Mode().IsRegular() && info.Mode()&os.ModeNamedPipe == 0) {
		return false
	}
	n, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCINQ)
	return err == nil && n > 0
}

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"stillframe/httpd/client"
)

// Exit codes of the process. They are part of the command line's contract; "help exit-codes" prints them.
const (
	ExitOK          = 0
	ExitFailure     = 1
	ExitUsage       = 2
	ExitNotFound    = 3
	ExitConflict    = 4
	ExitKey         = 5
	ExitUnavailable = 6
	ExitTimeout     = 7
	ExitExec        = 125
	ExitInterrupted = 130
)

func exitCodes() *cobra.Command {
	return &cobra.Command{
		Use:   "exit-codes",
		Short: "What the exit codes mean",
		Long: `Exit codes of stillframe:

    0  done
    1  failed, for a reason without a code of its own
    2  the command line, or a value in it, is wrong (the API's 400)
    3  no such sandbox, snapshot, template or file (404)
    4  conflict: a name is taken, or a thing is in the wrong state for this (409)
    5  no API key, or one that the node does not accept (401)
    6  no node answers, it has no capacity, or a limit is reached (429, 503)
    7  no answer in time (504, or --wait ended); the outcome may not be known
  130  interrupted

The command exec exits with the code of the command in the sandbox, with 124 when its timeout ended it, and with 125
when there is no exit code to tell: the sandbox was not found, the node did not answer, and the like. Only a wrong
command line is a 2 there too.`,
	}
}

var (
	errInterrupted = errors.New("interrupted")
	errNoKey       = errors.New("no API key is given")
)

// usageError is a wrong command line.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// exitError ends the process with a code that is not a failure of stillframe: the exit code of a command.
type exitError struct{ code int }

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// execError is a failure of exec itself, kept apart from the exit codes of the commands it runs.
type execError struct{ error }

func (e execError) Unwrap() error { return e.error }

// hintError adds what to do next to a refusal of one status.
type hintError struct {
	error
	status int
	hint   string
}

func (e hintError) Unwrap() error { return e.error }

// namedError is a failure of one of several things.
type namedError struct {
	name string
	error
}

func (e namedError) Unwrap() error { return e.error }

// severalErrors are the failures of a command that went on after the first, which decides the exit code.
type severalErrors []namedError

func (e severalErrors) Error() string { return fmt.Sprintf("%d failed, the first: %v", len(e), e[0]) }

// withHint says what to do when err is a refusal with this status. Other errors stay as they are.
func withHint(err error, status int, format string, args ...any) error {
	if client.Status(err) != status {
		return err
	}
	return hintError{err, status, fmt.Sprintf(format, args...)}
}

// explain writes an error for people and gives the exit code.
func explain(env Env, cmd *cobra.Command, err error) int {
	var exit exitError
	if errors.As(err, &exit) {
		return exit.code
	}
	var several severalErrors
	if errors.As(err, &several) && !errors.Is(err, errInterrupted) {
		code := explain(env, cmd, several[0])
		for _, e := range several[1:] {
			explain(env, cmd, e)
		}
		return code
	}
	code, lines := describe(err)
	var named namedError
	if errors.As(err, &named) {
		lines[0] = named.name + ": " + lines[0]
	}
	fmt.Fprintf(env.Err, "stillframe: %s\n", clean(lines[0]))
	for _, line := range lines[1:] {
		fmt.Fprintf(env.Err, "  %s\n", clean(line))
	}
	var usage usageError
	if errors.As(err, &usage) && cmd.Name() != "help" {
		fmt.Fprintf(env.Err, "  Usage: stillframe help%s\n", strings.TrimPrefix(cmd.CommandPath(), "stillframe"))
	}
	var exec execError
	if errors.As(err, &exec) && code != ExitInterrupted && !errors.As(err, &usage) {
		return ExitExec
	}
	return code
}

// describe gives the exit code of an error, what happened, and below that what to do next.
func describe(err error) (int, []string) {
	var (
		refusal *client.Error
		lost    *client.NetworkError
		usage   usageError
		hint    hintError
	)
	switch {
	case errors.Is(err, errInterrupted):
		return ExitInterrupted, append([]string{interruption(err)}, again(err)...)
	case errors.As(err, &usage):
		return ExitUsage, []string{usage.Error()}
	case errors.Is(err, errNoKey):
		return ExitKey, []string{err.Error(),
			"Set LEAP0_API_KEY or STILLFRAME_API_KEY, or give --key-file or --env-file.",
			"A key is made on the node's host: stillframe key create --org NAME"}
	case errors.As(err, &refusal):
		code, lines := describeRefusal(refusal)
		if errors.As(err, &hint) {
			lines = append(lines, hint.hint)
		}
		return code, lines
	case errors.As(err, &lost):
		return describeLost(lost)
	}
	return ExitFailure, []string{err.Error()}
}

func describeRefusal(e *client.Error) (int, []string) {
	lines := []string{e.Message}
	for _, f := range e.Fields {
		lines = append(lines, f.Field+": "+f.Problem)
		if f.Field == "template_name" {
			lines = append(lines, "The templates there are: stillframe template list")
		}
	}
	code := ExitFailure
	switch e.Status {
	case http.StatusBadRequest:
		code = ExitUsage
	case http.StatusUnauthorized:
		code = ExitKey
		lines = append(lines, "The node does not know this API key, or it was revoked. Check which node and key are used",
			"(--url, --key-file, --env-file, STILLFRAME_*, LEAP0_*); a new key: stillframe key create --org NAME")
	case http.StatusNotFound:
		code = ExitNotFound
	case http.StatusConflict:
		code = ExitConflict
	case http.StatusRequestEntityTooLarge:
		lines = append(lines, "Copy a large file in parts: split -b 8M FILE, and cat them together in the sandbox.")
	case http.StatusTooManyRequests:
		code = ExitUnavailable
		lines = append(lines, "Wait, delete what is not needed any more, or ask whoever runs the node for a higher limit.")
	case http.StatusServiceUnavailable:
		code = ExitUnavailable
		lines = append(lines, "Try again later; stillframe node status tells how the node is.")
	case http.StatusGatewayTimeout:
		code = ExitTimeout
	}
	if e.Resource != nil {
		lines = append(lines, "What it has begun: "+e.Resource.ID+", now "+e.Resource.State+".")
	}
	if e.Status == http.StatusServiceUnavailable || e.Status == http.StatusGatewayTimeout {
		lines = append(lines, repeat(e.IdempotencyKey)...)
	}
	if e.RequestID != "" && e.Status >= http.StatusInternalServerError {
		lines = append(lines, "In the node's log this is request "+e.RequestID+".")
	}
	return code, lines
}

func describeLost(e *client.NetworkError) (int, []string) {
	if e.Timeout() {
		return ExitTimeout, append([]string{"no answer from " + e.Node + " in time"}, again(e)...)
	}
	lines := []string{e.Error()}
	if e.Socket {
		return ExitUnavailable, append(lines, adminHint(e))
	}
	if errors.Is(e, syscall.ECONNREFUSED) {
		return ExitUnavailable, append(lines, "Is a node running there? One for yourself, on this host:",
			"stillframe dev --data DIR --listen HOST:PORT")
	}
	lines = append(lines, "Check --url, STILLFRAME_URL or LEAP0_BASE_URL, and that this host reaches the node.")
	return ExitUnavailable, append(lines, again(e)...)
}

func adminHint(e *client.NetworkError) string {
	switch {
	case errors.Is(e, fs.ErrNotExist), errors.Is(e, syscall.ECONNREFUSED):
		return "Run this on the host of a running node, with the node's own --data DIR."
	case errors.Is(e, fs.ErrPermission):
		return "Only the user that the node runs as (usually root) may use its admin socket."
	}
	return "Is the node running? Its log tells more."
}

// interruption says what an interrupted command said, where that is more than that it was interrupted.
func interruption(err error) string {
	if errors.Is(err, context.Canceled) {
		return errInterrupted.Error()
	}
	return strings.ReplaceAll(err.Error(), "\n", ": ")
}

// again says how a request whose answer is lost can be asked again without doing it twice.
func again(err error) []string {
	var lost *client.NetworkError
	if !errors.As(err, &lost) || lost.Socket {
		return nil
	}
	return repeat(lost.IdempotencyKey)
}

func repeat(key string) []string {
	if key == "" {
		return nil
	}
	return []string{"It may have been done all the same. Repeat the command with this to get its outcome, not a second:",
		"--idempotency-key " + key}
}

package cli

import (
	"fmt"

	"github.com/spf13/cobra"
)

// staleFlag lets a command that only reads be content with what the node has.
func (a *app) staleFlag(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().BoolVar(&a.node.stale, "stale", false, "take what the node has, even cut off, and say how old it is")
	return cmd
}

// tellAge says beside a stale answer how old it may be.
func (a *app) tellAge() {
	s := a.node.staleness
	switch {
	case !s.Told:
	case !s.Known:
		fmt.Fprintf(a.env.Err, "stillframe: a stale answer, of unknown age: the node has reached no majority since it "+
			"started (log position %d)\n", s.Position)
	default:
		fmt.Fprintf(a.env.Err, "stillframe: a stale answer, at most %s old (log position %d)\n", s.Age, s.Position)
	}
}

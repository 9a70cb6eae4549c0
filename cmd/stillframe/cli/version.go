package cli

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) version() *cobra.Command {
	return a.withOutput(&cobra.Command{
		Use:   "version",
		Short: "Show the version of this program",
		Args:  args(),
		RunE: func(*cobra.Command, []string) error {
			v := a.env.Version
			switch {
			case a.quiet:
				return a.printIDs([]row{{id: v.Version}})
			case a.output == outputJSON:
				b, err := json.Marshal(v)
				if err != nil {
					return err
				}
				return a.printRaw(b)
			}
			commit := ""
			if v.Commit != "" {
				commit = ", commit " + v.Commit
			}
			_, err := fmt.Fprintf(a.env.Out, "stillframe %s%s, %s\n", v.Version, commit, v.Go)
			return err
		},
	})
}

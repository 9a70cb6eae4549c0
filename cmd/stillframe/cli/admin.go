package cli

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"stillframe/httpd/client"
)

func (a *app) org() *cobra.Command {
	return a.withAdmin(a.withOutput(group(&cobra.Command{
		Use:   "org",
		Short: "Make, list and limit organizations, on the node's host",
	}, a.orgCreate(), a.orgList(), a.orgLimits())))
}

func (a *app) orgCreate() *cobra.Command {
	return &cobra.Command{
		Use:   "create NAME",
		Short: "Make an organization",
		Args:  args("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, ctx, done, err := a.connectAdmin(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			org, err := c.CreateOrg(ctx, args[0])
			if err != nil {
				return withHint(err, http.StatusConflict, "The organizations there are: stillframe org list")
			}
			return a.printOne(row{org.ID, org.Raw, []string{org.Name, org.ID}}, []string{"Name", "ID"})
		},
	}
}

func (a *app) orgList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the organizations",
		Args:    args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, ctx, done, err := a.connectAdmin(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			list, err := c.Orgs(ctx)
			if err != nil {
				return err
			}
			rows := make([]row, 0, len(list.Items))
			for _, o := range list.Items {
				rows = append(rows, row{o.ID, o.Raw, []string{
					o.Name, o.ID, ofLimit(o.Sandboxes, o.MaxSandboxes), ofLimit(o.Snapshots, o.MaxSnapshots), bound(o.MaxRequests),
					a.age(o.CreatedAt),
				}})
			}
			return a.printList([]string{"NAME", "ID", "SANDBOXES", "SNAPSHOTS", "REQUESTS/MIN", "AGE"}, list.Total, rows)
		},
	}
}

func (a *app) orgLimits() *cobra.Command {
	var sandboxes, snapshots, requests int
	cmd := &cobra.Command{
		Use:   "limits NAME",
		Short: "Show or change what an organization may have and send",
		Long: `Show the limits of an organization, given by name or id, or change those that are given. 0 is no limit. What it
has beyond a new limit stays. Requests a minute are counted by each node for itself. A request beyond a limit is
answered with 429, which says which limit, and in Retry-After when to come again.`,
		Example: `  stillframe org limits acme
  stillframe org limits acme --sandboxes 50 --snapshots 500 --requests 600`,
		Args: args("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var limits client.OrgLimits
			for name, to := range map[string]struct {
				given *int
				limit **int
			}{
				"sandboxes": {&sandboxes, &limits.MaxSandboxes}, "snapshots": {&snapshots, &limits.MaxSnapshots},
				"requests": {&requests, &limits.MaxRequests},
			} {
				if cmd.Flags().Changed(name) {
					*to.limit = to.given
				}
			}
			c, ctx, done, err := a.connectAdmin(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			org, err := c.SetOrgLimits(ctx, args[0], limits) // none given: it only shows
			if err != nil {
				return orgHint(err)
			}
			return a.printOne(row{org.ID, org.Raw, []string{
				org.Name, org.ID, ofLimit(org.Sandboxes, org.MaxSandboxes), ofLimit(org.Snapshots, org.MaxSnapshots),
				bound(org.MaxRequests),
			}}, []string{"Name", "ID", "Sandboxes", "Snapshots", "Requests a minute"})
		},
	}
	cmd.Flags().IntVar(&sandboxes, "sandboxes", 0, "sandboxes at once")
	cmd.Flags().IntVar(&snapshots, "snapshots", 0, "snapshots at once")
	cmd.Flags().IntVar(&requests, "requests", 0, "requests a minute, to each node")
	return cmd
}

// ofLimit says how much there is of a limit.
func ofLimit(has int, most *int) string { return strconv.Itoa(has) + " of " + bound(most) }

func bound(most *int) string {
	if most == nil || *most == 0 {
		return "no limit"
	}
	return strconv.Itoa(*most)
}

func (a *app) key() *cobra.Command {
	return a.withAdmin(a.withOutput(group(&cobra.Command{
		Use:   "key",
		Short: "Make, list and revoke API keys, on the node's host",
	}, a.keyCreate(), a.keyList(), a.keyRevoke())))
}

func (a *app) keyCreate() *cobra.Command {
	var org, label, file string
	cmd := &cobra.Command{
		Use:   "create --org NAME",
		Short: "Make an API key; it is shown once",
		Long: `Make an API key for an organization. The node keeps only its digest: this is the one time that the key is
shown. With --out it goes to a file that only its owner can read, and is not shown.`,
		Example: `  stillframe key create --org acme --label laptop --out ~/.stillframe-key
  stillframe sandbox list --key-file ~/.stillframe-key`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if org == "" {
				return usagef("--org is missing")
			}
			c, ctx, done, err := a.connectAdmin(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			if file == "" {
				key, err := c.CreateKey(ctx, org, label)
				if err != nil {
					return orgHint(err)
				}
				return a.printKey(key)
			}
			key, err := createKeyFile(file, func() (client.APIKey, error) { return c.CreateKey(ctx, org, label) })
			if err != nil {
				return orgHint(err)
			}
			if a.quiet {
				return a.printIDs([]row{{id: key.ID}})
			}
			return a.say("%s written to %s", clean(key.ID), file)
		},
	}
	cmd.Flags().StringVar(&org, "org", "", "name or id of the organization")
	cmd.Flags().StringVar(&label, "label", "", "what the key is for, shown in lists")
	cmd.Flags().StringVar(&file, "out", "", "new file for the key")
	return cmd
}

// createKeyFile makes the file before the key, so that no key is made that cannot be kept, and takes it away again when
// no key was made.
func createKeyFile(name string, create func() (client.APIKey, error)) (key client.APIKey, err error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return key, err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(name)
		}
	}()
	if key, err = create(); err != nil {
		_ = f.Close()
		return key, err
	}
	_, writeErr := fmt.Fprintln(f, key.Key)
	if err = errors.Join(writeErr, f.Sync(), f.Close()); err != nil {
		err = fmt.Errorf("the key was made but could not be written; undo it with stillframe key revoke %s: %w", key.ID, err)
	}
	return key, err
}

func orgHint(err error) error {
	return withHint(err, http.StatusNotFound, "The organizations there are: stillframe org list")
}

// printKey shows a new key. For programs -q is the secret: it is what a script of one line wants to keep.
func (a *app) printKey(k client.APIKey) error {
	return a.printOne(row{k.Key, k.Raw, []string{k.ID, k.Key}}, []string{"ID", "Key"})
}

func (a *app) keyList() *cobra.Command {
	var org string
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List API keys, revoked ones too",
		Args:    args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, ctx, done, err := a.connectAdmin(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			list, err := c.Keys(ctx, org)
			if err != nil {
				return orgHint(err)
			}
			rows := make([]row, 0, len(list.Items))
			for _, k := range list.Items {
				state := "good"
				if !k.RevokedAt.IsZero() {
					state = "revoked"
				}
				rows = append(rows, row{k.ID, k.Raw, []string{k.ID, k.Label, state, k.OrgName, a.age(k.CreatedAt)}})
			}
			return a.printList([]string{"ID", "LABEL", "STATE", "ORGANIZATION", "AGE"}, list.Total, rows)
		},
	}
	cmd.Flags().StringVar(&org, "org", "", "only keys of this organization, by name or id")
	return cmd
}

func (a *app) keyRevoke() *cobra.Command {
	return &cobra.Command{
		Use:   "revoke KEY-ID...",
		Short: "Revoke API keys for good; requests with them are refused from then on",
		Args:  args("KEY-ID..."),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, ctx, done, err := a.connectAdmin(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			return a.each("revoked", args, func(id string) error {
				return withHint(c.RevokeKey(ctx, id), http.StatusNotFound, "The keys there are: stillframe key list")
			})
		},
	}
}

package cli

import (
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"

	"stillframe/httpd/client"
)

// A shell waits for a completion while a person does: it gets what is there within completeWait, or nothing.
const (
	completeWait = 2 * time.Second
	completeMost = 200
)

type completion = func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective)

// completeSandboxes offers ids of sandboxes for the first n arguments, for all with n < 0.
func (a *app) completeSandboxes(n int) completion {
	return a.complete(n, func(ctx context.Context, c *client.Client) ([]cobra.Completion, error) {
		list, err := c.Sandboxes(ctx, client.ListOptions{Limit: completeMost})
		offers := make([]cobra.Completion, 0, len(list.Items))
		for _, s := range list.Items {
			offers = append(offers, cobra.CompletionWithDesc(s.ID, s.State+", "+a.age(s.CreatedAt)+" old"))
		}
		return offers, err
	})
}

// completeSnapshots offers names of snapshots for the first n arguments, for all with n < 0.
func (a *app) completeSnapshots(n int) completion {
	return a.complete(n, func(ctx context.Context, c *client.Client) ([]cobra.Completion, error) {
		list, err := c.Snapshots(ctx, client.ListOptions{Limit: completeMost})
		offers := make([]cobra.Completion, 0, len(list.Items))
		for _, s := range list.Items {
			offers = append(offers, cobra.CompletionWithDesc(s.Name, mebibytes(s.Memory)+", "+a.age(s.CreatedAt)+" old"))
		}
		return offers, err
	})
}

// completeTemplates offers names of templates, as the value of a flag.
func (a *app) completeTemplates() completion {
	return a.complete(-1, func(ctx context.Context, c *client.Client) ([]cobra.Completion, error) {
		list, err := c.Templates(ctx)
		offers := make([]cobra.Completion, 0, len(list.Items))
		for _, t := range list.Items {
			offers = append(offers, t.Name)
		}
		return offers, err
	})
}

func (a *app) complete(n int, ask func(context.Context, *client.Client) ([]cobra.Completion, error)) completion {
	return func(cmd *cobra.Command, given []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if n >= 0 && len(given) >= n {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		a.env.Err = io.Discard // a warning would land in the middle of the line being typed
		a.node.wait = completeWait
		c, ctx, done, err := a.connect(cmd.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer done()
		offers, err := ask(ctx, c)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return offers, cobra.ShellCompDirectiveNoFileComp
	}
}

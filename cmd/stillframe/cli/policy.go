package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"stillframe/httpd/client"
)

func (a *app) policy() *cobra.Command {
	return a.withNode(a.withOutput(group(&cobra.Command{
		Use:   "policy",
		Short: "Show, replace and question the network policy of a sandbox",
	}, a.policyGet(), a.policySet(), a.policyCheck(), a.policyLog())))
}

func (a *app) policyGet() *cobra.Command {
	return &cobra.Command{
		Use:   "get SANDBOX",
		Short: "Show what a sandbox may reach",
		Long: `Show the network policy of a sandbox and whether it is in force. Values of injected headers are not shown: a
policy that is put back with "policy set --file" needs them filled in again.`,
		Args:              args("SANDBOX"),
		ValidArgsFunction: a.completeSandboxes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, ctx, done, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			sandbox, err := c.Sandbox(ctx, args[0])
			if err != nil {
				return sandboxHint(err)
			}
			return a.printPolicy(sandbox)
		},
	}
}

// printPolicy shows a sandbox's policy: for programs the JSON that the node gave, or what an omitted one means.
func (a *app) printPolicy(s client.Sandbox) error {
	p := s.NetworkPolicy
	if p == nil {
		p = &client.NetworkPolicy{Mode: "allow-all"}
	}
	raw := struct {
		Policy json.RawMessage `json:"network_policy"`
	}{}
	if err := json.Unmarshal(s.Raw, &raw); err != nil {
		return err
	}
	if s.NetworkPolicy == nil {
		raw.Policy = json.RawMessage(`{"mode":"allow-all"}`)
	}
	names := []string{"Sandbox", "Mode", "Domains", "CIDRs"}
	cells := []string{s.ID, p.Mode, strings.Join(p.AllowDomains, " "), strings.Join(p.AllowCIDRs, " ")}
	for _, t := range p.Transforms {
		names, cells = append(names, "Transform"), append(cells, transformText(t))
	}
	names, cells = append(names, "In force", "Why"), append(cells, s.NetworkStatus, s.NetworkNote)
	return a.printOne(row{s.ID, raw.Policy, cells}, names)
}

func transformText(t client.Transform) string {
	text := t.Domain
	if len(t.InjectHeaders) > 0 {
		text += ", sets " + strings.Join(sortedNames(t.InjectHeaders), " ")
	}
	if len(t.StripHeaders) > 0 {
		text += ", takes away " + strings.Join(t.StripHeaders, " ")
	}
	return text
}

func (a *app) policySet() *cobra.Command {
	net := network{modeFlag: "mode", fileFlag: "file", modes: []string{"allow-all", "deny-all", "custom"}}
	var key string
	cmd := &cobra.Command{
		Use:   "set SANDBOX",
		Short: "Replace what a running sandbox may reach, and wait until it is in force",
		Long: `Replace the network policy of a running sandbox. The command ends when the new policy is in force; connections
that it does not allow have been cut by then. When it fails, the policy before stays in force, or, where that cannot be
kept up, nothing is let through and "policy get" says so.

Header values are secrets and never arguments, which other users of this host can read: they come from variables
(--inject) or from a file.`,
		Example: `  stillframe policy set sbx-… --mode deny-all
  stillframe policy set sbx-… --allow-domain '*.debian.org' --allow-cidr 192.0.2.0/24
  stillframe policy set sbx-… --inject api.example.com:Authorization=API_AUTHORIZATION
  stillframe policy set sbx-… --file policy.json`,
		Args:              args("SANDBOX"),
		ValidArgsFunction: a.completeSandboxes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := net.policy(a)
			if err != nil {
				return err
			}
			if p == nil {
				return usagef("say what it may reach: --mode, --allow-domain, --allow-cidr, --inject or --file")
			}
			c, ctx, done, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			stop := a.progress("replacing the network policy of %s", args[0])
			sandbox, err := c.SetPolicy(ctx, args[0], p, key)
			stop()
			if err != nil {
				return sandboxHint(err)
			}
			return a.printPolicy(sandbox)
		},
	}
	net.flags(cmd)
	idempotencyFlag(cmd, &key)
	return cmd
}

func (a *app) policyCheck() *cobra.Command {
	return &cobra.Command{
		Use:   "check SANDBOX HOST[:PORT]",
		Short: "Say what would become of a connection from a sandbox, and by which rule",
		Long: `Say what the network policy would do with a connection from a sandbox to a host name or address. Nothing is
connected to. Without a port, 443 is meant.`,
		Example: `  stillframe policy check sbx-… api.example.com
  stillframe policy check sbx-… 192.0.2.7:22`,
		Args:              args("SANDBOX", "HOST[:PORT]"),
		ValidArgsFunction: a.completeSandboxes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			host, port, err := hostPort(args[1])
			if err != nil {
				return err
			}
			c, ctx, done, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			d, err := c.PolicyCheck(ctx, args[0], host, port)
			if err != nil {
				return sandboxHint(err)
			}
			return a.printOne(row{d.Action, d.Raw, []string{d.Action, d.Rule, d.Reason, d.Name, d.Address}},
				[]string{"Action", "Rule", "Why", "Name", "Address"})
		},
	}
}

// hostPort takes HOST, HOST:PORT, [V6]:PORT or a bare IPv6 address apart; port 0 is none given.
func hostPort(text string) (host string, port int, err error) {
	if _, err := netip.ParseAddr(text); err == nil {
		return text, 0, nil
	}
	at := strings.LastIndexByte(text, ':')
	if at < 0 {
		return strings.Trim(text, "[]"), 0, nil
	}
	port, err = strconv.Atoi(text[at+1:])
	if err != nil || port < 1 || port > 65535 {
		return "", 0, usagef("%q: want HOST or HOST:PORT, a port from 1 to 65535", text)
	}
	return strings.Trim(text[:at], "[]"), port, nil
}

// followPause is between two questions of "policy log --follow".
const followPause = time.Second

func (a *app) policyLog() *cobra.Command {
	var limit int
	var follow bool
	cmd := &cobra.Command{
		Use:   "log SANDBOX",
		Short: "Show the last decisions about a sandbox's connections and name queries",
		Long: `Show what a sandbox's network policy allowed, denied and transformed, the newest last. The node keeps the last
of them in memory. With --follow it goes on until it is interrupted, and -o json gives one decision a line.`,
		Example: `  stillframe policy log sbx-… --limit 20
  stillframe policy log sbx-… -f`,
		Args:              args("SANDBOX"),
		ValidArgsFunction: a.completeSandboxes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if limit < 1 {
				return usagef("--limit: want 1 or more")
			}
			c, ctx, done, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			list, err := c.PolicyLog(ctx, args[0], limit)
			if err != nil {
				return sandboxHint(err)
			}
			if !follow {
				return a.printDecisions(list)
			}
			return a.followPolicy(ctx, c, args[0], list.Items)
		},
	}
	cmd.Flags().IntVar(&limit, "limit", 100, "how many to show, up to 1000")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on showing new ones")
	return cmd
}

func (a *app) printDecisions(list client.List[client.PolicyDecision]) error {
	rows := make([]row, 0, len(list.Items))
	for _, d := range list.Items {
		rows = append(rows, row{id: either(d.Name, d.Address), raw: d.Raw, cells: []string{
			d.Time.UTC().Format(decisionTime), d.Action, d.Protocol, d.Name, d.Address, bytesOf(d.Sent),
			bytesOf(d.Received), d.Rule, d.Reason,
		}})
	}
	return a.printList([]string{"TIME", "ACTION", "PROTOCOL", "NAME", "ADDRESS", "SENT", "RECEIVED", "RULE", "WHY"},
		list.Total, rows)
}

const decisionTime = "2006-01-02T15:04:05.000Z"

// followPolicy writes a line for every decision, and asks for more until it is interrupted.
func (a *app) followPolicy(ctx context.Context, c *client.Client, id string, items []client.PolicyDecision) error {
	shown := map[string]bool{}
	for {
		now := map[string]bool{}
		for _, d := range items {
			key := fmt.Sprint(d.Time.UnixNano(), d.Action, d.Protocol, d.Name, d.Address)
			now[key] = true
			if shown[key] {
				continue
			}
			if err := a.printDecision(d); err != nil {
				return err
			}
		}
		shown = now
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(followPause):
		}
		list, err := c.PolicyLog(ctx, id, maxDecisions)
		if err != nil {
			return sandboxHint(err)
		}
		items = list.Items
	}
}

// maxDecisions is how many a node gives at most.
const maxDecisions = 1000

func (a *app) printDecision(d client.PolicyDecision) error {
	switch {
	case a.quiet:
		return a.printIDs([]row{{id: either(d.Name, d.Address)}})
	case a.output == outputJSON:
		return a.printRaw(d.Raw)
	}
	line := []string{
		d.Time.UTC().Format(decisionTime), d.Action, d.Protocol, d.Name, d.Address,
		bytesOf(d.Sent) + " sent", bytesOf(d.Received) + " received", d.Rule, d.Reason,
	}
	_, err := fmt.Fprintln(a.env.Out, clean(strings.Join(strings.Fields(strings.Join(line, " ")), " ")))
	return err
}

// reseal is a command of the group cluster.
func (a *app) reseal() *cobra.Command {
	return a.withAdmin(a.withOutput(&cobra.Command{
		Use:   "reseal",
		Short: "Seal the secrets that the cluster keeps with the newest key",
		Long: `Seal every header value and CA key that the cluster keeps with the newest key that "stillframe cluster
rotate-secrets" made. It begins only when every node has that key and it is in use. It can be interrupted and
repeated.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, ctx, done, err := a.connectAdmin(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			stop := a.progress("sealing the cluster's secrets anew")
			r, err := c.Reseal(ctx)
			stop()
			if err != nil {
				return withHint(err, http.StatusConflict, "The files of keys: stillframe cluster rotate-secrets --help")
			}
			return a.printOne(row{r.Key, r.Raw, []string{r.Key, strconv.Itoa(r.Count)}}, []string{"Key", "Sealed anew"})
		},
	}))
}

package cli

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"stillframe/httpd/client"
)

// MaxUpload bounds a file that is written to a sandbox, in bytes. The node's own limit may be lower, and decides.
const MaxUpload = 64 << 20

func (a *app) cp() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cp SOURCE TARGET",
		Short: "Copy a file into a sandbox or out of it",
		Long: `Copy one file into a sandbox or out of it. The side in the sandbox is written SANDBOX:/path; - is standard
input or output. A target that is a folder here, or a path there that ends in a slash, gets the file under its own name.

A file here appears only once it is whole.`,
		Example: `  stillframe cp notes.txt sbx-…:/root/notes.txt
  stillframe cp sbx-…:/etc/os-release .
  tar c src | stillframe cp - sbx-…:/tmp/src.tar`,
		Args: args("SOURCE", "TARGET"),
		RunE: func(cmd *cobra.Command, args []string) error {
			from, fromPath, fromRemote := remote(args[0])
			to, toPath, toRemote := remote(args[1])
			switch {
			case fromRemote && toRemote:
				return usagef("cp copies between this host and a sandbox, not from one sandbox to another")
			case !fromRemote && !toRemote:
				return usagef("neither SOURCE nor TARGET is in a sandbox; that side is written SANDBOX:/path")
			}
			c, ctx, done, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			if toRemote {
				if strings.HasSuffix(toPath, "/") && args[0] != "-" {
					toPath += filepath.Base(args[0])
				}
				return a.upload(ctx, c, args[0], to, toPath)
			}
			return a.download(ctx, c, from, fromPath, args[1])
		},
	}
	return a.withNode(cmd)
}

// remote splits SANDBOX:/path. A colon behind a slash belongs to a path of this host.
func remote(arg string) (sandbox, file string, ok bool) {
	sandbox, file, ok = strings.Cut(arg, ":")
	return sandbox, file, ok && sandbox != "" && !strings.Contains(sandbox, "/")
}

func (a *app) upload(ctx context.Context, c *client.Client, local, sandbox, target string) error {
	content, permissions, err := a.readLocal(local)
	if err != nil {
		return err
	}
	stop := a.progress("writing %s", target)
	err = c.WriteFile(ctx, sandbox, target, permissions, content)
	stop()
	return sandboxHint(err)
}

// readLocal reads a file, or standard input, and gives its permissions in octal.
func (a *app) readLocal(name string) ([]byte, string, error) {
	in, permissions := a.env.In, ""
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, "", err
		}
		defer func() { _ = f.Close() }() // read only
		info, err := f.Stat()
		if err != nil {
			return nil, "", err
		}
		if info.IsDir() {
			return nil, "", usagef("%s is a folder; cp copies single files (a tar of it, say)", name)
		}
		in, permissions = f, fmt.Sprintf("%04o", info.Mode().Perm())
	}
	content, err := io.ReadAll(io.LimitReader(in, MaxUpload+1))
	if err != nil {
		return nil, "", fmt.Errorf("read %s: %w", name, err)
	}
	if len(content) > MaxUpload {
		return nil, "", fmt.Errorf("%s is larger than %s, the most that cp writes at once", name, bytesOf(MaxUpload))
	}
	return content, permissions, nil
}

func (a *app) download(ctx context.Context, c *client.Client, sandbox, file, local string) error {
	if local == "-" {
		return a.readTo(ctx, c, sandbox, file, a.env.Out)
	}
	if info, err := os.Stat(local); err == nil && info.IsDir() {
		local = filepath.Join(local, path.Base(file))
	}
	stop := a.progress("reading %s", file)
	defer stop()
	return atomically(local, func(w io.Writer) error { return a.readTo(ctx, c, sandbox, file, w) })
}

func (a *app) readTo(ctx context.Context, c *client.Client, sandbox, file string, w io.Writer) error {
	_, err := c.ReadFile(ctx, sandbox, file, w)
	return withHint(err, http.StatusNotFound, "Is the sandbox there (stillframe sandbox list), and the file in it "+
		"(stillframe file list)?")
}

// atomically writes a file under a temporary name and renames it when it is whole.
func atomically(name string, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if err := write(f); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

func (a *app) file() *cobra.Command {
	return a.withNode(a.withOutput(group(&cobra.Command{
		Use:     "file",
		Aliases: []string{"files"},
		Short:   "Read, write and list files in a sandbox",
	}, a.fileRead(), a.fileWrite(), a.fileList())))
}

func (a *app) fileRead() *cobra.Command {
	return &cobra.Command{
		Use:               "read SANDBOX PATH",
		Aliases:           []string{"cat"},
		Short:             "Write a file's content to standard output",
		Args:              args("SANDBOX", "PATH"),
		ValidArgsFunction: a.completeSandboxes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, ctx, done, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			return a.readTo(ctx, c, args[0], args[1], a.env.Out)
		},
	}
}

func (a *app) fileWrite() *cobra.Command {
	var permissions string
	cmd := &cobra.Command{
		Use:               "write SANDBOX PATH",
		Short:             "Write standard input to a file",
		Example:           `  echo hello | stillframe file write sbx-… /tmp/hello`,
		Args:              args("SANDBOX", "PATH"),
		ValidArgsFunction: a.completeSandboxes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			content, _, err := a.readLocal("-")
			if err != nil {
				return err
			}
			c, ctx, done, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			return sandboxHint(c.WriteFile(ctx, args[0], args[1], permissions, content))
		},
	}
	cmd.Flags().StringVar(&permissions, "permissions", "", "octal permissions of the file, such as 0755")
	return cmd
}

func (a *app) fileList() *cobra.Command {
	var recursive bool
	cmd := &cobra.Command{
		Use:               "list SANDBOX PATH",
		Aliases:           []string{"ls"},
		Short:             "List a folder",
		Args:              args("SANDBOX", "PATH"),
		ValidArgsFunction: a.completeSandboxes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, ctx, done, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			list, err := c.ListFiles(ctx, args[0], args[1], recursive)
			if err != nil {
				return withHint(err, http.StatusNotFound,
					"Is the sandbox there (stillframe sandbox list), and the folder in it?")
			}
			if a.output == outputJSON {
				return a.printRaw(list.Raw)
			}
			rows := make([]row, 0, len(list.Items))
			for _, f := range list.Items {
				rows = append(rows, a.fileRow(f))
			}
			return a.printList([]string{"MODE", "OWNER", "SIZE", "AGE", "PATH"}, len(rows), rows)
		},
	}
	cmd.Flags().BoolVar(&recursive, "recursive", false, "folders in it too")
	return cmd
}

func (a *app) fileRow(f client.FileInfo) row {
	name, size := f.Path, bytesOf(f.Size)
	switch {
	case f.IsDir:
		name, size = strings.TrimSuffix(name, "/")+"/", ""
	case f.IsSymlink:
		name += " -> " + f.LinkTarget
	}
	return row{f.Path, f.Raw, []string{f.Mode, f.Owner + ":" + f.Group, size, a.age(time.Unix(f.Mtime, 0)), name}}
}

package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// FileInfo describes a file in a sandbox. Size is bytes, Mtime is Unix seconds, Mode is octal digits.
type FileInfo struct {
	Name       string          `json:"name"`
	Path       string          `json:"path"`
	IsDir      bool            `json:"is_dir"`
	Size       int64           `json:"size"`
	Mode       string          `json:"mode"`
	Mtime      int64           `json:"mtime"`
	Owner      string          `json:"owner"`
	Group      string          `json:"group"`
	IsSymlink  bool            `json:"is_symlink"`
	LinkTarget string          `json:"link_target"`
	Raw        json.RawMessage `json:"-"`
}

// UnmarshalJSON decodes and keeps the exact input in Raw.
func (f *FileInfo) UnmarshalJSON(b []byte) error {
	type plain FileInfo
	return keepRaw(b, (*plain)(f), &f.Raw)
}

func filesystem(sandbox, verb string) []string {
	return []string{"v1", "sandbox", sandbox, "filesystem", verb}
}

// readPart is how much of a file one request asks for, in bytes: less than a node's limit for one answer.
const readPart = 4 << 20

// ReadFile copies a file of a sandbox to w, part after part, and gives the number of bytes. A file that changes while
// it is read gives parts of different moments.
func (c *Client) ReadFile(ctx context.Context, sandbox, path string, w io.Writer) (int64, error) {
	for offset := int64(0); ; {
		n, err := c.readPart(ctx, sandbox, path, offset, w)
		offset += n
		if err != nil || n < readPart {
			return offset, err
		}
	}
}

func (c *Client) readPart(ctx context.Context, sandbox, path string, offset int64, w io.Writer) (int64, error) {
	body, err := jsonBody(map[string]any{"path": path, "offset": offset, "limit": readPart})
	if err != nil {
		return 0, err
	}
	r := request{
		method: http.MethodPost, path: filesystem(sandbox, "read-file"), want: http.StatusOK,
		body: body, contentType: "application/json",
	}
	resp, err := c.send(ctx, r)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	part, err := io.ReadAll(io.LimitReader(resp.Body, readPart+1))
	if err != nil {
		return 0, c.lost(r, fmt.Errorf("read answer: %w", err))
	}
	if len(part) > readPart {
		return 0, fmt.Errorf("client: read-file: the answer exceeds the %d bytes asked for", readPart)
	}
	n, err := w.Write(part)
	return int64(n), err
}

// WriteFile writes a whole file of a sandbox. Permissions are octal digits; empty leaves them to the node.
func (c *Client) WriteFile(ctx context.Context, sandbox, path, permissions string, content []byte) error {
	query := url.Values{"path": {path}}
	if permissions != "" {
		query.Set("permissions", permissions)
	}
	if content == nil {
		content = []byte{}
	}
	return c.call(ctx, request{
		method: http.MethodPost, path: filesystem(sandbox, "write-file"), query: query, want: http.StatusNoContent,
		body: content, contentType: "application/octet-stream",
	}, nil)
}

// FileExists reports whether a path of a sandbox exists.
func (c *Client) FileExists(ctx context.Context, sandbox, path string) (bool, error) {
	var out struct {
		Exists bool `json:"exists"`
	}
	in := map[string]string{"path": path}
	err := c.ask(ctx, filesystem(sandbox, "exists"), in, &out)
	return out.Exists, err
}

// FileList is the content of a directory.
type FileList struct {
	Items []FileInfo      `json:"items"`
	Raw   json.RawMessage `json:"-"`
}

// UnmarshalJSON decodes and keeps the exact input in Raw.
func (f *FileList) UnmarshalJSON(b []byte) error {
	type plain FileList
	return keepRaw(b, (*plain)(f), &f.Raw)
}

// ListFiles gives the entries of a directory of a sandbox.
func (c *Client) ListFiles(ctx context.Context, sandbox, path string, recursive bool) (FileList, error) {
	var out FileList
	in := map[string]any{"path": path, "recursive": recursive}
	err := c.ask(ctx, filesystem(sandbox, "ls"), in, &out)
	return out, err
}

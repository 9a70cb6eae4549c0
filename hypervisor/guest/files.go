package guest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strings"
)

// ReadFile opens (a part of) a file for reading; the caller closes it. A failure in the middle of the contents appears
// as an error of Read, never as an early end of file.
func (c *Client) ReadFile(ctx context.Context, req ReadFileRequest) (io.ReadCloser, error) {
	b, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("guest read: encode: %w", err)
	}
	resp, err := c.do(ctx, http.MethodPost, PathRead, strings.NewReader(string(b)))
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// WriteFile puts contents at path, replacing what is there in one step: a reader sees the old or the new contents.
// Parents are made. A zero perm keeps an existing file's permissions and gives a new one 0644.
func (c *Client) WriteFile(ctx context.Context, path string, perm fs.FileMode, contents io.Reader) error {
	q := url.Values{"path": {path}}
	if perm != 0 {
		q.Set("permissions", fmt.Sprintf("%o", perm.Perm()))
	}
	// The wrapper keeps net/http from looking inside and closing a file that is not its own.
	resp, err := c.do(ctx, http.MethodPut, PathWrite+"?"+q.Encode(), io.NopCloser(contents))
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Ls lists a directory.
func (c *Client) Ls(ctx context.Context, req LsRequest) ([]FileInfo, error) {
	var res LsResponse
	err := c.call(ctx, http.MethodPost, PathLs, req, &res)
	return res.Items, err
}

// Stat describes what is at path, without following a link there.
func (c *Client) Stat(ctx context.Context, path string) (FileInfo, error) {
	var res FileInfo
	err := c.call(ctx, http.MethodPost, PathStat, PathRequest{path}, &res)
	return res, err
}

// Exists tells whether anything is at path.
func (c *Client) Exists(ctx context.Context, path string) (bool, error) {
	var res ExistsResponse
	err := c.call(ctx, http.MethodPost, PathExists, PathRequest{path}, &res)
	return res.Exists, err
}

// Mkdir makes a directory.
func (c *Client) Mkdir(ctx context.Context, req MkdirRequest) error {
	return c.call(ctx, http.MethodPost, PathMkdir, req, nil)
}

// Delete removes what is at a path.
func (c *Client) Delete(ctx context.Context, req DeleteRequest) error {
	return c.call(ctx, http.MethodPost, PathDelete, req, nil)
}

// Move renames, or moves between file systems.
func (c *Client) Move(ctx context.Context, req TransferRequest) error {
	return c.call(ctx, http.MethodPost, PathMove, req, nil)
}

// Copy copies a file or, with Recursive, a directory.
func (c *Client) Copy(ctx context.Context, req TransferRequest) error {
	return c.call(ctx, http.MethodPost, PathCopy, req, nil)
}

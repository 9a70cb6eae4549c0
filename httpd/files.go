package httpd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"regexp"
	"strconv"

	"stillframe/fsm"
)

const (
	mimeBytes  = "application/octet-stream"
	maxExclude = 100
)

// fileCall is what a file call does once its request is known to be good.
type fileCall func(ctx context.Context, id fsm.SandboxID) (reply, error)

// file makes the function of a file call's route. parse reads the body's fields and gives what to do.
func (s *Server) file(readOnly bool, parse func(body *object) fileCall) func(*call) (reply, error) {
	return func(c *call) (reply, error) {
		errs := &fieldErrors{}
		body, err := c.body(errs)
		if err != nil {
			return reply{}, err
		}
		do := parse(&body)
		return s.doFile(c, errs, readOnly, do)
	}
}

// doFile carries a file call out, unless errs holds something against it.
func (s *Server) doFile(c *call, errs *fieldErrors, readOnly bool, do fileCall) (reply, error) {
	request := c.request(errs)
	if err := errs.err(); err != nil {
		return reply{}, err
	}
	return s.once(c, dataCall{
		request: request, readOnly: readOnly, timeout: s.cfg.Limits.Data,
		do: func(ctx context.Context) (reply, error) {
			sb, err := s.reachable(ctx, c)
			if err != nil {
				return reply{}, err
			}
			rep, err := do(ctx, sb.ID)
			if err != nil {
				return reply{}, lostCall(err, request, readOnly)
			}
			return rep, nil
		},
	})
}

func (s *Server) readFile(body *object) fileCall {
	req := ReadFileRequest{
		Path: body.path("path", true), Offset: body.count("offset"), Limit: body.count("limit"),
		Head: body.count("head"), Tail: body.count("tail"),
	}
	if req.Head != nil && req.Tail != nil {
		body.bad("tail", "cannot go together with head")
	}
	if (req.Head != nil || req.Tail != nil) && (req.Offset != nil || req.Limit != nil) {
		body.errs.add("offset", "a part by lines (head, tail) cannot be a part by bytes (offset, limit) too")
	}
	return func(ctx context.Context, id fsm.SandboxID) (reply, error) {
		r, err := s.guests.ReadFile(ctx, id, req)
		if err != nil {
			return reply{}, err
		}
		defer r.Close() //nolint:errcheck // read to its end or given up
		most := s.cfg.Limits.Body
		contents, err := io.ReadAll(io.LimitReader(r, int64(most)+1))
		if err != nil {
			return reply{}, fmt.Errorf("read the file: %w", errors.Join(ErrGuestUnreachable, err))
		}
		if len(contents) > most {
			return reply{}, failf(fsm.KindTooLarge, "the file, or the part asked for, has more than %d bytes: read it in "+
				"parts with offset and limit", most)
		}
		return reply{http.StatusOK, mimeBytes, contents}, nil
	}
}

// count reads an integer that is not negative; nil when omitted.
func (o *object) count(name string) *uint64 {
	if !o.has(name) {
		return nil
	}
	n := uint64(o.integer(name, 0, 0, 1<<62)) // not negative
	return &n
}

// writeFile differs from the rest: its body is the file and its parameters are in the query.
func (s *Server) writeFile(c *call) (reply, error) {
	errs := &fieldErrors{}
	path := c.fc.Query("path")
	if path == "" {
		errs.add("path", "is required")
	} else if wrong := pathError(path); wrong != "" {
		errs.add("path", "%s", wrong)
	}
	perm := parsePermissions(c.fc.Query("permissions"), errs)
	contents := c.fc.BodyRaw()
	return s.doFile(c, errs, false, func(ctx context.Context, id fsm.SandboxID) (reply, error) {
		return noContent, s.guests.WriteFile(ctx, id, path, perm, bytes.NewReader(contents))
	})
}

var octal = regexp.MustCompile(`\A[0-7]{3,4}\z`)

const permissionsRule = "must be three or four octal digits, such as 755 or 0644"

// parsePermissions reads octal permission bits, 0 for none given. Set-user-id and its like are not taken.
func parsePermissions(text string, errs *fieldErrors) fs.FileMode {
	if text == "" {
		return 0
	}
	n, err := strconv.ParseUint(text, 8, 32)
	if err != nil || !octal.MatchString(text) || n > 0o777 {
		errs.add("permissions", permissionsRule)
		return 0
	}
	return fs.FileMode(n)
}

func (s *Server) ls(body *object) fileCall {
	req := LsRequest{
		Path: body.path("path", true), Recursive: body.boolean("recursive"),
		Exclude: body.strings("exclude", maxExclude, nil),
	}
	return func(ctx context.Context, id fsm.SandboxID) (reply, error) {
		items, err := s.guests.Ls(ctx, id, req)
		if err != nil {
			return reply{}, err
		}
		if items == nil {
			items = []FileInfo{}
		}
		return jsonReply(http.StatusOK, map[string]any{"items": items})
	}
}

func (s *Server) stat(body *object) fileCall {
	path := body.path("path", true)
	return func(ctx context.Context, id fsm.SandboxID) (reply, error) {
		info, err := s.guests.Stat(ctx, id, path)
		if err != nil {
			return reply{}, err
		}
		return jsonReply(http.StatusOK, info)
	}
}

func (s *Server) exists(body *object) fileCall {
	path := body.path("path", true)
	return func(ctx context.Context, id fsm.SandboxID) (reply, error) {
		there, err := s.guests.Exists(ctx, id, path)
		if err != nil {
			return reply{}, err
		}
		return jsonReply(http.StatusOK, map[string]bool{"exists": there})
	}
}

func (s *Server) mkdir(body *object) fileCall {
	req := MkdirRequest{Path: body.path("path", true), Recursive: body.boolean("recursive")}
	if text, ok := body.str("permissions"); ok {
		parsePermissions(text, body.errs)
		req.Permissions = text
	}
	return func(ctx context.Context, id fsm.SandboxID) (reply, error) {
		return noContent, s.guests.Mkdir(ctx, id, req)
	}
}

func (s *Server) deleteFile(body *object) fileCall {
	req := DeleteRequest{Path: body.path("path", true), Recursive: body.boolean("recursive")}
	return func(ctx context.Context, id fsm.SandboxID) (reply, error) {
		return noContent, s.guests.Delete(ctx, id, req)
	}
}

func (o *object) transfer() TransferRequest {
	return TransferRequest{
		Src: o.path("src_path", true), Dst: o.path("dst_path", true), Recursive: o.boolean("recursive"),
		Overwrite: o.boolean("overwrite"),
	}
}

func (s *Server) move(body *object) fileCall {
	req := body.transfer()
	return func(ctx context.Context, id fsm.SandboxID) (reply, error) {
		return noContent, s.guests.Move(ctx, id, req)
	}
}

func (s *Server) copyFile(body *object) fileCall {
	req := body.transfer()
	return func(ctx context.Context, id fsm.SandboxID) (reply, error) {
		return noContent, s.guests.Copy(ctx, id, req)
	}
}

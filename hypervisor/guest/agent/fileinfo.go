package agent

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path"
	"path/filepath"
	"strconv"
	"syscall"

	"stillframe/hypervisor/guest"
)

// maxListed bounds a listing; a recursive one of a whole root would not fit an answer.
const maxListed = 100_000

// names resolves owners, each once.
type names struct{ users, groups map[uint32]string }

func newNames() *names { return &names{map[uint32]string{}, map[uint32]string{}} }

func (n *names) user(id uint32) string {
	return remember(n.users, id, func(s string) (string, error) {
		u, err := user.LookupId(s)
		if err != nil {
			return "", err
		}
		return u.Username, nil
	})
}

func (n *names) group(id uint32) string {
	return remember(n.groups, id, func(s string) (string, error) {
		g, err := user.LookupGroupId(s)
		if err != nil {
			return "", err
		}
		return g.Name, nil
	})
}

func remember(known map[uint32]string, id uint32, look func(string) (string, error)) string {
	if name, ok := known[id]; ok {
		return name
	}
	number := strconv.FormatUint(uint64(id), 10)
	name, err := look(number)
	if err != nil {
		name = number
	}
	known[id] = name
	return name
}

func (n *names) describe(p string, st fs.FileInfo) guest.FileInfo {
	info := guest.FileInfo{
		Name: st.Name(), Path: p, IsDir: st.IsDir(), Size: st.Size(), Mode: octal(st.Mode()), MTime: st.ModTime().Unix(),
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		info.Owner, info.Group = n.user(sys.Uid), n.group(sys.Gid)
	}
	if st.Mode()&fs.ModeSymlink != 0 {
		info.IsSymlink = true
		info.LinkTarget, _ = os.Readlink(p) // a link that went away meanwhile has no target
	}
	return info
}

// octal gives the permission bits with set-id and sticky ones, as chmod(1) takes them.
func octal(m fs.FileMode) string {
	bits := uint32(m.Perm())
	for flag, bit := range map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if m&flag != 0 {
			bits |= bit
		}
	}
	return strconv.FormatUint(uint64(bits), 8)
}

// parseMode is the reverse of octal.
func parseMode(s string) (fs.FileMode, error) {
	bits, err := strconv.ParseUint(s, 8, 32)
	if err != nil || bits > 0o7777 {
		return 0, guest.Errorf(guest.CodeInvalid, "permissions %q are not an octal mode", s)
	}
	mode := fs.FileMode(bits & 0o777)
	for bit, flag := range map[uint64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if bits&bit != 0 {
			mode |= flag
		}
	}
	return mode, nil
}

// cleanPath accepts absolute paths only: there is no directory that a relative one could be meant from.
func cleanPath(p string) (string, error) {
	if !filepath.IsAbs(p) {
		return "", guest.Errorf(guest.CodeInvalid, "path %q is not absolute", p)
	}
	for i := range len(p) {
		if p[i] == 0 {
			return "", guest.Errorf(guest.CodeInvalid, "path has a zero byte")
		}
	}
	return filepath.Clean(p), nil
}

func stat(_ context.Context, req guest.PathRequest) (guest.FileInfo, error) {
	p, err := cleanPath(req.Path)
	if err != nil {
		return guest.FileInfo{}, err
	}
	st, err := os.Lstat(p)
	if err != nil {
		return guest.FileInfo{}, err
	}
	return newNames().describe(p, st), nil
}

func exists(_ context.Context, req guest.PathRequest) (guest.ExistsResponse, error) {
	p, err := cleanPath(req.Path)
	if err != nil {
		return guest.ExistsResponse{}, err
	}
	if _, err = os.Lstat(p); err == nil {
		return guest.ExistsResponse{Exists: true}, nil
	}
	if code := asError(err).Code; code == guest.CodeNotFound || code == guest.CodeNotDirectory {
		return guest.ExistsResponse{}, nil
	}
	return guest.ExistsResponse{}, err
}

// ls lists a directory in the order of the entries' names, each directory right before what is in it.
func ls(ctx context.Context, req guest.LsRequest) (guest.LsResponse, error) {
	root, err := cleanPath(req.Path)
	if err != nil {
		return guest.LsResponse{}, err
	}
	for _, pattern := range req.Exclude {
		if _, err := path.Match(pattern, ""); err != nil {
			return guest.LsResponse{}, guest.Errorf(guest.CodeInvalid, "exclude pattern %q: %v", pattern, err)
		}
	}
	l := &lister{ctx: ctx, req: req, root: root, names: newNames(), items: []guest.FileInfo{}}
	if err := l.list(root); err != nil {
		return guest.LsResponse{}, err
	}
	return guest.LsResponse{Items: l.items}, nil
}

type lister struct {
	ctx   context.Context //nolint:containedctx // lives as long as one request
	req   guest.LsRequest
	root  string
	names *names
	items []guest.FileInfo
}

func (l *lister) list(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		p := filepath.Join(dir, e.Name())
		st, err := e.Info()
		if err != nil || l.excluded(p) { // gone meanwhile, or not wanted
			continue
		}
		if err := l.ctx.Err(); err != nil {
			return err
		}
		if len(l.items) == maxListed {
			return guest.Errorf(guest.CodeInvalid, "more than %d entries in %s", maxListed, l.root)
		}
		l.items = append(l.items, l.names.describe(p, st))
		if l.req.Recursive && e.IsDir() {
			if err := l.list(p); err != nil && asError(err).Code != guest.CodeNotFound {
				return fmt.Errorf("list %s: %w", p, err)
			}
		}
	}
	return nil
}

func (l *lister) excluded(p string) bool {
	rel, err := filepath.Rel(l.root, p)
	if err != nil {
		return false
	}
	for _, pattern := range l.req.Exclude {
		for _, name := range []string{filepath.Base(p), rel} {
			if ok, err := path.Match(pattern, name); err == nil && ok {
				return true
			}
		}
	}
	return false
}

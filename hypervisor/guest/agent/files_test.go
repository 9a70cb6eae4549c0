package agent

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stillframe/hypervisor/guest"
)

func read(t *testing.T, c *guest.Client, req guest.ReadFileRequest) (string, error) {
	t.Helper()
	r, err := c.ReadFile(t.Context(), req)
	if err != nil {
		return "", err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	return string(b), err
}

func ptr(n uint64) *uint64 { return &n }

func TestReadParts(t *testing.T) {
	c := startAgentHere(t)
	dir := t.TempDir()
	long := strings.Repeat("x", 200_000) + "\n" // a line longer than any buffer
	contents := map[string]string{
		"lines": "one\ntwo\nthree\n", "open": "one\ntwo\nthree", "empty": "", "blank": "\n\n\n", "long": "a\n" + long + long,
	}
	for name, body := range contents {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(body), 0o600))
	}
	for _, tc := range []struct {
		file string
		req  guest.ReadFileRequest
		want string
	}{
		{"lines", guest.ReadFileRequest{}, "one\ntwo\nthree\n"},
		{"lines", guest.ReadFileRequest{Offset: ptr(4)}, "two\nthree\n"},
		{"lines", guest.ReadFileRequest{Offset: ptr(4), Limit: ptr(3)}, "two"},
		{"lines", guest.ReadFileRequest{Limit: ptr(0)}, ""},
		{"lines", guest.ReadFileRequest{Offset: ptr(1000)}, ""},
		{"lines", guest.ReadFileRequest{Limit: ptr(1 << 63)}, "one\ntwo\nthree\n"},
		{"lines", guest.ReadFileRequest{Head: ptr(0)}, ""},
		{"lines", guest.ReadFileRequest{Head: ptr(2)}, "one\ntwo\n"},
		{"lines", guest.ReadFileRequest{Head: ptr(9)}, "one\ntwo\nthree\n"},
		{"lines", guest.ReadFileRequest{Tail: ptr(0)}, ""},
		{"lines", guest.ReadFileRequest{Tail: ptr(1)}, "three\n"},
		{"lines", guest.ReadFileRequest{Tail: ptr(3)}, "one\ntwo\nthree\n"},
		{"lines", guest.ReadFileRequest{Tail: ptr(9)}, "one\ntwo\nthree\n"},
		{"open", guest.ReadFileRequest{Tail: ptr(1)}, "three"},
		{"open", guest.ReadFileRequest{Tail: ptr(2)}, "two\nthree"},
		{"open", guest.ReadFileRequest{Head: ptr(3)}, "one\ntwo\nthree"},
		{"empty", guest.ReadFileRequest{Tail: ptr(1)}, ""},
		{"empty", guest.ReadFileRequest{Head: ptr(1)}, ""},
		{"blank", guest.ReadFileRequest{Tail: ptr(2)}, "\n\n"},
		{"blank", guest.ReadFileRequest{Head: ptr(2)}, "\n\n"},
		{"long", guest.ReadFileRequest{Head: ptr(2)}, "a\n" + long},
		{"long", guest.ReadFileRequest{Tail: ptr(1)}, long},
		{"long", guest.ReadFileRequest{Tail: ptr(2)}, long + long},
	} {
		tc.req.Path = filepath.Join(dir, tc.file)
		got, err := read(t, c, tc.req)
		require.NoError(t, err)
		require.True(t, got == tc.want, "%s %+v: got %d bytes, want %d", tc.file, tc.req, len(got), len(tc.want))
	}
}

func TestReadFileWithoutASize(t *testing.T) {
	c := startAgentHere(t)
	whole, err := read(t, c, guest.ReadFileRequest{Path: "/proc/self/status"})
	require.NoError(t, err)
	require.Contains(t, whole, "Name:")
	last, err := read(t, c, guest.ReadFileRequest{Path: "/proc/self/status", Tail: ptr(1)})
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(last, "nonvoluntary_ctxt_switches"), last)
}

func TestReadRefusals(t *testing.T) {
	c := startAgentHere(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for _, tc := range []struct {
		req  guest.ReadFileRequest
		code guest.Code
	}{
		{guest.ReadFileRequest{Path: filepath.Join(dir, "none")}, guest.CodeNotFound},
		{guest.ReadFileRequest{Path: file + "/x"}, guest.CodeNotDirectory},
		{guest.ReadFileRequest{Path: dir}, guest.CodeIsDirectory},
		{guest.ReadFileRequest{Path: "f"}, guest.CodeInvalid},
		{guest.ReadFileRequest{Path: ""}, guest.CodeInvalid},
		{guest.ReadFileRequest{Path: "/a\x00b"}, guest.CodeInvalid},
		{guest.ReadFileRequest{Path: "/dev/zero"}, guest.CodeInvalid},
		{guest.ReadFileRequest{Path: file, Head: ptr(1), Tail: ptr(1)}, guest.CodeInvalid},
		{guest.ReadFileRequest{Path: file, Head: ptr(1), Limit: ptr(1)}, guest.CodeInvalid},
		{guest.ReadFileRequest{Path: file, Offset: ptr(1 << 63)}, guest.CodeInvalid},
	} {
		_, err := read(t, c, tc.req)
		require.Equal(t, tc.code, guest.CodeOf(err), "%+v: %v", tc.req, err)
	}
}

func TestWrite(t *testing.T) {
	c := startAgentHere(t)
	dir := t.TempDir()
	p := filepath.Join(dir, "new", "parents", "file & ü?")
	big := make([]byte, 5<<20)
	_, _ = rand.Read(big)
	require.NoError(t, c.WriteFile(t.Context(), p, 0, bytes.NewReader(big)))
	got, err := read(t, c, guest.ReadFileRequest{Path: p})
	require.NoError(t, err)
	require.True(t, got == string(big))
	requireMode(t, p, 0o644)

	require.NoError(t, c.WriteFile(t.Context(), p, 0o751, strings.NewReader("short")))
	requireMode(t, p, 0o751)
	require.NoError(t, os.Chown(p, 12345, 23456))
	require.NoError(t, c.WriteFile(t.Context(), p, 0, strings.NewReader("")))
	requireMode(t, p, 0o751)
	info, err := c.Stat(t.Context(), p)
	require.NoError(t, err)
	require.Equal(t, []any{"12345", "23456", int64(0)}, []any{info.Owner, info.Group, info.Size})
	require.Empty(t, leftovers(t, dir))
}

func requireMode(t *testing.T, p string, want fs.FileMode) {
	t.Helper()
	st, err := os.Stat(p)
	require.NoError(t, err)
	require.Equal(t, want, st.Mode())
}

// leftovers finds temporary files of writes.
func leftovers(t *testing.T, dir string) []string {
	t.Helper()
	var found []string
	require.NoError(t, filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if strings.Contains(p, ".stillframe-") {
			found = append(found, p)
		}
		return err
	}))
	return found
}

func TestWriteThroughLinks(t *testing.T) {
	c := startAgentHere(t)
	dir := t.TempDir()
	link, target := filepath.Join(dir, "link"), filepath.Join(dir, "target")
	require.NoError(t, os.Symlink("target", link))
	require.NoError(t, c.WriteFile(t.Context(), link, 0, strings.NewReader("x"))) // dangling
	b, err := os.ReadFile(target)
	require.NoError(t, err)
	require.Equal(t, "x", string(b))
	_, err = os.Readlink(link)
	require.NoError(t, err, "the link is still one")
	loop := filepath.Join(dir, "loop")
	require.NoError(t, os.Symlink(loop, loop))
	require.Equal(t, guest.CodeInvalid, guest.CodeOf(c.WriteFile(t.Context(), loop, 0, strings.NewReader("x"))))
}

// failing breaks off in the middle.
type failing struct{ r io.Reader }

func (f failing) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if errors.Is(err, io.EOF) {
		err = errors.New("source broke")
	}
	return n, err
}

func TestWriteThatBreaksOffChangesNothing(t *testing.T) {
	c := startAgentHere(t)
	dir := t.TempDir()
	p := filepath.Join(dir, "f")
	require.NoError(t, os.WriteFile(p, []byte("old"), 0o600))
	require.Error(t, c.WriteFile(t.Context(), p, 0, failing{strings.NewReader(strings.Repeat("new", 100_000))}))
	require.Eventually(t, func() bool { return len(leftovers(t, dir)) == 0 }, wait, wait/1000)
	b, err := os.ReadFile(p)
	require.NoError(t, err)
	require.Equal(t, "old", string(b))
}

func TestWriteRefusals(t *testing.T) {
	c := startAgentHere(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for p, code := range map[string]guest.Code{
		dir: guest.CodeIsDirectory, file + "/x": guest.CodeNotDirectory,
		"x": guest.CodeInvalid, "/dev/null": guest.CodeInvalid,
		filepath.Join(dir, strings.Repeat("n", 300)): guest.CodeInvalid,
	} {
		require.Equal(t, code, guest.CodeOf(c.WriteFile(t.Context(), p, 0, strings.NewReader("x"))), p)
	}
}

func TestLs(t *testing.T) {
	c := startAgentHere(t)
	dir := t.TempDir()
	for _, d := range []string{"a/b", "node_modules/x", ".git/objects"} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "a/b/deep.txt"), []byte("12345"), 0o640))
	require.NoError(t, os.Symlink("a", filepath.Join(dir, "link")))
	paths := func(req guest.LsRequest) (out []string) {
		req.Path = dir
		items, err := c.Ls(t.Context(), req)
		require.NoError(t, err)
		for _, i := range items {
			rel, err := filepath.Rel(dir, i.Path)
			require.NoError(t, err)
			require.Equal(t, filepath.Base(i.Path), i.Name)
			out = append(out, rel)
		}
		return out
	}
	require.Equal(t, []string{".git", "a", "link", "node_modules"}, paths(guest.LsRequest{}))
	require.Equal(t, []string{".git", ".git/objects", "a", "a/b", "a/b/deep.txt", "link", "node_modules",
		"node_modules/x"}, paths(guest.LsRequest{Recursive: true}), "links are not followed")
	require.Equal(t, []string{"a", "a/b", "link"},
		paths(guest.LsRequest{Recursive: true, Exclude: []string{".git", "node_*", "*.txt"}}))
	require.Equal(t, []string{".git", ".git/objects", "a", "link", "node_modules", "node_modules/x"},
		paths(guest.LsRequest{Recursive: true, Exclude: []string{"a/b"}}), "by relative path")

	_, err := c.Ls(t.Context(), guest.LsRequest{Path: dir, Exclude: []string{"["}})
	require.Equal(t, guest.CodeInvalid, guest.CodeOf(err))
	_, err = c.Ls(t.Context(), guest.LsRequest{Path: filepath.Join(dir, "none")})
	require.Equal(t, guest.CodeNotFound, guest.CodeOf(err))
	_, err = c.Ls(t.Context(), guest.LsRequest{Path: filepath.Join(dir, "a/b/deep.txt")})
	require.Equal(t, guest.CodeNotDirectory, guest.CodeOf(err))
	items, err := c.Ls(t.Context(), guest.LsRequest{Path: filepath.Join(dir, "node_modules/x")})
	require.NoError(t, err)
	require.NotNil(t, items, "an empty directory is an empty list")
}

func TestStat(t *testing.T) {
	c := startAgentHere(t)
	dir := t.TempDir()
	f, link := filepath.Join(dir, "f"), filepath.Join(dir, "link")
	require.NoError(t, os.WriteFile(f, []byte("123"), 0o600))
	require.NoError(t, os.Chmod(f, 0o4750|fs.ModeSetuid))
	require.NoError(t, os.Symlink("f", link))
	st, err := os.Stat(f)
	require.NoError(t, err)
	got, err := c.Stat(t.Context(), f)
	require.NoError(t, err)
	require.Equal(t, guest.FileInfo{
		Name: "f", Path: f, Size: 3, Mode: "4750", MTime: st.ModTime().Unix(), Owner: "root", Group: "root",
	}, got)
	got, err = c.Stat(t.Context(), link)
	require.NoError(t, err)
	require.True(t, got.IsSymlink)
	require.Equal(t, "f", got.LinkTarget)

	for p, want := range map[string]bool{f: true, link: true, dir: true, f + "x": false, f + "/x": false} {
		exists, err := c.Exists(t.Context(), p)
		require.NoError(t, err)
		require.Equal(t, want, exists, p)
	}
}

func TestMkdirAndDelete(t *testing.T) {
	c := startAgentHere(t)
	dir := t.TempDir()
	deep := filepath.Join(dir, "x/y")
	require.Equal(t, guest.CodeNotFound, guest.CodeOf(c.Mkdir(t.Context(), guest.MkdirRequest{Path: deep})))
	req := guest.MkdirRequest{Path: deep, Recursive: true, Permissions: "1777"}
	require.NoError(t, c.Mkdir(t.Context(), req))
	requireMode(t, deep, 0o777|fs.ModeDir|fs.ModeSticky)
	require.NoError(t, c.Mkdir(t.Context(), req), "there already")
	require.Equal(t, guest.CodeExists, guest.CodeOf(c.Mkdir(t.Context(), guest.MkdirRequest{Path: deep})))
	require.Equal(t, guest.CodeInvalid,
		guest.CodeOf(c.Mkdir(t.Context(), guest.MkdirRequest{Path: deep + "2", Permissions: "rwx"})))

	x := guest.DeleteRequest{Path: filepath.Join(dir, "x")}
	require.Equal(t, guest.CodeExists, guest.CodeOf(c.Delete(t.Context(), x)), "not empty")
	x.Recursive = true
	require.NoError(t, c.Delete(t.Context(), x))
	require.Equal(t, guest.CodeNotFound, guest.CodeOf(c.Delete(t.Context(), x)))
	err := c.Delete(t.Context(), guest.DeleteRequest{Path: "/", Recursive: true})
	require.Equal(t, guest.CodeInvalid, guest.CodeOf(err))
}

func TestMoveAndCopy(t *testing.T) {
	c := startAgentHere(t)
	// Two file systems: a move between them is a copy and a delete.
	shm, err := os.MkdirTemp("/dev/shm", "stillframe-test-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(shm)) })
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	require.NoError(t, os.MkdirAll(filepath.Join(src, "sub"), 0o750))
	require.NoError(t, os.WriteFile(filepath.Join(src, "sub/f"), []byte("hello"), 0o640))
	require.NoError(t, os.Symlink("sub/f", filepath.Join(src, "link")))
	same := func(p string) {
		b, err := os.ReadFile(filepath.Join(p, "link"))
		require.NoError(t, err)
		require.Equal(t, "hello", string(b))
		requireMode(t, filepath.Join(p, "sub"), 0o750|fs.ModeDir)
		requireMode(t, filepath.Join(p, "sub/f"), 0o640)
	}
	copied, moved := filepath.Join(dir, "copied"), filepath.Join(shm, "moved")
	req := guest.TransferRequest{Src: src, Dst: copied}
	require.Equal(t, guest.CodeIsDirectory, guest.CodeOf(c.Copy(t.Context(), req)))
	req.Recursive = true
	require.NoError(t, c.Copy(t.Context(), req))
	same(copied)
	same(src)
	require.Equal(t, guest.CodeExists, guest.CodeOf(c.Copy(t.Context(), req)))
	req.Overwrite = true
	require.NoError(t, c.Copy(t.Context(), req))
	same(copied)

	require.NoError(t, c.Move(t.Context(), guest.TransferRequest{Src: src, Dst: moved}))
	same(moved)
	_, err = os.Lstat(src)
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.Equal(t, guest.CodeExists,
		guest.CodeOf(c.Move(t.Context(), guest.TransferRequest{Src: copied, Dst: moved})))
	f, g := filepath.Join(dir, "f"), filepath.Join(dir, "g")
	require.NoError(t, os.WriteFile(f, []byte("f"), 0o600))
	require.NoError(t, os.WriteFile(g, []byte("g"), 0o600))
	require.Equal(t, guest.CodeExists, guest.CodeOf(c.Move(t.Context(), guest.TransferRequest{Src: f, Dst: g})))
	require.NoError(t, c.Move(t.Context(), guest.TransferRequest{Src: f, Dst: g, Overwrite: true}))
	require.Equal(t, guest.CodeInvalid, guest.CodeOf(c.Move(t.Context(),
		guest.TransferRequest{Src: copied, Dst: filepath.Join(copied, "sub/in")})), "into itself")
	require.Equal(t, guest.CodeNotFound, guest.CodeOf(c.Copy(t.Context(), guest.TransferRequest{Src: f, Dst: f + "2"})))
}

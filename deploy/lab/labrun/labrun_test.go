//go:build linux && amd64

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/deploy/lab/job"
)

func TestParse(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, []byte("x"), 0o600))
	o, err := parse([]string{
		"-lab", "/lab", "-timeout", "100s", "-scratch", "64:xfs:/data", "-collect", "/out:here", "-with", file,
		"-with", file + ":/opt/file", "-env", "A=b=c", "-modules", "kvm_amd,,tun", "--", "sh", "-c", "exit 3",
	})
	require.NoError(t, err)
	require.Equal(t, []string{"sh", "-c", "exit 3"}, o.job.Argv)
	require.Equal(t, []job.Bind{{Source: "0", Target: file}, {Source: "1", Target: "/opt/file"}}, o.job.Binds)
	require.Equal(t, []string{file, file}, o.files)
	require.Equal(t, []string{"kvm_amd", "tun"}, o.job.Modules)
	require.Contains(t, o.job.Env, "A=b=c")
	require.WithinDuration(t, time.Now().Add(80*time.Second), o.job.Until, 10*time.Second,
		"the machine ends the command before labrun ends the machine")
	require.Equal(t, 64, o.disk)
	require.Equal(t, [2]string{"xfs", "/data"}, [2]string{o.job.ScratchFS, o.job.ScratchMount})
	require.Equal(t, [2]string{"/out", "here"}, [2]string{o.job.Collect, o.collect})

	for _, bad := range [][]string{
		{"-lab", "/lab"},
		{"--", "true"},
		{"-lab", "/lab", "-with", file + ":relative", "--", "true"},
		{"-lab", "/lab", "-with", file + ".missing", "--", "true"},
		{"-lab", "/lab", "-scratch", "64:xfs", "--", "true"},
		{"-lab", "/lab", "-scratch", "0:xfs:/data", "--", "true"},
		{"-lab", "/lab", "-collect", "relative:here", "--", "true"},
		{"-lab", "/lab", "-memory", "1", "--", "true"},
		{"-lab", "/lab", "-timeout", "0s", "--", "true"},
	} {
		_, err := parse(bad)
		require.Error(t, err, "%v", bad)
	}
}

// TestJobDisk reads the disk back with the filesystem's own tools.
func TestJobDisk(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	tree := filepath.Join(t.TempDir(), "tree")
	require.NoError(t, os.MkdirAll(filepath.Join(tree, "below"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(tree, "below", "program"), []byte("#!/bin/sh\n"), 0o755))
	require.NoError(t, os.Symlink("program", filepath.Join(tree, "below", "link")))
	sparse := filepath.Join(tree, "sparse")
	require.NoError(t, os.WriteFile(sparse, bytes.Repeat([]byte("data"), 1024), 0o600))
	require.NoError(t, os.Truncate(sparse, 4<<30))
	entry := filepath.Join(t.TempDir(), "entry")
	require.NoError(t, os.Symlink(tree, entry))

	var o options
	require.NoError(t, o.addFile(entry+":/opt/tree"))
	o.job.Argv = []string{"true"}
	disk, err := jobDisk(context.Background(), o)
	require.NoError(t, err)
	defer func() { require.NoError(t, disk.Close()) }()
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left, "the disk has a name, or its parts are left")

	debugfs := func(request string) string {
		cmd := exec.Command("debugfs", "-R", request, "/proc/self/fd/3")
		cmd.ExtraFiles = []*os.File{disk}
		out, err := cmd.Output()
		require.NoError(t, err)
		return string(out)
	}
	var got job.Job
	require.NoError(t, json.Unmarshal([]byte(debugfs("cat /"+job.File)), &got))
	require.Equal(t, o.job, got)
	require.Equal(t, "#!/bin/sh\n", debugfs("cat /files/0/below/program"))
	require.Regexp(t, `Mode:\s+0755`, debugfs("stat /files/0/below/program"))
	require.Contains(t, debugfs("stat /files/0/below/link"), `dest: "program"`, "a link below stays a link")
	stat := debugfs("stat /files/0/sparse")
	require.Regexp(t, `Size: 4294967296\b`, stat)
	require.Regexp(t, `Blockcount: 8\b`, stat, "holes are kept")
}

func TestVerdict(t *testing.T) {
	three := 3
	over, cancel := context.WithDeadline(context.Background(), time.Now().Add(-time.Second))
	defer cancel()
	stopped, stop := context.WithCancel(context.Background())
	stop()
	for name, c := range map[string]struct {
		ctx     context.Context //nolint:containedctx // what the case is about
		reports string
		code    int
		says    string
	}{
		"ended":             {context.Background(), `{"started":{}}{"exit":0}`, 0, ""},
		"failed":            {context.Background(), `{"started":{}}{"exit":3}`, three, ""},
		"ended in time":     {over, `{"exit":3}`, three, ""},
		"not in time":       {over, `{"started":{}}`, job.ExitTimeout, "console"},
		"interrupted":       {stopped, ``, exitLab, "interrupted"},
		"could not prepare": {context.Background(), `{"failure":"no disk"}`, exitLab, "no disk"},
		"panicked":          {context.Background(), ``, exitLab, "last words"},
		"cut off":           {context.Background(), `{"exit":`, exitLab, "last words"},
	} {
		m := &machine{console: &tail{}}
		_, _ = m.console.Write([]byte("last words"))
		m.readReports(strings.NewReader(c.reports))
		require.Equal(t, !strings.Contains(c.reports, "}"), m.diedEarly(), name)
		code, err := m.verdict(c.ctx, nil)
		require.Equal(t, c.code, code, name)
		if c.says == "" {
			require.NoError(t, err, name)
		} else {
			require.ErrorContains(t, err, c.says, name)
		}
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	var kept tail
	for range 3 * consoleTail / 8 {
		_, _ = kept.Write([]byte("1234567\n"))
	}
	_, _ = kept.Write([]byte("the end"))
	require.Len(t, kept.String(), consoleTail)
	require.True(t, strings.HasSuffix(kept.String(), "\nthe end"))
}

// TestClockIsMeasuredAlike: two measurements of one clock agree to a thousandth, whatever else the machine does.
func TestClockIsMeasuredAlike(t *testing.T) {
	first, second := tscKHz(), tscKHz()
	require.InEpsilon(t, first, second, 1e-3)
	require.Contains(t, clockWords(2_300_000), "tsc_early_khz=2300000 lpj=9200000")
}

// TestEarlyDeathIsBootedAgain: QEMU without a kernel to boot ends at once, every time.
func TestEarlyDeathIsBootedAgain(t *testing.T) {
	o := options{dir: t.TempDir(), cpus: 1, memory: 256, job: job.Job{Argv: []string{"true"}}}
	code, err := run(t.Context(), o)
	require.Equal(t, exitLab, code)
	require.ErrorContains(t, err, "ended without a word")
}

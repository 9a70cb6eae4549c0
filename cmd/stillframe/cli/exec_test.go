package cli

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// throughShell gives the words that a command gets from a real shell.
func throughShell(t *testing.T, words []string) []string {
	t.Helper()
	line := commandLine(append([]string{"printf", `%s\0`}, words...), false)
	out, err := exec.CommandContext(t.Context(), "/bin/sh", "-c", line).CombinedOutput()
	require.NoError(t, err, "%q: %s", line, out)
	return strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
}

func TestWordsReachTheCommandUnchanged(t *testing.T) {
	for _, words := range [][]string{
		{"plain"}, {""}, {"a b", "c"}, {"it's", `"q"`}, {"$HOME", "`id`", "$(id)"}, {"*", "?", "[a]", "~", "{a,b}"},
		{"a\nb", "\t"}, {`\`, `\\`, `'`, `''`},
		{"#", "!", "&", ";", "|", ">", "<"}, {"-n", "--", "="}, {"ä", "日本", "\xff\xfe"},
	} {
		require.Equal(t, words, throughShell(t, words))
	}
	require.Equal(t, `'A=1'`, commandLine([]string{"A=1"}, false), "a command's name, not a setting")
	require.Equal(t, "ls -l /tmp", commandLine([]string{"ls", "-l", "/tmp"}, false), "nothing is quoted without need")
}

func FuzzCommandLine(f *testing.F) {
	f.Add("a b", "it's")
	f.Add("", "\n")
	f.Fuzz(func(t *testing.T, a, b string) {
		if strings.ContainsRune(a+b, 0) {
			t.Skip("no argument of a process holds a zero byte")
		}
		require.Equal(t, []string{a, b}, throughShell(t, []string{a, b}))
	})
}

func TestSeconds(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{"90", "1m30s"}, {"5m", "5m0s"}, {"1500ms", "2s"}, {"8h", "8h0m0s"},
	} {
		var s seconds
		require.NoError(t, s.Set(tc.text))
		require.Equal(t, tc.want, s.String())
	}
	for _, text := range []string{"", "0", "-1", "5x", "99999999999"} {
		var s seconds
		require.Error(t, s.Set(text), text)
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{"512": 512, "512MiB": 512, "2GiB": 2048, "2G": 2048, "768M": 768} {
		var m mib
		require.NoError(t, m.Set(text), text)
		require.Equal(t, want, int64(m), text)
	}
	for _, text := range []string{"", "0", "-1", "1.5GiB", "1TB", "MiB"} {
		var m mib
		require.Error(t, m.Set(text), text)
	}
	require.Equal(t, []string{"", "512 MiB", "1 GiB", "1536 MiB", "11.0 GiB"},
		[]string{mebibytes(0), mebibytes(512), mebibytes(1024), mebibytes(1536), mebibytes(11265)})
	require.Equal(t, []string{"0 B", "1023 B", "1 KiB", "1.5 KiB", "4 GiB"},
		[]string{bytesOf(0), bytesOf(1023), bytesOf(1024), bytesOf(1536), bytesOf(4 << 30)})
}

package store

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkPause prints how long each way holds a guest up, as a ratio to a plain copy of the same file in the same
// pause. STORE_BENCH_MIB (sizes, in MiB), STORE_BENCH_FS and STORE_BENCH_METHODS choose what is measured.
func BenchmarkPause(b *testing.B) {
	sizes := strings.Split(setting("STORE_BENCH_MIB", "256"), ",")
	kinds := strings.Split(setting("STORE_BENCH_FS", "xfs,ext4"), ",")
	chosen := strings.Split(setting("STORE_BENCH_METHODS", ""), ",")
	table := tabwriter.NewWriter(os.Stderr, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(table, "fs\tMiB\twrites\tmethod\tahead ms\tfreeze ms\tratio\textents\tMiB copied\t")
	for _, kind := range kinds {
		for _, text := range sizes {
			mib, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			b.Run(kind+"/"+text, func(b *testing.B) { pauses(b, table, kind, mib<<20, chosen) })
		}
	}
	_ = table.Flush()
}

func setting(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

func pauses(b *testing.B, table *tabwriter.Writer, kind string, size int64, chosen []string) {
	dir := os.Getenv(envDir)
	if dir == "" {
		dir = mount(b, kind, 3*size+2<<30)
	}
	for _, load := range []order{{mib: -1}, {mib: 20, hot: true}, {mib: 20}, {mib: 100}} {
		baseline := time.Duration(0)
		for _, method := range slices.Concat([]Method{MethodCopy}, methods) {
			if !available(kind, method) || method == MethodCopy && baseline != 0 ||
				chosen[0] != "" && method != MethodCopy && !slices.Contains(chosen, string(method)) {
				continue
			}
			report := pauseOnce(b, dir, size, load, method)
			if method == MethodCopy {
				baseline = report.Freeze.Duration
			}
			name := map[bool]string{true: "hot", false: "random"}[load.hot]
			if load.mib < 0 {
				name = "idle"
			} else {
				name = fmt.Sprintf("%d %s", load.mib, name)
			}
			ms := func(d time.Duration) string { return fmt.Sprintf("%.1f", d.Seconds()*1000) }
			_, _ = fmt.Fprintf(table, "%s\t%d\t%s\t%s\t%s\t%s\t%.3f\t%d\t%.1f\t\n", kind, size>>20, name, report.Method,
				ms(report.Begin.Duration), ms(report.Freeze.Duration),
				report.Freeze.Duration.Seconds()/baseline.Seconds(), report.Freeze.Extents,
				float64(report.Freeze.Bytes)/(1<<20))
		}
	}
}

// pauseOnce fills a file through a mapping, lets a writer run on it, takes one snapshot that is kept, lets the writer
// run on, and measures the second.
func pauseOnce(b *testing.B, dir string, size int64, load order, method Method) Report {
	b.Helper()
	load.path, load.seed = filepath.Join(dir, "ram"), 1
	fill(b, load.path, size)
	defer func() {
		for _, name := range []string{"ram", "first", "second"} {
			_ = os.Remove(filepath.Join(dir, name))
		}
	}()
	w := startWriter(b, load)
	defer w.kill()
	var report Report
	for _, name := range []string{"first", "second"} {
		time.Sleep(2 * time.Second)
		c, err := New().Begin(b.Context(), Request{
			Source: load.path, Dest: filepath.Join(dir, name), Mapped: true, Method: method,
		})
		if err != nil {
			b.Fatal(err)
		}
		w.stop()
		_, err = c.Freeze(b.Context())
		w.cont()
		if err != nil {
			b.Fatal(err)
		}
		if report, err = c.Finish(b.Context()); err != nil {
			b.Fatal(err)
		}
		if name == "first" && !strings.HasPrefix(string(method), "reflink") {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				b.Fatal(err)
			}
		}
	}
	return report
}

// fill makes a file of which nine tenths hold data that does not repeat.
func fill(b *testing.B, path string, size int64) {
	b.Helper()
	file, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	if err := file.Truncate(size); err != nil {
		b.Fatal(err)
	}
	// Through a mapping, as a guest does: write calls would leave larger units in memory, which get dirty as a whole.
	mem, err := unix.Mmap(int(file.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = unix.Munmap(mem) }()
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(mem[:size*9/10])
}

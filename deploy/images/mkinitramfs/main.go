// Command mkinitramfs packs the guest's initramfs: the agent as /init, kernel modules with everything they depend on,
// and the list of them in loading order.
//
//	mkinitramfs -init FILE -modules DIR -out FILE MODULE…
//
// DIR is a lib/modules/VERSION folder with uncompressed modules. A module that the kernel has built in is left out. The
// same inputs give the same bytes: no times, no owners, a fixed order.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

func main() {
	initFile := flag.String("init", "", "program to run as process 1")
	modules := flag.String("modules", "", "lib/modules/VERSION folder")
	out := flag.String("out", "", "file to write")
	flag.Parse()
	if err := run(*initFile, *modules, *out, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "mkinitramfs:", err)
		os.Exit(1)
	}
}

func run(initFile, modulesDir, out string, wanted []string) (err error) {
	mods, err := resolve(modulesDir, wanted)
	if err != nil {
		return err
	}
	f, err := os.Create(out) // named by the caller
	if err != nil {
		return err
	}
	buffered := bufio.NewWriterSize(f, 1<<20)
	defer func() { err = errors.Join(err, buffered.Flush(), f.Close()) }()
	a := &archive{w: buffered}
	a.dir("dev")
	// The kernel opens this for process 1's output before process 1 can mount anything.
	a.charDevice("dev/console", 5, 1)
	a.fileFrom("init", initFile, 0o755)
	a.dir("modules")
	var list strings.Builder
	for _, m := range mods {
		name := filepath.Base(m)
		fmt.Fprintln(&list, name)
		a.fileFrom("modules/"+name, m, 0o644)
	}
	a.file("modules/list", []byte(list.String()), 0o644)
	a.trailer()
	return a.err
}

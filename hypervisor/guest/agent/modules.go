package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// The initramfs holds the kernel's modules in one folder, and the order to load them in as a list of file names.
const (
	modulesDir  = "/modules"
	modulesList = "/modules/list"
)

// loadModules loads every module of the list, dependencies first as the list has them. One that is loaded already, or
// built into the kernel, is fine; anything else is an error, because each is on the list for a reason.
func loadModules() error {
	list, err := os.ReadFile(modulesList)
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(list)) {
		if err := loadModule(filepath.Join(modulesDir, name)); err != nil {
			return fmt.Errorf("load module %s: %w", name, err)
		}
	}
	return nil
}

func loadModule(path string) error {
	f, err := os.Open(path) // a name from the list in the initramfs
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

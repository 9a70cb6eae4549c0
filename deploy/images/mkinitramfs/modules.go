package main

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// resolve gives the files of the wanted modules and of all they depend on, each after what it needs.
func resolve(dir string, wanted []string) ([]string, error) {
	r := &resolver{files: map[string]string{}, builtin: map[string]bool{}, seen: map[string]bool{}}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(p, ".ko") {
			r.files[moduleName(p)] = p
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	list, err := os.ReadFile(filepath.Join(dir, "modules.builtin")) // named by the caller
	if err != nil {
		return nil, err
	}
	for _, p := range strings.Fields(string(list)) {
		r.builtin[moduleName(p)] = true
	}
	for _, m := range wanted {
		if err := r.add(m); err != nil {
			return nil, err
		}
	}
	return r.order, nil
}

// moduleName is the name the kernel knows a module by: files have dashes where names have underscores.
func moduleName(file string) string {
	return strings.ReplaceAll(strings.TrimSuffix(filepath.Base(file), ".ko"), "-", "_")
}

type resolver struct {
	files   map[string]string // by name
	builtin map[string]bool
	seen    map[string]bool
	order   []string
}

func (r *resolver) add(module string) error {
	name := moduleName(module)
	if r.seen[name] || r.builtin[name] {
		return nil
	}
	r.seen[name] = true
	file, ok := r.files[name]
	if !ok {
		return fmt.Errorf("no module %s", name)
	}
	needs, err := dependencies(file)
	if err != nil {
		return err
	}
	for _, n := range needs {
		if err := r.add(n); err != nil {
			return fmt.Errorf("%s needs: %w", name, err)
		}
	}
	r.order = append(r.order, file)
	return nil
}

// dependencies reads the "depends" entry that the kernel's build leaves in every module.
func dependencies(file string) ([]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	defer f.Close() //nolint:errcheck // only read
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("%s: not a kernel module", file)
	}
	info, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	for _, entry := range bytes.Split(info, []byte{0}) {
		if list, ok := strings.CutPrefix(string(entry), "depends="); ok {
			return strings.FieldsFunc(list, func(c rune) bool { return c == ',' }), nil
		}
	}
	return nil, nil
}

//go:build linux

package main

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"stillframe/deploy/lab/job"
)

// jobDisk makes the disk that carries the job and its files into the machine. A squashfs: the kernel at hand has
// neither 9p nor anything else that shares folders without one more process on the host.
func jobDisk(ctx context.Context, o options) (*os.File, error) {
	name, err := temporaryName()
	if err != nil {
		return nil, err
	}
	defer os.Remove(name)
	// Not compressed: the emulated processor would pay for it.
	pack := exec.CommandContext(ctx, "mksquashfs", "-", name, "-tar", "-noappend", "-quiet", "-no-progress",
		"-noI", "-noD", "-noF", "-noX", "-no-xattrs")
	var complaint strings.Builder
	pack.Stderr = &complaint
	stdin, err := pack.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := pack.Start(); err != nil {
		return nil, fmt.Errorf("make the job disk: %w", err)
	}
	writeErr := writeJob(stdin, o)
	_ = stdin.Close()
	if err := pack.Wait(); err != nil {
		return nil, fmt.Errorf("make the job disk: %w: %s", err, complaint.String())
	}
	if writeErr != nil {
		return nil, fmt.Errorf("make the job disk: %w", writeErr)
	}
	return os.Open(name)
}

// temporaryName makes an empty file for a tool that wants a path. The caller removes it.
func temporaryName() (string, error) {
	f, err := os.CreateTemp("", "stillframe-lab-*")
	if err != nil {
		return "", err
	}
	return f.Name(), f.Close()
}

func writeJob(to io.Writer, o options) error {
	description, err := json.Marshal(o.job)
	if err != nil {
		return err
	}
	w := tar.NewWriter(to)
	header := &tar.Header{Name: job.File, Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(len(description))}
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	if _, err := w.Write(description); err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Name: job.Files + "/", Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
		return err
	}
	for i, f := range o.files {
		if err := addTree(w, f.source, path.Join(job.Files, o.job.Binds[i].Source)); err != nil {
			return fmt.Errorf("bring in %s: %w", f.source, err)
		}
	}
	return w.Close()
}

// addTree adds a file or a folder with all it holds. A link that was named itself is followed; links below stay links.
func addTree(w *tar.Writer, source, name string) error {
	source, err := filepath.EvalSymlinks(source)
	if err != nil {
		return err
	}
	return filepath.WalkDir(source, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		below, err := filepath.Rel(source, file)
		if err != nil {
			return err
		}
		return addEntry(w, file, path.Join(name, filepath.ToSlash(below)), entry)
	})
}

func addEntry(w *tar.Writer, file, name string, entry fs.DirEntry) error {
	info, err := entry.Info()
	if err != nil {
		return err
	}
	if info.Mode()&(fs.ModeSocket|fs.ModeNamedPipe|fs.ModeDevice) != 0 {
		return nil // of no use in another machine
	}
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(file); err != nil {
			return err
		}
	}
	header, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	header.Name = name
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return nil
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	// No more than announced: a log that is brought in may grow meanwhile.
	_, err = io.CopyN(w, f, info.Size())
	return err
}

//go:build linux && amd64

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"stillframe/deploy/lab/job"
)

// jobDisk makes the disk that carries the job and its files into the machine: an ext4 image without a name, holes kept.
// A disk, because the kernel at hand has no 9p, and virtiofs would be one more process on the host to look after.
func jobDisk(ctx context.Context, o options) (*os.File, error) {
	dir, err := os.MkdirTemp("", "stillframe-lab-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	stage := filepath.Join(dir, "stage")
	if err := stageJob(ctx, o, stage); err != nil {
		return nil, err
	}
	used, entries, err := usage(stage)
	if err != nil {
		return nil, err
	}
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		return nil, err
	}
	// Generous, since the image is sparse: extent blocks and inode tables take what they take.
	if err := os.Truncate(image, used+used/4+256<<20); err != nil {
		return nil, err
	}
	err = tool(ctx, "mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-N", strconv.Itoa(entries+4096), "-d", stage, image)
	if err != nil {
		return nil, err
	}
	return os.Open(image) // read-only: QEMU wants a descriptor as it will use it
}

func stageJob(ctx context.Context, o options, stage string) error {
	files := filepath.Join(stage, job.Files)
	if err := os.MkdirAll(files, 0o755); err != nil {
		return err
	}
	description, err := json.Marshal(o.job)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(stage, job.File), description, 0o600); err != nil {
		return err
	}
	for i, source := range o.files {
		// A link that was named itself is followed; links below it stay links.
		err := tool(ctx, "cp", "--archive", "-H", "--sparse=always", "--no-target-directory", "--",
			source, filepath.Join(files, o.job.Binds[i].Source))
		if err != nil {
			return fmt.Errorf("bring in %s: %w", source, err)
		}
	}
	return nil
}

// usage gives the bytes that a tree takes, holes left out, and the number of its entries.
func usage(dir string) (used int64, entries int, err error) {
	err = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		entries++
		used += 4096 // a block at least, however little st_blocks says
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			used += st.Blocks * 512
		}
		return nil
	})
	return used, entries, err
}

func tool(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

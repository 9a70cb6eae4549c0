package hypervisor

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"stillframe/fsm"
	"stillframe/hypervisor/vmm"
)

// ResumeLeftPaused resumes the VMs in a data folder that an earlier daemon left paused, by what the folder alone tells,
// so that none of them waits for the log. A sandbox that was born stands still only for a snapshot, whose instant is
// over when its daemon is; one that was not is left alone, for its birth is done again from the start. It must not run
// beside an Owner. A VMM that does not answer is given up after a while: the take-up tries again.
func ResumeLeftPaused(ctx context.Context, dataDir string, log *slog.Logger) {
	born, err := filepath.Glob(machineFiles{filepath.Join(dataDir, "sandboxes", "sbx-*")}.born())
	if err != nil {
		log.Warn("looking for paused VMs", "error", err)
	}
	ctx, cancel := context.WithTimeout(ctx, resumePatience)
	defer cancel()
	var all sync.WaitGroup
	for _, file := range born {
		files := machineFiles{filepath.Dir(file)}
		all.Go(func() {
			resumed, err := resumeIn(ctx, files)
			id := fsm.SandboxID(filepath.Base(files.dir))
			switch {
			case errors.Is(err, vmm.ErrGone), errors.Is(err, os.ErrNotExist):
			case err != nil:
				log.Warn("a VM could not be looked at yet", "sandbox", id, "error", err)
			case resumed:
				log.Warn("resumed a VM that was left paused", "sandbox", id)
			}
		})
	}
	all.Wait()
}

func resumeIn(ctx context.Context, files machineFiles) (resumed bool, err error) {
	rec, err := findVMM(files)
	if err != nil {
		return false, err
	}
	proc, err := vmm.Adopt(rec)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, proc.Close()) }()
	api := proc.Client()
	state, err := api.State(ctx)
	if err != nil || state != vmm.StatePaused || fsm.Bug("no-resume") {
		return false, err
	}
	return true, api.Resume(ctx)
}

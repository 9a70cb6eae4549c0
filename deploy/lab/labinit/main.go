//go:build linux

// Command labinit is the first process of the lab's emulated machine. It finds the root and job disks, makes a plain
// Debian system of them, runs the job's command as root and reports how it ended. It imports deploy/lab/job only.
//
// Invariants: the host always learns how the job ended: by a Report, or by the machine going away without one. The
// machine never outlives its command.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"stillframe/deploy/lab/job"
)

// Exit code of a command that could not be started, as shells have it.
const exitNotStarted = 127

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "labinit: runs only as the first process of the lab's machine")
		os.Exit(2)
	}
	report := job.Report{}
	if code, err := run(); err != nil {
		report.Failure = err.Error()
	} else {
		report.Exit = &code
	}
	if err := send(report); err != nil {
		fmt.Fprintln(os.Stderr, "labinit:", err, report.Failure)
	}
	unix.Sync()
	// A process 1 that returns is a kernel panic, which also ends the machine.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() (int, error) {
	if err := findRoot(); err != nil {
		return 0, fmt.Errorf("find the root disk: %w", err)
	}
	j, err := readJob()
	if err != nil {
		return 0, fmt.Errorf("read the job: %w", err)
	}
	if err := prepare(j); err != nil {
		return 0, fmt.Errorf("prepare the machine: %w", err)
	}
	if err := send(job.Report{Started: started()}); err != nil {
		return 0, err
	}
	code, err := runCommand(j)
	if err != nil {
		return 0, err
	}
	return code, collect(j.Collect)
}

// findRoot loads the boot modules and makes the root disk the root of every path.
func findRoot() error {
	for _, m := range []mount{
		{"devtmpfs", "/dev", "devtmpfs", 0}, {"proc", "/proc", "proc", 0}, {"sysfs", "/sys", "sysfs", 0},
	} {
		if err := m.mount(); err != nil {
			return err
		}
	}
	if err := loadBootModules("/modules"); err != nil {
		return err
	}
	if err := mountDisk(job.RootDisk, "/newroot", "ext4", 0); err != nil {
		return err
	}
	if err := mountDisk(job.JobDisk, "/newroot/lab", "ext4", unix.MS_RDONLY); err != nil {
		return err
	}
	for _, dir := range []string{"/dev", "/proc", "/sys"} {
		if err := unix.Mount(dir, "/newroot"+dir, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", dir, err)
		}
	}
	// An initramfs cannot be pivoted away from; moving the new root over it is the way.
	if err := os.Chdir("/newroot"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return os.Chdir("/")
}

func loadBootModules(dir string) error {
	order, err := os.ReadFile(filepath.Join(dir, "order"))
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(order)) {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		_ = f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w", name, err)
		}
	}
	return nil
}

func readJob() (job.Job, error) {
	var j job.Job
	data, err := os.ReadFile(filepath.Join("/lab", job.File))
	if err != nil {
		return j, err
	}
	if err := json.Unmarshal(data, &j); err != nil {
		return j, err
	}
	if len(j.Argv) == 0 {
		return j, errors.New("no command")
	}
	return j, nil
}

func started() *job.Started {
	s := &job.Started{}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		s.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	_, err := os.Stat("/dev/kvm")
	s.KVM = err == nil
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) == nil {
		s.Uptime = time.Duration(now.Nano()).Seconds()
	}
	return s
}

func send(report job.Report) error {
	port, err := openPort(job.ControlPort)
	if err != nil {
		return err
	}
	defer port.Close()
	if err := json.NewEncoder(port).Encode(report); err != nil {
		return fmt.Errorf("report to the host: %w", err)
	}
	return nil
}

// runCommand runs the job's command in a session of its own and, as process 1 must, reaps every orphan meanwhile.
func runCommand(j job.Job) (int, error) {
	stdout, err := openPort(job.StdoutPort)
	if err != nil {
		return 0, err
	}
	defer stdout.Close()
	stderr, err := openPort(job.StderrPort)
	if err != nil {
		return 0, err
	}
	defer stderr.Close()
	stdin, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer stdin.Close()

	path, err := exec.LookPath(j.Argv[0])
	if err != nil {
		fmt.Fprintln(stderr, "labinit:", err)
		return exitNotStarted, nil
	}
	process, err := os.StartProcess(path, j.Argv, &os.ProcAttr{
		Dir: directory(j), Env: os.Environ(), Files: []*os.File{stdin, stdout, stderr},
		Sys: &unix.SysProcAttr{Setsid: true},
	})
	if err != nil {
		fmt.Fprintln(stderr, "labinit:", err)
		return exitNotStarted, nil
	}
	var over atomic.Bool
	if !j.Until.IsZero() {
		limit := time.AfterFunc(time.Until(j.Until), func() {
			fmt.Fprintln(stderr, "labinit: the command's time is over")
			over.Store(true)
			_ = unix.Kill(-process.Pid, unix.SIGKILL)
		})
		defer limit.Stop()
	}
	code, err := reapUntil(process.Pid)
	if over.Load() {
		code = job.ExitTimeout
	}
	return code, err
}

func directory(j job.Job) string {
	if j.Dir != "" {
		return j.Dir
	}
	return "/root"
}

// reapUntil waits for children of every kind until pid has ended, and gives its exit code.
func reapUntil(pid int) (int, error) {
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait for the command: %w", err)
		case got == pid && status.Exited():
			return status.ExitStatus(), nil
		case got == pid && status.Signaled():
			return 128 + int(status.Signal()), nil
		}
	}
}

// collect sends a folder to the host. A command that did not make the folder has nothing to hand over.
func collect(dir string) error {
	if dir == "" {
		return nil
	}
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	port, err := openPort(job.CollectPort)
	if err != nil {
		return err
	}
	defer port.Close()
	tar := exec.Command("tar", "--create", "--sparse", "--sort=name", "--directory", dir, ".")
	tar.Stdout = port
	var complaint strings.Builder
	tar.Stderr = &complaint
	if err := tar.Run(); err != nil {
		return fmt.Errorf("collect %s: %w: %s", dir, err, complaint.String())
	}
	return nil
}

package agent

import (
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"stillframe/hypervisor/guest"
)

const (
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:" + BinDir
	defaultCwd  = "/home/user"
)

// prepare checks a request and makes the command of it, in a session and process group of its own. Its environment is
// built from nothing (what the agent was started with is no business of the sandbox): the given layers, a later one
// before an earlier, and the request's own before all.
func prepare(req guest.ExecRequest, layers ...map[string]string) (*exec.Cmd, error) {
	argv := req.Argv
	switch {
	case len(argv) > 0 && req.Command != "":
		return nil, guest.Errorf(guest.CodeInvalid, "both argv and command are set")
	case req.Command != "":
		argv = []string{"/bin/sh", "-c", req.Command}
	case len(argv) == 0 || argv[0] == "":
		return nil, guest.Errorf(guest.CodeInvalid, "no command")
	}
	if req.Timeout < 0 || req.Timeout > guest.MaxExecTimeout {
		return nil, guest.Errorf(guest.CodeInvalid, "timeout must be between 0 and %s", guest.MaxExecTimeout)
	}
	if req.MaxOutput < 0 || req.MaxOutput > guest.MaxOutputLimit {
		return nil, guest.Errorf(guest.CodeInvalid, "max_output must be between 0 and %d", guest.MaxOutputLimit)
	}
	cwd, err := workDir(req.Cwd)
	if err != nil {
		return nil, err
	}
	env, err := environment(append(layers, req.Env)...)
	if err != nil {
		return nil, err
	}
	path, err := findProgram(argv[0], env["PATH"], cwd)
	if err != nil {
		return nil, err
	}
	return &exec.Cmd{
		Path: path, Args: argv, Env: flatten(env), Dir: cwd,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}, nil
}

func workDir(cwd string) (string, error) {
	if cwd == "" {
		if st, err := os.Stat(defaultCwd); err == nil && st.IsDir() {
			return defaultCwd, nil
		}
		return "/", nil
	}
	if !filepath.IsAbs(cwd) {
		return "", guest.Errorf(guest.CodeInvalid, "cwd %q is not absolute", cwd)
	}
	st, err := os.Stat(cwd) // the caller may run commands anywhere
	if err != nil {
		return "", err
	}
	if !st.IsDir() {
		return "", guest.Errorf(guest.CodeNotDirectory, "cwd %s is not a directory", cwd)
	}
	return cwd, nil
}

func environment(layers ...map[string]string) (map[string]string, error) {
	env := map[string]string{
		"PATH": defaultPath, "HOME": "/root", "USER": "root", "LOGNAME": "root", "SHELL": "/bin/sh", "LANG": "C.UTF-8",
	}
	for _, layer := range layers {
		for k, v := range layer {
			if err := validEnv(k, v); err != nil {
				return nil, err
			}
			env[k] = v
		}
	}
	return env, nil
}

// validEnv never puts the value into its error: it may be a secret.
func validEnv(name, value string) error {
	if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(value, 0) {
		return guest.Errorf(guest.CodeInvalid, "environment variable %q has a name or value that no process can have", name)
	}
	return nil
}

func flatten(env map[string]string) []string {
	out := make([]string, 0, len(env))
	for k, v := range env {
		out = append(out, k+"="+v)
	}
	sort.Strings(out)
	return out
}

// findProgram looks a program up as the command itself would: by the PATH and the directory it will have.
func findProgram(name, path, cwd string) (string, error) {
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(cwd, name)
		}
		return name, executable(name)
	}
	var denied error
	for _, dir := range filepath.SplitList(path) {
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(cwd, dir)
		}
		candidate := filepath.Join(dir, name)
		err := executable(candidate)
		if err == nil {
			return candidate, nil
		}
		if asError(err).Code == guest.CodePermission {
			denied = err
		}
	}
	if denied != nil {
		return "", denied
	}
	return "", guest.Errorf(guest.CodeNotFound, "program %q not found in PATH", name)
}

func executable(path string) error {
	st, err := os.Stat(path) // the caller may run any program
	if err != nil {
		return err
	}
	if st.IsDir() {
		return guest.Errorf(guest.CodeIsDirectory, "%s is a directory", path)
	}
	if err := unix.Access(path, unix.X_OK); err != nil {
		return &os.PathError{Op: "run", Path: path, Err: err}
	}
	return nil
}

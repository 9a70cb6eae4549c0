package vmm

import (
	"context"
	"errors"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// startSleep runs a real child under the code that follows VMMs.
func startSleep(t *testing.T, args ...string) *Process {
	t.Helper()
	cmd := exec.Command("sleep", args...)
	p, err := launch(cmd, StartOptions{Binary: "sleep", SocketPath: "/nonexistent"})
	require.NoError(t, err)
	t.Cleanup(func() { _ = p.abandon(context.Background()) })
	return p
}

func awaitExit(t *testing.T, p *Process) {
	t.Helper()
	select {
	case <-p.Exited():
	case <-time.After(10 * time.Second):
		t.Fatal("the end of the process is not noticed")
	}
}

func TestProcessEndIsNoticedAndReaped(t *testing.T) {
	p := startSleep(t, "0.1")
	require.True(t, p.Alive())
	awaitExit(t, p)
	require.False(t, p.Alive())
	require.Equal(t, "exit status 0", p.ExitStatus())
	_, err := readStat(p.Record().PID)
	require.ErrorIs(t, err, ErrGone, "a zombie is left")
	require.NoError(t, p.Kill(t.Context()), "killing what has ended succeeds")
}

func TestKillReturnsWhenTheProcessIsGone(t *testing.T) {
	p := startSleep(t, "1000")
	require.NoError(t, p.Kill(t.Context()))
	require.False(t, p.Alive())
	require.Equal(t, "signal: killed", p.ExitStatus())
	require.ErrorIs(t, unix.Kill(p.Record().PID, 0), unix.ESRCH)
}

func TestAdoptFindsTheProcessAgain(t *testing.T) {
	p := startSleep(t, "1000")
	again, err := Adopt(p.Record())
	require.NoError(t, err)
	defer func() { require.NoError(t, again.Close()) }()
	require.True(t, again.Alive())
	require.NoError(t, again.Kill(t.Context()))
	awaitExit(t, again)
	awaitExit(t, p)
	require.False(t, again.Alive())
	_, err = Adopt(p.Record())
	require.ErrorIs(t, err, ErrGone)
}

func TestAdoptRefusesARecycledPID(t *testing.T) {
	p := startSleep(t, "1000")
	for name, change := range map[string]func(*Record){
		"start time": func(r *Record) { r.StartTime-- },
		"boot":       func(r *Record) { r.BootID = "00000000-0000-0000-0000-000000000000" },
	} {
		rec := p.Record()
		change(&rec)
		_, err := Adopt(rec)
		require.ErrorIs(t, err, ErrGone, name)
	}
	require.True(t, p.Alive(), "the stranger was left alone")
}

func TestAdoptRefusesAZombie(t *testing.T) {
	cmd := exec.Command("true")
	require.NoError(t, cmd.Start())
	defer func() { require.NoError(t, cmd.Wait()) }()
	rec := Record{PID: cmd.Process.Pid, BootID: must(bootID())}
	require.Eventually(t, func() bool {
		stat, err := readStat(rec.PID)
		require.NoError(t, err)
		rec.StartTime = stat.startTime
		return stat.dead()
	}, 10*time.Second, time.Millisecond)
	_, err := Adopt(rec)
	require.ErrorIs(t, err, ErrGone)
}

func TestCloseLeavesTheProcessAlone(t *testing.T) {
	p := startSleep(t, "1000")
	again, err := Adopt(p.Record())
	require.NoError(t, err)
	require.NoError(t, again.Close())
	require.NoError(t, again.Close(), "closing twice")
	require.True(t, p.Alive())
	select {
	case <-again.Exited():
		t.Fatal("closing was taken for the process's end")
	default:
	}
}

func TestStartSaysWhyTheVMMDidNotComeUp(t *testing.T) {
	dir := t.TempDir()
	_, err := Start(t.Context(), StartOptions{
		Binary: "/bin/sh", Dir: dir, SocketPath: dir + "/s", Output: dir + "/out",
	})
	require.ErrorContains(t, err, "ended at once (exit status 2)")
	require.ErrorContains(t, err, "Illegal option", "the output of the process is part of the error")

	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err = Start(ctx, StartOptions{Binary: "/bin/cat", Dir: dir, SocketPath: dir + "/s"})
	require.Error(t, err)
	require.False(t, errors.Is(err, ErrGone))
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestFindSeesAProcessThatDoesNotListen starts a shell with a VMM's arguments: it never makes the socket.
func TestFindSeesAProcessThatDoesNotListen(t *testing.T) {
	dir := t.TempDir()
	for name, arg := range map[string]string{"absolute": dir + "/absolute", "relative": "relative"} {
		cmd := exec.Command("/bin/sh", "-c", "read x; exit", "vmm", "--api-socket", "path="+arg)
		cmd.Dir = dir
		stdin, err := cmd.StdinPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		rec, err := Find(dir + "/" + name)
		require.NoError(t, err, name)
		require.Equal(t, cmd.Process.Pid, rec.PID)
		p, err := Adopt(rec)
		require.NoError(t, err)
		require.NoError(t, stdin.Close())
		awaitExit(t, p)
		require.NoError(t, p.Close())
		require.Error(t, cmd.Wait(), "read fails at the end of its input")
		_, err = Find(dir + "/" + name)
		require.ErrorIs(t, err, ErrGone, name)
	}
}

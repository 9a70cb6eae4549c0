package agent

import (
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/hypervisor/guest"
)

// sleeper begins a run that would last far longer than the test.
func sleeper() (*run, error) {
	cmd := exec.Command("sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return startRun(cmd, time.Hour, func([]byte) {}, func([]byte) {})
}

func TestKillFindsItsRunWhenever(t *testing.T) {
	t.Run("under way", func(t *testing.T) {
		table := newRunTable()
		r, err := table.start("a", sleeper)
		require.NoError(t, err)
		table.kill("a")
		<-r.done
		require.True(t, r.result.Killed)
	})
	t.Run("while it starts", func(t *testing.T) {
		table := newRunTable()
		r, err := table.start("a", func() (*run, error) {
			r, err := sleeper()
			table.kill("a")
			return r, err
		})
		require.NoError(t, err)
		<-r.done
		require.True(t, r.result.Killed)
	})
	t.Run("before it is heard of", func(t *testing.T) {
		table := newRunTable()
		table.kill("a")
		_, err := table.start("a", func() (*run, error) {
			t.Error("begun all the same")
			return sleeper()
		})
		require.Equal(t, guest.CodeInvalid, guest.CodeOf(err))
	})
}

func TestRunIdIsUsedOnceAtATime(t *testing.T) {
	table := newRunTable()
	r, err := table.start("a", sleeper)
	require.NoError(t, err)
	_, err = table.start("a", sleeper)
	require.Equal(t, guest.CodeExists, guest.CodeOf(err))
	table.kill("a")
	<-r.done
	require.Eventually(t, func() bool {
		r, err = table.start("a", sleeper)
		return err == nil
	}, wait, time.Millisecond)
	table.kill("a")
	<-r.done
}

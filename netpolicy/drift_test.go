package netpolicy_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// flushAll does what an operator does who wants all rules gone, in the calling thread's namespace.
func flushAll(t *testing.T) error {
	t.Helper()
	for _, program := range []string{"iptables-nft-restore", "ip6tables-nft-restore"} {
		cmd := exec.Command(program)
		cmd.Stdin = strings.NewReader("*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n*raw\nCOMMIT\n*nat\nCOMMIT\n")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
	}
	return nil
}

package cli

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestKeysInTheClearAreWarnedAbout(t *testing.T) {
	for address, warned := range map[string]bool{
		"http://node.example:8080": true, "http://192.0.2.1": true, "http://[2001:db8::1]:80": true,
		"http://localhost.example": true, "https://node.example": false, "http://localhost:8080": false,
		"http://127.0.0.1:8080": false, "http://127.1.2.3": false, "http://[::1]:8080": false,
	} {
		var says bytes.Buffer
		a := &app{env: Env{Err: &says}}
		a.warnPlaintext(address)
		require.Equal(t, warned, says.Len() > 0, address)
	}
}

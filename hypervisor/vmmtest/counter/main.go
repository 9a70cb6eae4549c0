// Command counter is the guest of the VMM conformance suite: it runs as init of a VM and nowhere else.
package main

import (
	"fmt"
	"os"

	"stillframe/hypervisor/vmmtest"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "counter runs as init of a VM only")
		os.Exit(1)
	}
	vmmtest.RunGuest()
}

// Package vmmtest is the conformance suite for VMM binaries: black-box tests of the REST behaviour that the driver in
// package hypervisor depends on, run with real guests on every VMM that is found or named. It imports hypervisor/vmm.
//
// Run it with go test, or compile it with "CGO_ENABLED=0 go test -c" into one static binary that runs where there is no
// Go, for instance inside an emulated machine with KVM. What it looks at:
//
//	STILLFRAME_CONFORMANCE_VMMS     comma-separated VMM binaries; nothing else is tested then
//	STILLFRAME_VMM                  one more binary, besides the development VMM built from this tree and a
//	                                cloud-hypervisor in PATH where KVM works
//	STILLFRAME_IMAGES               the images folder; default build/images of the tree
//	STILLFRAME_CONFORMANCE_CMDLINE  more words for the guest kernel's command line
//	STILLFRAME_CONFORMANCE_PATIENCE factor on every deadline, for slow machines; default 1
//
// The guest is the Debian kernel with an initramfs made here, whose init is either the test binary itself, if it is
// static, or package counter. It counts, and shows at every count that its memory and its disk are still those it left.
package vmmtest

// Package farside is what tests of the egress policy reach, or must not reach: a guest without a virtual machine, and a
// world beyond the node with a counter on the wire. There is no internet in it.
//
// It imports the standard library, testify, golang.org/x/sys and the netlink libraries, so that every package's tests
// can use it. Only tests do.
//
//   - Main runs a package's tests in network and mount namespaces of their own: what they make ends with them, and the
//     "host" of the tests is not the machine's.
//   - World is a network namespace that the host's default route leads to. It has every address there is, so that a
//     packet that leaves the host, whatever it is for, arrives and is counted.
//   - Guest stands where a VM would: it holds a sandbox's tap open, and passes frames to and from a network namespace
//     with the guest's addresses. It can also put any frame on the wire.
package farside

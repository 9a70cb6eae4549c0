// Package agent is the program inside a sandbox's virtual machine: its first process, and the server that the node
// calls over the tap.
//
// It may import the package guest, the standard library, golang.org/x/sys and the netlink library. It is linked
// statically into cmd/stillframe-guest, the only user-space program of the initramfs.
//
// # Two processes
//
// Process 1 (Boot) mounts the disks, brings up the network and then only reaps orphans and keeps the second process,
// the agent proper (Serve), alive. They are two because process 1 must wait for any child, and would take the exit
// status of a command away from the code that started it.
//
// # Invariants
//
//   - The server listens on eth0 only and talks to the node's address only; a connection of a process in the sandbox is
//     refused or closed unread, by whatever local address it comes. (Root in the sandbox can do as it likes inside the
//     virtual machine, which is why the node trusts no answer of the agent with anything but the sandbox itself.)
//   - A broken connection never ends a command: in a restored copy every connection is broken. Only the command's own
//     timeout, or a kill call, does.
//   - A file that is written through the agent has the old or the new contents at every instant.
//   - The initramfs is emptied before the switch: of it, only the pages of this program stay in memory.
//   - Whom the sandbox's programs trust is changed once for each authority; a restored guest, which has its source's,
//     keeps what it has made of its store. Its key is never here, only the certificate.
//   - If the machine cannot be brought up, it says why on the console and powers off; it never runs half made.
package agent

// Package store keeps the files behind a virtual machine: its RAM, its writable disk, and their copies in snapshots.
//
// It knows files, extents and page tables, and nothing of sandboxes, intents or VMMs. It imports fsm (for the kinds of
// errors only) and nothing else of this module. It keeps no state and starts no goroutine that outlives the call.
//
// A snapshot has three phases for each file. Files.Begin works while the guest runs and may take as long as it likes;
// Capture.Freeze works while the guest stands still and must be short whatever the size of the file; Capture.Finish
// works after the guest runs again. Which way is taken is found out by trying, and reported with its reason:
//
//	filesystem             kernel            method                     the pause grows with
//	XFS, to 10,000 extents any               reflink+flush-ahead        extents of the file, dirty pages
//	XFS, more              soft-dirty bits   reflink+soft-dirty-ahead   pages written since the last pass
//	XFS, more              6.5 or newer      reflink+clone-ahead        extents (a fifth of the above), dirty pages
//	others with reflink    any               reflink+flush-ahead        extents of the file, dirty pages
//	without reflink        soft-dirty bits   copy+soft-dirty-ahead      pages written since the last pass
//	without reflink        any               copy+compare-ahead         the file, by the time to read it twice
//
// Soft-dirty bits serve memory only; a disk takes the next way down. Why each way misses no write stands at its type:
// cloneAhead, tracked, compareAhead, reflinked.
//
// # Guarantees
//
//   - A captured file holds, byte for byte, what the source held when Freeze was called, provided that from that call
//     to its return nothing writes to the source (the VM is paused, its disk requests have ended). If the way chosen
//     turns out not to be trustworthy, the pause becomes longer, not the copy wrong.
//   - A file appears under its final name only when it is complete. After Finish its contents are on stable storage
//     too, and its name after Publish; after Clone and Allocate neither need be. Nothing is ever replaced. What a
//     killed process leaves behind ends in ".part", and is removed by the next attempt for the same name.
//   - After an error nothing is left but the source, which no function writes to.
//   - A full disk is an error of the kind unavailable.
//
// # Not guaranteed
//
//   - That a running VM finds room. Its RAM file is sparse, and so are its disks; when the filesystem is full, the VM's
//     next write to a page without a block is SIGBUS, and it dies. EnsureSpace and Outstanding let the owner of the
//     data folder admit only what fits, which is enough as long as nobody else writes to that filesystem. Allocate with
//     reserve sets the blocks aside: that is a promise on filesystems without reflink. With reflink it ends at the
//     first snapshot, since from then on each block is shared and a write needs a new one.
//   - That soft-dirty bits see writes by devices to pinned memory: see Request.DirectIO. That they see the writes of a
//     process that begins to map the file after Begin has looked. That two captures of one process's memory at a time
//     do not clear each other's bits: the owner makes one snapshot of a VM at a time, and no other program may clear
//     them.
//   - That soft-dirty bits are of use on a machine that is short of memory: reclaim during the capture means the way
//     without them.
//   - That memory is captured at the guest's page where the kernel keeps it in larger units (XFS uses up to 2 MiB):
//     with reflink+clone-ahead, a dirty unit is copied whole, and above 64 MiB of them they are written back instead.
package store

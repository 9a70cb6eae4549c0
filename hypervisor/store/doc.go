// Package store keeps the files behind a virtual machine: its RAM, its writable disk, and their copies in snapshots.
//
// It knows files, extents and page tables, and nothing of sandboxes, intents or VMMs. It imports fsm (for the kinds of
// errors only) and nothing else of this module.
//
// A snapshot has three phases for each file. Files.Begin works while the guest runs and may take as long as it likes;
// Capture.Freeze works while the guest stands still and must be short whatever the size of the file; Capture.Finish
// works after the guest runs again. What is captured is the file as it was when Freeze was called, provided that from
// that call to its return nothing writes to the file (the VM is paused, its disk requests have ended).
package store

// Package worker opens a guest's disks in a process of its own.
//
// What is on a guest's disk is data from a stranger. The parsers are bounded
// and fuzzed, and still nothing that serves production or holds credentials
// runs them: they run in a worker, which is this same program started again
// with the hidden argument "worker". A worker has
//
//   - no more than the descriptors it was given: the disks read-only, empty
//     files for the overlay, a listening socket; and, read-only, those of the
//     further files of a container, which Source.Files decides on;
//   - a user of its own and a network without interfaces, where the launcher
//     is root; the launcher's user otherwise;
//   - limits on memory, files, threads and, where it only looks, processor time;
//   - no way to new privileges, and no core dump;
//   - no file by its name, by Landlock, and no system call but those for what
//     it has open, by seccomp (package sandbox). A kernel that lacks one of
//     them is made do with; Confined says what holds.
//
// The one exception to reading is InPlace, whose worker may write to the disks
// that it was given.
//
// The launching side is Start (a recovered view, served as NBD on a unix
// socket), Open (volumes to be read from here), Inspect and Check
// (short-lived). Each of them has a hang limit and a
// bound on what it takes from the worker. Whatever happens in there (a panic,
// an endless loop, memory gone) is one error here.
//
// The serving side is Main, which the program calls for the hidden argument.
//
// # Life and death
//
// A worker dies with its launcher, however that ends: its lifeline is a pipe
// from the launcher, and the kernel kills it where that isn't enough. A control
// plane that wants its views to outlive it asks for Spec.Detachable, records
// Worker.Handle, and then calls Worker.Detach; a crash between those leaves no
// orphan. Kill ends a worker by its Handle and can't hit another process.
package worker

// Package mount shows a file system that package lun/fs reads as a directory of
// this host, by a process of its own that answers the kernel's FUSE requests.
//
// Promises:
//
//   - it is read-only, nosuid, nodev and noexec;
//   - Start returns when the directory can be looked at; before that, whatever
//     fails or is killed leaves no mount and no process;
//   - the mount is all that there is: it is found by its directory, needs no
//     record, and any unmount(8) ends the process;
//   - if the process dies, whoever uses the directory gets errors (ENOTCONN),
//     and Stop, or a new Start, clears the dead mount away.
//
// An ordinary user needs fusermount3.
package mount

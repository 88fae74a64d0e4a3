// Package fuse shows a lun.Device as one regular file, by the Linux kernel's
// FUSE protocol (include/uapi/linux/fuse.h, 7.12 and later), so that a loop
// device can stand on it.
//
// The file is the file system: its root is a regular file, mounted on a
// regular file. So a dozen requests are all there is: no directory, no name,
// no second inode. That, and that it stands in the way of block I/O, is why
// it is not a FUSE library: a request allocates nothing, memory is taken at the
// start, and every length that arrives is checked here.
//
// Promises:
//
//   - nothing is cached in the kernel (FOPEN_DIRECT_IO): what is answered is
//     the device's word, and there are no dirty pages of this file that
//     memory pressure could want written through the process that is itself
//     waiting for memory;
//   - a request that the device leaves without an answer for Options.Timeout
//     ends the whole connection: all requests, those under way and those to
//     come, fail. None hangs;
//   - if the process dies, the kernel does the same. Abort does it from outside
//     where a thread of the process can't die.
package fuse

// Package fuse answers the Linux kernel's FUSE protocol
// (include/uapi/linux/fuse.h, 7.23 and later) for two things: a lun.Device as
// one regular file, so that a loop device can stand on it (NewMount, Serve);
// and a file system that package lun/fs reads, as a directory (NewTree,
// ServeTree). Both need a few requests only, and the first stands in the way
// of block I/O; that is why it is no FUSE library: memory is taken at the start,
// and every length that arrives is checked here.
//
// Promises:
//
//   - a request that is left without an answer for Options.Timeout ends the whole
//     connection: all requests, those under way and those to come, fail. None
//     hangs;
//   - if the process dies, the kernel does the same. Abort does it from outside
//     where a thread of the process can't die;
//   - of a device nothing is cached in the kernel (FOPEN_DIRECT_IO): what is
//     answered is the device's word, and there are no dirty pages of this file
//     that memory pressure could want written through the process that is
//     itself waiting for memory;
//   - a file system is read-only and doesn't change: names, attributes, lists of
//     directories, link targets and content are cached in the kernel for as
//     long as it likes. The kernel parses nothing of it.
package fuse

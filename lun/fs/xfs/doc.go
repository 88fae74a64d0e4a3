// Package xfs reads XFS, versions 4 and 5, by the kernel's description of it
// ("XFS Algorithms & Data Structures") and, where that is silent, by what the
// kernel does.
//
// Where the last thing in the log is not the record of an unmount, the log is
// recovered into memory first, as the kernel does it on a mount (xfs_log_recover.c),
// and nothing is believed before: a file that was just made does not exist
// otherwise. What the kernel does after that is not: inodes that have lost their last
// name are left, which are not seen, and changes of space that were not finished;
// one that would change what a file holds is fs.ErrDirty, as are the log of version
// 4, one on another device, and one by a host of another byte order. The device is
// never written to, and no log is passed over.
//
// Read are inodes of all sizes with their forks in the inode, as extents or as
// B+trees, directories of all kinds, symbolic links and extended attributes in
// inodes and in blocks. In version 5 whatever is used has its checksum, place and
// owner verified. Trees of space, of free inodes, of references and of owners are
// not needed and not looked at. Incompatible features that are not known are
// refused by name. Files on a realtime device can be listed and described, not
// read.
package xfs

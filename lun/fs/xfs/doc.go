// Package xfs reads XFS, versions 4 and 5, by the kernel's description of it
// ("XFS Algorithms & Data Structures") and, where that is silent, by what the
// kernel does.
//
// A file system is read only if its log is clean: if the last thing in it is
// the record of an unmount. Anything else is fs.ErrDirty, as is a log on another
// device; no log is replayed here, and none is passed over.
//
// Read are inodes of all sizes with their forks in the inode, as extents or as
// B+trees, directories of all kinds, symbolic links and extended attributes in
// inodes and in blocks. In version 5 whatever is used has its checksum, place and
// owner verified. Trees of space, of free inodes, of references and of owners are
// not needed and not looked at. Incompatible features that are not known are
// refused by name. Files on a realtime device can be listed and described, not
// read.
package xfs

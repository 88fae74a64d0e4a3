// Package ext4 reads ext2, ext3 and ext4, by the kernel's documentation
// (Documentation/filesystems/ext4) and, where that is silent, by what the kernel
// does.
//
// A file system that was not unmounted has its journal replayed first (package
// jbd2) into a view; nothing else is believed before. What could not be replayed
// (an external journal, fast commits) is an error that says so. The list of
// orphans is left alone: it names files without a name, and files with blocks
// past their end.
//
// Read are block maps and extents, inline data, directories of all kinds, extended
// attributes in inodes, blocks and inodes of their own. With metadata_csum every
// block that is used is verified; what doesn't match is a *lun.FormatError for
// the file it belongs to. Incompatible features that are not known are refused
// by name. Encrypted files can be listed and described, not read.
package ext4

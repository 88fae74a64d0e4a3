// Package btrfs reads the trees of a Btrfs file system: which subvolumes and
// snapshots it has, and what their trees hold. What makes files of them is
// lun/fs/btrfs.
//
// Open reads the superblock and the chunk tree; Subvolumes reads the root tree.
// FS.Tree and Tree.Walk are how everything else is read. Nothing is ever written here:
// Revert makes the changes that put a subvolume back to its snapshot, as patches of
// a few tree blocks, and whoever called it writes them or shows them.
//
// A snapshot is a whole tree in the same file system: nothing is merged or copied.
// Putting back is a matter of who is mounted: the default subvolume, and the names
// by which a guest asks for it; see Revert.
//
// Every tree block is checked before it is used: checksum, place, file system,
// level, generation, order of keys, bounds of items. One that fails is read from its
// other copy (DUP); if there is none, that is a *lun.FormatError. Walks follow
// levels downwards and keys upwards only, so that no tree runs in a circle.
//
// Read are file systems on one device with the profiles single and DUP, and
// checksums by CRC-32C, xxhash or SHA-256. Others are refused by name, as are
// features of which a reader has to know more.
//
// A log tree (fsync) belongs to the subvolumes that it names; see FS.Logged. It is
// not replayed.
//
// Sources: include/uapi/linux/btrfs_tree.h and btrfs.h of Linux 6.1, the on-disk
// format of the Btrfs documentation.
package btrfs

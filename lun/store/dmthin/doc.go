// Package dmthin reads the metadata of the kernel's thin-pool target
// (drivers/md/dm-thin-metadata.c): which block of a pool's data device holds
// which block of a thin volume.
//
//	p, err := dmthin.Open(metadata, data, nil)   superblock checked, nothing else read
//	t, err := p.Thin(id, size, nil)              one thin device: a read-only lun.Device
//	t.Lookup(off), t.Ranges(off, n, fn)          where its bytes lie on the data device
//
// A thin snapshot is a thin device like any other: the kernel copied the root
// of its origin's tree and has since given every write of either a new block.
// So there is nothing to merge, snapshots of snapshots are no special case, and
// the time in a mapping, by which the kernel knows shared blocks, is of no
// account for reading.
//
// Trees are never loaded as a whole: a volume of 1 TiB may have sixteen million
// mappings. Lookups go down the B-tree through a Cache of at most CacheSize
// bytes, which pools may share; Ranges walks it in order.
//
// The kernel writes metadata to new blocks and then the superblock (shadow
// paging), so a pool that was split at any instant is that of its last commit:
// whole, and consistent with the data if both were split at the same instant.
//
// What is read may have been written by a stranger. Every node is checked when
// it is read: checksum, own address, type, number and order of keys, and that
// its keys lie within what its parent says, so that no part of a tree is walked
// twice and no loop is followed. Depth is bounded by maxDepth. Offsets in errors
// count from the start of the metadata device.
//
// Sources: drivers/md/dm-thin-metadata.c, persistent-data/dm-btree-internal.h,
// dm-btree.c, dm-block-manager.c of Linux 6.1. thin_dump and thin_restore of
// thin-provisioning-tools are the tests' oracles.
package dmthin

const (
	format     = "dm-thin"
	blockSize  = 4096 // of the metadata, always
	sectorSize = 512

	// CacheSize is what the nodes in one Cache may take in memory, in bytes.
	CacheSize = 16 << 20

	// maxDepth bounds a tree. Sixteen levels of the smallest nodes that the
	// kernel leaves hold more keys than there are blocks.
	maxDepth = 16
)

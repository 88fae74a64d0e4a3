// Package lvm2 reads the metadata of LVM2 and maps logical volumes to the
// physical volumes under them, without the kernel's device mapper.
//
// The way from a disk to a volume:
//
//	ReadPV      label, physical volume header, metadata areas of one PV
//	Assemble    PVs of all disks → volume groups (newest seqno with a good CRC)
//	Group.Open  a logical volume → a read-only lun.Device
//	Group.Map   a logical volume → its areas on the PVs, for those who redirect
//	Group.Thin  a thin volume → what of it is mapped, on the pool's data device
//	Group.Edit, Commit   new metadata text → the bytes to put on each PV
//
// Linear and striped volumes are mapped, mirrors and raid1 by a leg that is in
// sync, and thin volumes with package dmthin; all of them may be stacked on one
// another. Everything else LVM knows (cache, other raids, VDO, ...) is
// recognised, listed, and refused with its reason when it is opened, and so is
// a volume that needs what is missing or damaged: the rest of its group is not
// affected. A thick snapshot is a relation between two volumes here; its content
// is package dmsnap's matter.
//
// What is read may have been written by a stranger. Text is bounded by
// MaxText, nesting by maxDepth, and every extent, reference and count is
// checked before it is used. Nothing is ever written by this package: Commit
// returns Changes and leaves it to the caller where they go.
//
// Sources: lvm2 lib/format_text/layout.h, lib/thin/thin.c; Linux dm-raid.c, dm-log.c; the format description of libvslvm;
// lvm.conf(5) for the text grammar. One sector is 512 bytes whatever the disk.
package lvm2

const (
	format     = "lvm2"
	sectorSize = 512
	// MaxText bounds the metadata text of one volume group. LVM's default
	// metadata area holds 1 MiB; groups of thousands of volumes use 16 MiB.
	MaxText = 32 << 20
)

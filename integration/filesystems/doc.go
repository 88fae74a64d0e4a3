// Package filesystems compares the readers of lun/fs with the kernel: many images,
// each made with other mkfs options, filled by a seeded load, unmounted and then
// cut off in the middle of changes. It needs root, loop devices and a kernel that
// mounts ext4 and XFS.
// FAT is filled and read by mtools, checked by fsck.fat, and then written and read by the
// kernel of a VM that loses its power; NTFS is filled and read by NTFS-3G,
// which has no journal of its own: no power cut leaves one of Windows here.
//
//	go test -tags lab ./integration/filesystems -images 200
package filesystems

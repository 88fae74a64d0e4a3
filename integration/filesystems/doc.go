// Package filesystems compares the readers of lun/fs with the kernel: many images,
// each made with other mkfs options, filled by a seeded load, unmounted and then
// cut off in the middle of changes. It needs root, loop devices and a kernel that
// mounts ext4 and XFS. Of XFS, what was cut off is refused until the kernel recovered it.
//
//	go test -tags lab ./integration/filesystems -images 200
package filesystems

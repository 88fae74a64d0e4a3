// Package vdisk is what all virtual-disk containers have in common: the
// interface of an opened disk, the options it is opened with, and the rule for
// names of other files.
//
// A container package (lun/vdisk/qcow2, …) has one function,
//
//	func Open(dev lun.Device, o vdisk.Options) (vdisk.Disk, error)
//
// which answers lun.ErrNotFormat for other bytes and a *lun.FormatError for a
// damaged or unknown container. It reads headers only; tables are read when
// they are needed, in pages of bounded number (Pages), so that opening costs
// the same whatever a header claims. A disk together with its parents keeps
// less than 64 MiB.
//
// Nothing is opened because a header names it: Options.Resolver decides, and
// without one every container that needs a second file is refused with
// ErrOtherFile. Folder is the resolver for files of one directory.
//
// Writing is in place only. WriteAt changes blocks that the container has
// allocated and shares with nobody, and never a table; a range with any other
// block is ErrNotAllocated before its first byte is written. Growing a
// container is no job of a recovery: what can't be written in place is
// recovered as a view or to a file.
package vdisk

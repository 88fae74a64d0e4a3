// Package vmdk reads VMware's virtual disks: flat and sparse ones, in one file
// or several, delta disks, COWD (ESX's vmfsSparse) extents, and
// stream-optimised ones. Names of fields are those of VMware's technical note
// "Virtual Disk Format 5.0"; the COWD header is in the note's version 1.1.
//
// A disk is a descriptor, a text of its own or inside the only extent, and the
// extents that it lists. Extents and the parent are opened by the caller's
// resolver; the parent must have the content id (CID) that the child recorded:
// with another one its content has changed since, and the child's makes no
// sense any more.
//
// A sparse extent has its grain directory twice. Where the first one, or a
// grain table below it, points outside of the file and the redundant one is
// whole, that is used, with a warning and for reading only; of a large disk the first 4 MiB of
// tables are looked through at opening. What is found damaged later is a
// *lun.FormatError, as is a wrong magic, a size or offset out of bounds, and a
// compressed grain that is not the one its marker says.
//
// Refused by name: seSparse, raw device mappings, extents without access. An
// extent of a split disk is refused without its descriptor.
//
// Writing is in place, into flat extents and into grains that a sparse extent
// has; compressed, COWD and version 3 extents (change tracking) are read-only.
// The first write gives the disk another CID, so that children notice.
package vmdk

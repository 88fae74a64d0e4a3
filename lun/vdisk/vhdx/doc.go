// Package vhdx reads Microsoft's Virtual Hard Disk v2 format: fixed, dynamic and
// differencing disks. Sections and names of fields are those of [MS-VHDX].
//
// Of the two headers the valid one with the higher sequence number counts
// (section 2.2.2). A log that was not applied when the file was left is applied
// in memory only: the sectors that it holds are read out of the log itself in
// place of those that they will overwrite. Nothing is written, and such a disk
// is read-only until Replay has applied the log to the file.
//
// A differencing disk finds its parent by the paths in its parent locator
// through the caller's resolver, and the parent must have the DataWriteGuid
// that the child recorded (parent_linkage): with another one its content has
// changed since, and the child's makes no sense any more.
//
// Blocks that are undefined or unmapped read as zeroes, as the specification
// allows and QEMU does; in a differencing disk, too, they hide the parent.
//
// Damage: a header, or a region table, that is damaged is replaced by its
// twin, with a warning. Wrong checksums elsewhere, unknown regions or metadata
// that are marked required, a log without a whole sequence, blocks beyond the
// end of the file or over its tables are *lun.FormatError. Blocks that overlap
// one another are read and not written.
//
// Writing is in place, into sectors that the file has. The first write gives
// the file new FileWriteGuid and DataWriteGuid, so that children notice.
package vhdx

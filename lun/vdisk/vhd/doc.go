// Package vhd reads Microsoft's Virtual Hard Disk format, version 1.0: fixed,
// dynamic and differencing disks. The names of fields are those of the "Virtual
// Hard Disk Image Format Specification" of 2006.
//
// A fixed disk is the content and a footer. In a dynamic disk a table (BAT)
// says where each block lies, and each block begins with a bitmap of the
// sectors it holds. In a differencing disk what the bitmap lacks is the
// parent's; the parent is found by the names in its locators through the
// caller's resolver, and must have the unique id that the child recorded. A
// parent that was modified later than recorded is a warning, as its unique id
// does not tell whether its content changed.
//
// The size of the disk is the footer's Current Size, or its geometry where the
// program that made it goes by that (Virtual PC, QEMU without force_size).
//
// Damage: a footer that is missing or damaged is replaced by its copy at the
// front, with a warning. A wrong checksum anywhere else, a block beyond the end
// of the file or over the tables is a *lun.FormatError; blocks that overlap
// one another are read, as nothing says which is right, and not written.
//
// Writing is in place, into sectors that the bitmap has. The footer is left as
// it is: like Hyper-V's own tools, no child may be used after its parent was
// written to.
package vhd

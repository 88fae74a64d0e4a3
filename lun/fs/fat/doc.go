// Package fat reads FAT12, FAT16 and FAT32 with long names, by Microsoft's "FAT32
// File System Specification" (1.03) and ECMA-107.
//
// There is no log: what was written is there. A volume that was not unmounted is
// read all the same, with a warning, as Linux mounts it. There are no owners,
// links or attributes either; a file's number is the byte of its entry on the
// device.
//
// Short names are shown in lower case where the entry says so (as Windows writes
// it), and with the characters of code page 437. Times are in no time zone and
// taken for UTC.
package fat

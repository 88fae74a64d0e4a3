// Package jbd2 reads the journal of ext3 and ext4 and shows a device as it is
// after that journal was replayed, without writing anything anywhere.
//
// The journal holds whole blocks, so no copy is needed: a View is a table that
// sends reads of a block to the place in the journal where its last committed
// content lies.
//
// Which transactions count is decided as Linux does it (fs/jbd2/recovery.c;
// the layout is in Documentation/filesystems/ext4/journal.rst): those from the
// journal superblock's s_start on, in sequence, up to the first without a valid
// commit block. Revoked blocks are left out. A block or descriptor in a
// committed transaction whose checksum is wrong is a *lun.FormatError: Linux
// refuses such a file system as well.
package jbd2

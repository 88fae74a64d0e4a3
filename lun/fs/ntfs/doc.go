// Package ntfs reads NTFS of versions 1.2, 3.0 and 3.1 (Windows NT 4 and later), by
// what the Linux-NTFS project documented and the kernel's fs/ntfs3 and NTFS-3G do.
//
// The volume's log is not replayed: one that Windows did not unmount is
// fs.ErrDirty. A shadow copy is as good as unmounted: Windows marks the log in it
// as clean, so that the files of a running machine are read from there.
//
// What Windows has and this vocabulary hasn't is made up or turned into it:
//
//   - There are no owners: all is root's, 0755 and 0644, without write permission
//     for a file that is marked as read-only. Access control lists are not shown.
//   - Names are the long ones; a name of eight and three characters that a file
//     has besides is left out, and so are the files of NTFS itself ($MFT …).
//     Names are compared with their case.
//   - Named streams are extended attributes "user.NAME", up to fs.MaxXattr bytes;
//     longer ones are left out.
//   - Symbolic links and junctions are symbolic links, with "/" for "\"; those of
//     the Windows Subsystem for Linux and of Interix are what they are there.
//   - Files compressed by NTFS (LZNT1) are read. Encrypted ones are
//     fs.ErrEncrypted; files that a filter keeps elsewhere or otherwise
//     ("CompactOS", deduplication, cloud storage) are refused by the tag.
package ntfs

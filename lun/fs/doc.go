// Package fs is the vocabulary of file systems that are read, not mounted: what
// one is, what it says of a file, where a file's bytes lie on the device.
//
// A reader is an FS made by a package fs/<name> from a lun.Device; lun/open
// knows which one a device needs. A reader promises:
//
//   - It never writes to the device, and needs no scratch space.
//   - What is on the device is a stranger's: nothing is allocated, read or
//     repeated because a header says so without a bound, and a contradiction is
//     a *lun.FormatError, not a guess.
//   - What the file system's own log holds counts: a reader replays it into a
//     view of its own before it trusts anything else, or refuses with ErrDirty.
//     It never shows the state without its log.
//   - A feature that it doesn't know, and that may change the meaning of what it
//     reads, is refused by its name.
//
// The nouns: a Ref names a file whatever its paths, a Stat describes it, an
// Entry is a name in a directory, a File is the content of a regular file and an
// Extent a run of it. Symbolic links are read, never followed: not by a
// reader, not by Find, not by Walk.
//
// Names, targets and attribute names are bytes as they are on the disk; those
// kept as UTF-16 are turned into UTF-8, lone surrogates as three bytes each
// ("WTF-8"), so that two names never become one.
package fs

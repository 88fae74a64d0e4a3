// Package lun is the vocabulary of block devices: what one is, what it may be
// able to do besides, and how a format says that it is damaged.
//
// It holds types only and imports the standard library only, so that every
// part of Cleave (arrays, iSCSI, recovery) can speak about a device without
// depending on another. Nothing here opens or starts anything.
//
// The nouns:
//
//   - a Device is an ordered run of bytes of fixed size that can be read,
//     written and synced;
//   - a capability beyond that is a one-method interface (Trimmer, Zeroer,
//     Mapper, Blocker, Identified) found by type assertion;
//   - an Identity is what tells two devices apart, whatever the path to them;
//   - a FormatError names the format, the offset, the field and the value that
//     was wrong in what was read from a device.
//
// Where to add things: a container of virtual disks goes to vdisk/<name>, a
// volume or snapshot store to store/<name>, a file system to fs/<name>; each
// is then named once in open, the one place that asks what a device holds.
package lun

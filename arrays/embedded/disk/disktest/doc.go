// Package disktest is a file system in memory that loses power: it knows at
// every moment what is stable and what is not, and makes of it the file systems
// that a machine might find when it starts again.
//
// What is not stable at the moment of a cut may be lost, each piece for itself
// and in any order:
//
//   - a write, hole, zeroing or clone since the file's last Sync is there, is
//     not, or is there in some of its 512-byte sectors;
//   - the file's size is the stable one, the last, or one in between, whatever
//     became of the data;
//   - a name made, removed or renamed since its directory's last SyncDir is
//     there or not. A rename is one step, and never half of one.
//
// That is more than ext4 or XFS take away, and what package disk says they may.
// Sectors are whole: a disk that tears those breaks its own promise.
//
// Cut leaves the file system as it is, so that a run can be cut at each of its
// sync points without being begun anew: the process that uses it goes on, and
// what a process killed at that moment would have left is the FS that Cut
// returned, in which nothing is open and nothing locked.
//
// Files keep all their pages in a table, and so are meant to be small: some GiB
// at most.
package disktest

// Package embedded is the software array: volumes with real mirrors, kept as
// plain raw files that any tool can read if Cleave is gone. It is the default
// array and the reference for every other provider.
//
// # On disk
//
// A pool is a directory that stands for a disk. A mirror is one sparse file in
// it, <pool>/<volume name>/<mirror>.raw, byte for byte the volume's content; a
// split renames nothing and copies nothing. Beside it lies <mirror>.json, a
// label that says what the file is, for people and for the day the catalogue
// is lost. The state directory holds the catalogue (which is the authority),
// and per volume the intent log and the dirty-region bitmaps.
//
// # Promises
//
// Acknowledged means in the page cache of every mirror in sync: a write-back
// cache. Stable means after Sync, or never acknowledged before it was.
//
//   - A region's mark is stable in the intent log before a write to it begins.
//     After a crash at any point the mirrors are made equal by copying the
//     marked regions from one of them, while the volume is in use; until that
//     is done, reads come from that one mirror. No more regions are ever marked
//     on the disk than Options.LogLimit allows (but at least four), while a
//     split is pending neither: a mark counts until its clearing is stable, and
//     a write to a further region waits.
//   - A mirror is in sync, for a crash too, only when all that was synced is
//     stable on it.
//   - A mirror that errs is dropped, and that it was is stable before the write
//     that found it out is acknowledged. The last mirror is never dropped: its
//     errors are the volume's.
//   - A split is a change of epoch. Under the admission locks of all volumes of
//     the group their sets of mirrors change, and nothing else: no I/O, no
//     allocation of disk space, no wait for writes. Writes admitted before
//     finish on both halves, which is right, since nobody has been told that
//     they are done. The call then waits for them, syncs both halves, and makes
//     the group's record stable in one step: after a crash a group is whole or
//     absent, and an absent one's mirrors go back to their volumes.
//   - Where a volume's SnapshotPolicy says so, a split takes no mirror but
//     clones one's file, in a pool with reflinks. Writes to that volume then
//     wait until those before them have ended and the file is cloned, for
//     Options.HoldLimit at most; how long they did is the snapshot's Held.
//     Groups of both kinds have one instant. See clone.
//   - Revert and Reverse copy nothing before they return: a split mirror and one
//     of the volume's change places, and the catalogue says so in one step.
//     What was written in an epoch is known from then on by its bitmap, so that
//     only regions changed on either side are ever copied.
//   - Files that belong to nothing are in the catalogue's trash from before they
//     are made until it is stable that they are gone: a crash leaves none.
//   - A mirror whose file is another than the recorded one is not trusted: see vet.
//     Where no mirror of a volume has its file, as when a pool was copied, all
//     are used and compared in full; another mirror's file never is.
//   - Two writes that overlap land in the same order on every mirror.
//   - Of two daemons on one state directory or pool, the second is refused.
//
// # How that is tested
//
// TestPowerCuts performs random traces on package disktest, which loses, tears
// and reorders whatever is not stable, and looks at what a cut at each of their
// sync points leaves; at some of them the restart is cut as well. Every sector
// says which write it holds. A failure names the seed and the sync point:
// CLEAVE_POWERCUT_SEED and CLEAVE_POWERCUT_AT repeat it, as closely as
// background work allows, and CLEAVE_POWERCUT_CUTS asks for more. In the lab,
// integration/powercut takes each fsync out of this code and wants those tests
// to fail. Kills of the process under load are in TestKilledUnderLoad.
//
// # Who may call what
//
// Array's methods may be called at once. Devices (Volume, Snapshot,
// WritableSnapshot) are handles: each was opened by somebody, who is named in
// the Busy error of whoever wants to delete what is under it, and who closes
// it. Array implements driver.Driver, GroupSplitter, Armer, Opener, Rewriter,
// Resyncer, Reverter, Breaker, ChangeTracker and Describer; exposing as LUNs is composed
// by the data plane from OpenVolume, OpenSnapshot and OpenWritable.
//
// Wherever a VolumeID is asked for, the volume's name does as well.
package embedded

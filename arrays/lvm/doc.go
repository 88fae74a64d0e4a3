// Package lvm is the provider of logical volumes of this host: a hypervisor whose
// VMs have logical volumes for disks.
//
// It drives lvm2's own commands and reads their JSON reports (lvmreport(7)); it keeps
// no state. What it does is written into the volume group's metadata as tags, before
// or together with the act, so that a split is found again by its set's tag whoever
// was killed in between, and a call that is repeated finds its work done.
//
// # Three methods
//
// An array of this type splits in one way, which the operator chooses:
//
//   - TrackedSplit takes an image off a raid1 volume by lvconvert(8) --splitmirrors 1
//     --trackchanges. It can only be read, so recovery shows a view; what both sides
//     changed is all that is copied when it goes back (--merge).
//   - FullSplit takes it off for good (--splitmirrors 1 --name): an independent volume
//     that can be written to. The next set waits for a whole new image.
//   - Snapshots makes a thick snapshot, or a thin one of a thin volume, by lvcreate(8) -s.
//     A thick one that overflows is gone: its state is Invalid.
//
// Each is one instant of one volume. Several volumes are not split at one instant by
// any of lvm2's commands, so there is no group split here, and none is claimed.
//
// # What it promises
//
// Only logical volumes of the one group that was named are ever named to a command;
// none is activated but the snapshots that it makes, and no volume group but that one
// is looked for inside logical volumes (devices/scan_lvs=0): those of guests stay what
// they are, data. Where Devices are given, lvm2 sees no others. In a shared group
// (lvmlockd(8)) a volume has to be active exclusively, on this host.
//
// A command that does not end by its deadline gets SIGTERM, which lvm2 obeys outside
// its critical sections, and SIGKILL five seconds later; then devices that it left
// suspended are resumed. What became of it is unknown either way (kind
// OutcomeUnknown), and the engine looks the tag up.
//
// Writes count once they are in the logical volume. A QEMU that caches a disk
// in the host's memory (cache=writeback) has not acknowledged them as stable.
package lvm

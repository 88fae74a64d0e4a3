// Package guestvolumes has real guests make volumes and snapshots of all kinds
// that LVM has, cuts their power while they write, and compares what our readers
// make of the disks with what the guest's own kernel read: by SHA-256 of each
// snapshot. Then another guest gets the recovered disks: its LVM must activate
// them, its e2fsck find nothing, and what it writes must be there after it has
// booted again; and one gets copies with an identity of their own beside the
// original disks. With the build tag "lab".
package guestvolumes

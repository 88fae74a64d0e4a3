// Package writeorder is the lab of group splits under load: writers over 1, 8
// and 64 volumes issue a write only after the one before it, on another volume,
// was acknowledged; the splits of a group hold a prefix of what each wrote. They
// write straight to the embedded array, and over iSCSI sessions of an initiator
// that is not ours: QEMU's, in one qemu-storage-daemon that has a session for
// each volume and hands them to us by NBD.
//
// Plain `go test` makes a few splits of each; with the build tag lab it is 1,000.
// A splitter that takes one volume after the other is the control in both: it is
// caught.
package writeorder

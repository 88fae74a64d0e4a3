// Package scsi is the command set of a disk: SPC-4 and SBC-3 over a lun.Device.
//
// It knows nothing of the transport. A Unit is a logical unit; a Nexus is one
// initiator's way to it (I_T_L nexus, SAM-5), which keeps that initiator's unit
// attentions; a Command goes through Nexus.Begin, which looks at the command
// descriptor block and says how much data the initiator has to send, and
// Nexus.Run, which performs it and may wait for the device. Begin never waits
// for the device.
//
// Everything in a CDB or in a parameter list comes from a stranger: each field
// is checked against the size of the unit and the length of what was sent
// before it is used, and nothing is allocated by a length that wasn't checked.
//
// What is reported is what is true: the write cache is volatile (WCE=1) until an
// initiator turns it off; stable means after SYNCHRONIZE CACHE or FUA; UNMAP
// exists where the device is a lun.Trimmer.
//
// What initiators agree on among themselves stands: a persistent reservation made
// with APTPL=1 is in the Store before its command is answered; PREEMPT AND ABORT
// is answered when nothing of the victim's is inside the device any more; an
// EXTENDED COPY may do on either end what its initiator may do there, piece by
// piece; COMPARE AND WRITE is one step in the eyes of every other write.
//
// Where to add a command: a line in ops.go with its CDB usage map, and a
// function in the file of its family. Reservations are in pr*.go and reserve6.go,
// access states in alua.go, copies in copy*.go.
package scsi

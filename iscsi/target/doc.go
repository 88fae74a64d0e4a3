// Package target is an iSCSI target (RFC 7143): sessions of initiators on one
// side, lun.Devices on the other.
//
// What it promises:
//
//   - it listens where it is told and nowhere else, and shows nothing to anybody
//     until a mask says so;
//   - whatever arrives on a connection may end that connection, never the
//     process, and never holds more memory than the limits in Options allow;
//   - LUNs, masks and credentials change while sessions run;
//   - a device that hangs, or an initiator that stops reading, stalls the
//     commands of that one initiator to that one LUN, and nothing else;
//   - a number is not given to another LUN while a session lives that has seen
//     the old one under it.
//
// The walk of a command: the connection's reader decodes a PDU (rx.go) and makes
// it a task (task.go) of a nexus, which is one initiator's way to one LUN
// (nexus.go). When the data that it writes has arrived (dataout.go), one of the
// nexus's workers lets the command set perform it (package scsi), or for short
// reads and writes the reader itself, as long as the device answers from memory
// (inline.go). What it returns goes to the connection's writer (tx.go), which
// sends all that is waiting in one writev; with nothing else under way, whoever
// has performed the command sends it past the writer, without waiting
// (direct.go).
//
// Where to add: a SCSI command goes to package scsi, a key of the text
// negotiation to pdu's table, a PDU to rx.go.
package target

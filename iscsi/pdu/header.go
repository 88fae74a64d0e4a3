package pdu

import (
	"encoding/binary"
	"fmt"
)

// HeaderLen is the length of the basic header segment.
const HeaderLen = 48

// NoTag is the reserved initiator or target task tag (RFC 7143 section 11.2.1.8).
const NoTag = 0xffffffff

// Opcode is the six-bit kind of a PDU.
type Opcode uint8

// Opcodes of RFC 7143 section 11.2.1.2.
const (
	OpNopOut       Opcode = 0x00
	OpSCSICommand  Opcode = 0x01
	OpTaskMgmt     Opcode = 0x02
	OpLogin        Opcode = 0x03
	OpText         Opcode = 0x04
	OpDataOut      Opcode = 0x05
	OpLogout       Opcode = 0x06
	OpSNACK        Opcode = 0x10
	OpNopIn        Opcode = 0x20
	OpSCSIResponse Opcode = 0x21
	OpTaskMgmtResp Opcode = 0x22
	OpLoginResp    Opcode = 0x23
	OpTextResp     Opcode = 0x24
	OpDataIn       Opcode = 0x25
	OpLogoutResp   Opcode = 0x26
	OpR2T          Opcode = 0x31
	OpAsync        Opcode = 0x32
	OpReject       Opcode = 0x3f
)

var opcodeNames = map[Opcode]string{
	OpNopOut: "NOP-Out", OpSCSICommand: "SCSI Command", OpTaskMgmt: "Task Management Request",
	OpLogin: "Login Request", OpText: "Text Request", OpDataOut: "SCSI Data-Out", OpLogout: "Logout Request",
	OpSNACK: "SNACK Request", OpNopIn: "NOP-In", OpSCSIResponse: "SCSI Response",
	OpTaskMgmtResp: "Task Management Response", OpLoginResp: "Login Response", OpTextResp: "Text Response",
	OpDataIn: "SCSI Data-In", OpLogoutResp: "Logout Response", OpR2T: "R2T", OpAsync: "Asynchronous Message",
	OpReject: "Reject",
}

// String is the RFC's name of the PDU.
func (o Opcode) String() string {
	if s := opcodeNames[o]; s != "" {
		return s
	}
	return fmt.Sprintf("opcode 0x%02x", uint8(o))
}

// Header is a basic header segment. Accessors are valid for the PDUs that their
// comments name; on others they read other fields' bytes and do no harm.
type Header [HeaderLen]byte

// Flag bits of byte 1.
const (
	FlagFinal    = 0x80 // F; T (transit) in login
	FlagContinue = 0x40 // C in login and text; R (read) in a command; A in Data-In
	FlagRead     = 0x40
	FlagWrite    = 0x20
	FlagAck      = 0x40

	FlagBidiOverflow  = 0x10
	FlagBidiUnderflow = 0x08
	FlagOverflow      = 0x04
	FlagUnderflow     = 0x02
	FlagStatus        = 0x01 // S in Data-In
)

func (h *Header) u32(at int) uint32       { return binary.BigEndian.Uint32(h[at:]) }
func (h *Header) setU32(at int, v uint32) { binary.BigEndian.PutUint32(h[at:], v) }

// Opcode is the kind of PDU.
func (h *Header) Opcode() Opcode { return Opcode(h[0] & 0x3f) }

// Immediate is the I bit: deliver at once, outside the order of CmdSN.
func (h *Header) Immediate() bool { return h[0]&0x40 != 0 }

// Flags is byte 1.
func (h *Header) Flags() uint8 { return h[1] }

// Final is the F (in login: T) bit.
func (h *Header) Final() bool { return h[1]&FlagFinal != 0 }

// Set starts a header: opcode and flags; all else is zero.
func (h *Header) Set(op Opcode, flags uint8) {
	*h = Header{byte(op), flags}
}

// SetFlags replaces byte 1.
func (h *Header) SetFlags(f uint8) { h[1] = f }

// AHSLen is the length of the additional header segments in bytes.
func (h *Header) AHSLen() int { return int(h[4]) * 4 }

// DataLen is DataSegmentLength, without padding.
func (h *Header) DataLen() int { return int(h[5])<<16 | int(h[6])<<8 | int(h[7]) }

// SetDataLen sets DataSegmentLength.
func (h *Header) SetDataLen(n int) { h[5], h[6], h[7] = byte(n>>16), byte(n>>8), byte(n) }

// LUN is the logical unit number as SAM-5 encodes it in eight bytes.
func (h *Header) LUN() uint64 { return binary.BigEndian.Uint64(h[8:]) }

// SetLUN sets the logical unit number.
func (h *Header) SetLUN(l uint64) { binary.BigEndian.PutUint64(h[8:], l) }

// ITT is the initiator task tag.
func (h *Header) ITT() uint32 { return h.u32(16) }

// SetITT sets the initiator task tag.
func (h *Header) SetITT(t uint32) { h.setU32(16, t) }

// TTT is the target transfer tag (NOP, text, Data-Out, R2T, Data-In).
func (h *Header) TTT() uint32 { return h.u32(20) }

// SetTTT sets the target transfer tag.
func (h *Header) SetTTT(t uint32) { h.setU32(20, t) }

// EDTL is a command's expected data transfer length.
func (h *Header) EDTL() uint32 { return h.u32(20) }

// SetEDTL sets a command's expected data transfer length.
func (h *Header) SetEDTL(n uint32) { h.setU32(20, n) }

// CDB is a command's descriptor block, the 16 bytes of it that are in the header.
func (h *Header) CDB() []byte { return h[32:48] }

// CmdSN is the sequence number of a request.
func (h *Header) CmdSN() uint32 { return h.u32(24) }

// SetCmdSN sets the sequence number of a request.
func (h *Header) SetCmdSN(n uint32) { h.setU32(24, n) }

// ExpStatSN is what the initiator expects next.
func (h *Header) ExpStatSN() uint32 { return h.u32(28) }

// SetExpStatSN sets what the initiator expects next.
func (h *Header) SetExpStatSN(n uint32) { h.setU32(28, n) }

// SetStatSN sets a response's StatSN.
func (h *Header) SetStatSN(n uint32) { h.setU32(24, n) }

// StatSN reads a response's StatSN.
func (h *Header) StatSN() uint32 { return h.u32(24) }

// SetWindow sets ExpCmdSN and MaxCmdSN of a response.
func (h *Header) SetWindow(exp, max uint32) { h.setU32(28, exp); h.setU32(32, max) }

// Window reads ExpCmdSN and MaxCmdSN of a response.
func (h *Header) Window() (exp, max uint32) { return h.u32(28), h.u32(32) }

// DataSN is the number of a Data-In or Data-Out PDU, R2TSN of an R2T, ExpDataSN of a
// SCSI Response.
func (h *Header) DataSN() uint32 { return h.u32(36) }

// SetDataSN sets DataSN, R2TSN or ExpDataSN.
func (h *Header) SetDataSN(n uint32) { h.setU32(36, n) }

// Offset is the buffer offset of Data-In, Data-Out and R2T.
func (h *Header) Offset() uint32 { return h.u32(40) }

// SetOffset sets the buffer offset.
func (h *Header) SetOffset(n uint32) { h.setU32(40, n) }

// SetResidual sets the residual count of a Data-In with status or a SCSI Response.
func (h *Header) SetResidual(n uint32) { h.setU32(44, n) }

// Residual reads the residual count.
func (h *Header) Residual() uint32 { return h.u32(44) }

// SetDesired sets the desired data transfer length of an R2T.
func (h *Header) SetDesired(n uint32) { h.setU32(44, n) }

// Desired is the desired data transfer length of an R2T.
func (h *Header) Desired() uint32 { return h.u32(44) }

// RefTag is the referenced task tag of a task management request.
func (h *Header) RefTag() uint32 { return h.u32(20) }

// RefCmdSN is the command that ABORT TASK means.
func (h *Header) RefCmdSN() uint32 { return h.u32(32) }

// ISID is the initiator's part of the session identifier, in login.
func (h *Header) ISID() (id [6]byte) { copy(id[:], h[8:14]); return id }

// SetISID sets the initiator's part of the session identifier.
func (h *Header) SetISID(id [6]byte) { copy(h[8:14], id[:]) }

// TSIH is the target's part of the session identifier, in login.
func (h *Header) TSIH() uint16 { return binary.BigEndian.Uint16(h[14:]) }

// SetTSIH sets the target's part.
func (h *Header) SetTSIH(t uint16) { binary.BigEndian.PutUint16(h[14:], t) }

// CID is the connection identifier, in login and logout.
func (h *Header) CID() uint16 { return binary.BigEndian.Uint16(h[20:]) }

// LoginStatus is the status class and detail of a login response.
func (h *Header) LoginStatus() (class, detail uint8) { return h[36], h[37] }

// String is one line for a log: what it is and its tags.
func (h *Header) String() string {
	return fmt.Sprintf("%s flags 0x%02x itt 0x%08x ttt 0x%08x data %d", h.Opcode(), h[1], h.ITT(), h.TTT(), h.DataLen())
}

// CheckAHS walks additional header segments (RFC 7143 section 11.2.2) and reports
// whether their lengths add up, and whether one of them holds the rest of
// a CDB longer than 16 bytes or a bidirectional read length.
func CheckAHS(b []byte) (extendedCDB, bidirectional bool, err error) {
	for len(b) > 0 {
		if len(b) < 4 {
			return false, false, fmt.Errorf("AHS: %d bytes left over", len(b))
		}
		n := int(binary.BigEndian.Uint16(b))
		if n == 0 || 3+n > len(b) {
			return false, false, fmt.Errorf("AHSLength %d in %d bytes of AHS", n, len(b))
		}
		switch b[2] & 0x3f {
		case 1:
			extendedCDB = true
		case 2:
			bidirectional = true
		}
		b = b[min(len(b), (3+n+3)&^3):]
	}
	return extendedCDB, bidirectional, nil
}

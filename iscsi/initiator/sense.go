package initiator

import (
	"encoding/binary"
	"fmt"

	"github.com/cleave-san/cleave/lun"
)

// Key is a sense key (SPC-4 section 4.5.6).
type Key uint8

// Sense keys that are told apart here.
const (
	NoSense        Key = 0x0
	RecoveredError Key = 0x1
	NotReady       Key = 0x2
	MediumError    Key = 0x3
	HardwareError  Key = 0x4
	IllegalRequest Key = 0x5
	UnitAttention  Key = 0x6
	DataProtect    Key = 0x7
	AbortedCommand Key = 0xb
	Miscompare     Key = 0xe
)

var keyText = [16]string{"no sense", "recovered error", "not ready", "medium error", "hardware error", "illegal request",
	"unit attention", "data protect", "blank check", "vendor specific", "copy aborted", "aborted command", "reserved",
	"volume overflow", "miscompare", "completed"}

// String is the standard's name of the key.
func (k Key) String() string { return keyText[k&0xf] }

// SenseError is a command that ended with CHECK CONDITION: the target's word on
// why.
type SenseError struct {
	Key       Key
	ASC, ASCQ uint8 // additional sense code and qualifier, SPC-4 annex F

	Deferred bool // it is about an earlier command

	// Info is the INFORMATION field, for media errors the first block that
	// failed; valid if HasInfo.
	Info    uint64
	HasInfo bool
}

// codes that are told apart here, ASC<<8 | ASCQ.
const (
	codeBecomingReady   = 0x0401
	codeTransition      = 0x040a
	codeInvalidOpcode   = 0x2000
	codeOutOfRange      = 0x2100
	codeInvalidField    = 0x2400
	codeNoUnit          = 0x2500
	codeWriteProtected  = 0x2700
	codeSpaceFailed     = 0x2707
	codeNexusLoss       = 0x2907
	codeReset           = 0x2900 // with its qualifiers: power on, reset, nexus loss
	codeCapacityChanged = 0x2a09
)

var codeText = map[uint16]string{
	codeBecomingReady: "becoming ready", 0x0400: "not ready", 0x0402: "start needed", 0x0403: "manual intervention required",
	codeTransition: "path in transition", 0x040b: "path in standby", 0x040c: "path unavailable",
	0x0c00: "write error", 0x1100: "unrecovered read error", codeInvalidOpcode: "command not supported",
	codeOutOfRange: "block out of range", codeInvalidField: "invalid field in CDB", codeNoUnit: "LUN not there",
	0x2600: "invalid field in parameter list", codeWriteProtected: "write protected", 0x2702: "write protected by software",
	codeSpaceFailed: "no space left", 0x2900: "power on or reset", codeNexusLoss: "connection lost",
	codeCapacityChanged: "capacity changed", 0x3a00: "no medium", 0x3f03: "inquiry data changed",
	0x3f05: "identifier changed", 0x3f0e: "LUNs changed", 0x4400: "internal failure", 0x4b00: "data phase error",
	0x1d00: "data differs",
}

func (e *SenseError) code() uint16 { return uint16(e.ASC)<<8 | uint16(e.ASCQ) }

func (e *SenseError) Error() string {
	text := e.Key.String()
	if s := codeText[e.code()]; s != "" {
		text += ": " + s
	}
	if e.Deferred {
		text += ", of an earlier command"
	}
	if e.HasInfo {
		text += fmt.Sprintf(" at block %d", e.Info)
	}
	return fmt.Sprintf("%s (sense %x/%02x/%02x)", text, uint8(e.Key), e.ASC, e.ASCQ)
}

// Is makes it one of lun's or of the package's errors where it says the same.
func (e *SenseError) Is(target error) bool {
	switch {
	case e.Key == DataProtect && e.code() == codeSpaceFailed:
		return target == lun.ErrNoSpace
	case e.Key == DataProtect:
		return target == lun.ErrReadOnly
	case e.Key == IllegalRequest && e.code() == codeOutOfRange:
		return target == lun.ErrOutOfRange
	case e.Key == IllegalRequest && e.code() == codeNoUnit:
		return target == ErrNoLUN
	}
	return false
}

// transient reports whether the same command may work later, or at once.
func (e *SenseError) transient() bool {
	switch e.Key {
	case UnitAttention, AbortedCommand:
		return true
	case NotReady:
		return e.code() == codeBecomingReady || e.code() == codeTransition
	default:
		return false
	}
}

// unsupported reports whether the target says that it doesn't know the command,
// or a field of it.
func (e *SenseError) unsupported() bool {
	return e.Key == IllegalRequest && (e.code() == codeInvalidOpcode || e.code() == codeInvalidField)
}

// identityMoved reports whether a unit attention casts doubt on what the LUN
// number stands for.
func (e *SenseError) identityMoved() bool {
	return e.Key == UnitAttention && (e.ASC == 0x3f || e.ASC == 0x29 || e.ASC == 0x28 || e.ASC == 0x2a)
}

// senseMax is as much of sense data as is looked at, in bytes; SPC-4 allows 252.
const senseMax = 252

// parseSense reads sense data in fixed or descriptor format (SPC-4 section
// 4.5). It reports false for what is neither.
func parseSense(b []byte) (SenseError, bool) {
	var e SenseError
	if len(b) < 1 {
		return e, false
	}
	at := func(i int) byte {
		if i < len(b) {
			return b[i]
		}
		return 0
	}
	e.Deferred = b[0]&0x01 == 1
	switch b[0] & 0x7e {
	case 0x70:
		if len(b) < 3 {
			return e, false
		}
		e.Key, e.ASC, e.ASCQ = Key(b[2]&0xf), at(12), at(13)
		if b[0]&0x80 != 0 && len(b) >= 7 {
			e.Info, e.HasInfo = uint64(binary.BigEndian.Uint32(b[3:])), true
		}
	case 0x72:
		if len(b) < 4 {
			return e, false
		}
		e.Key, e.ASC, e.ASCQ = Key(b[1]&0xf), b[2], b[3]
		for d := b[min(8, len(b)):]; len(d) >= 2; d = d[min(len(d), 2+int(d[1])):] {
			if d[0] == 0 && d[1] == 0x0a && len(d) >= 12 && d[2]&0x80 != 0 {
				e.Info, e.HasInfo = binary.BigEndian.Uint64(d[4:]), true
			}
		}
	default:
		return e, false
	}
	return e, true
}

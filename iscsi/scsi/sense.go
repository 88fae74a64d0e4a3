package scsi

import (
	"encoding/binary"
	"errors"

	"github.com/cleave-san/cleave/lun"
)

// Status is a SAM-5 status code (section 5.3.1).
type Status uint8

// Status codes that a Unit or its transport answers.
const (
	Good                Status = 0x00
	CheckCondition      Status = 0x02
	Busy                Status = 0x08
	ReservationConflict Status = 0x18
	TaskSetFull         Status = 0x28
	TaskAborted         Status = 0x40
)

// Sense keys (SPC-4 section 4.5.6).
const (
	keyNone           = 0x0
	keyNotReady       = 0x2
	keyMedium         = 0x3
	keyHardware       = 0x4
	keyIllegalRequest = 0x5
	keyUnitAttention  = 0x6
	keyDataProtect    = 0x7
	keyCopyAborted    = 0xa
	keyAborted        = 0xb
	keyMiscompare     = 0xe
)

// Code is an additional sense code and its qualifier (SPC-4 annex F), with the
// sense key it comes with: key<<16 | ASC<<8 | ASCQ.
type Code uint32

// The conditions that a Unit reports.
const (
	noSense               Code = 0
	notReady              Code = keyNotReady<<16 | 0x0400
	portInStandby         Code = keyNotReady<<16 | 0x040b
	portUnavailable       Code = keyNotReady<<16 | 0x040c
	writeError            Code = keyMedium<<16 | 0x0c00
	readError             Code = keyMedium<<16 | 0x1100
	listLengthError       Code = keyIllegalRequest<<16 | 0x1a00
	invalidOpcode         Code = keyIllegalRequest<<16 | 0x2000
	lbaOutOfRange         Code = keyIllegalRequest<<16 | 0x2100
	invalidFieldInCDB     Code = keyIllegalRequest<<16 | 0x2400
	unitNotSupported      Code = keyIllegalRequest<<16 | 0x2500
	invalidFieldInList    Code = keyIllegalRequest<<16 | 0x2600
	invalidRelease        Code = keyIllegalRequest<<16 | 0x2604
	tooManyTargets        Code = keyIllegalRequest<<16 | 0x2606
	unsupportedTarget     Code = keyIllegalRequest<<16 | 0x2607
	tooManySegments       Code = keyIllegalRequest<<16 | 0x2608
	unsupportedSegment    Code = keyIllegalRequest<<16 | 0x2609
	inlineTooLong         Code = keyIllegalRequest<<16 | 0x260b
	operationInProgress   Code = keyIllegalRequest<<16 | 0x0016
	savingNotSupported    Code = keyIllegalRequest<<16 | 0x3900
	insufficientRegs      Code = keyIllegalRequest<<16 | 0x5504
	writeProtected        Code = keyDataProtect<<16 | 0x2700
	softwareProtected     Code = keyDataProtect<<16 | 0x2702
	spaceFailed           Code = keyDataProtect<<16 | 0x2707
	miscompare            Code = keyMiscompare<<16 | 0x1d00
	internalFailure       Code = keyHardware<<16 | 0x4400
	copyAborted           Code = keyCopyAborted<<16 | 0x0000
	unreachableTarget     Code = keyCopyAborted<<16 | 0x0804
	thirdPartyFailure     Code = keyCopyAborted<<16 | 0x0d01
	targetNotReachable    Code = keyCopyAborted<<16 | 0x0d02
	inexactSegment        Code = keyCopyAborted<<16 | 0x260a
	dataPhaseError        Code = keyAborted<<16 | 0x4b00
	poweredOn             Code = keyUnitAttention<<16 | 0x2900
	resetOccurred         Code = keyUnitAttention<<16 | 0x2903
	nexusLoss             Code = keyUnitAttention<<16 | 0x2907
	modeChanged           Code = keyUnitAttention<<16 | 0x2a01
	reservationsPreempted Code = keyUnitAttention<<16 | 0x2a03
	reservationsReleased  Code = keyUnitAttention<<16 | 0x2a04
	regsPreempted         Code = keyUnitAttention<<16 | 0x2a05
	accessChanged         Code = keyUnitAttention<<16 | 0x2a06
	capacityChanged       Code = keyUnitAttention<<16 | 0x2a09
	commandsCleared       Code = keyUnitAttention<<16 | 0x2f00
	lunsChanged           Code = keyUnitAttention<<16 | 0x3f0e
)

// Exported conditions: those that a transport raises itself.
const (
	// UnitNotSupported answers a command to a LUN that isn't there, or that
	// was taken away under it.
	UnitNotSupported = unitNotSupported
	// LUNsChanged is the unit attention REPORTED LUNS DATA HAS CHANGED.
	LUNsChanged = lunsChanged
	// DataPhaseError ends a command whose data did not come as negotiated.
	DataPhaseError = dataPhaseError
	// InvalidFieldInCDB ends a command that the transport cannot carry.
	InvalidFieldInCDB = invalidFieldInCDB
)

func (c Code) key() byte  { return byte(c >> 16) }
func (c Code) asc() byte  { return byte(c >> 8) }
func (c Code) ascq() byte { return byte(c) }

// result is how a command ended. The zero value is GOOD.
type result struct {
	status  Status
	code    Code
	info    uint64 // INFORMATION field, if hasInfo
	hasInfo bool
	field   uint16 // FIELD POINTER into the CDB or list, if hasField
	inData  bool   // the pointer is into the parameter list
	hasFld  bool
}

func check(c Code) result { return result{status: CheckCondition, code: c} }

// badCDB points at the byte of the CDB that can't be accepted.
func badCDB(byteAt uint16) result {
	return result{status: CheckCondition, code: invalidFieldInCDB, field: byteAt, hasFld: true}
}

// badList points at the byte of the parameter list that can't be accepted.
func badList(byteAt uint16) result {
	return result{status: CheckCondition, code: invalidFieldInList, field: byteAt, inData: true, hasFld: true}
}

func (r result) ok() bool { return r.status == Good }

// SenseLen is the longest sense data that a Unit returns.
const SenseLen = 32

// put writes sense data, in descriptor format (SPC-4 section 4.5.2) or fixed
// format (4.5.3), and returns its length.
func (r result) put(b *[SenseLen]byte, descriptor bool) int {
	clear(b[:])
	if descriptor {
		b[0], b[1], b[2], b[3] = 0x72, r.code.key(), r.code.asc(), r.code.ascq()
		n := 8
		if r.hasInfo {
			b[n], b[n+1], b[n+2] = 0, 0x0a, 0x80
			binary.BigEndian.PutUint64(b[n+4:], r.info)
			n += 12
		}
		if r.hasFld {
			b[n], b[n+1] = 0x02, 0x06
			r.putField(b[n+4:])
			n += 8
		}
		b[7] = byte(n - 8)
		return n
	}
	b[0], b[2], b[7] = 0x70, r.code.key(), 10
	b[12], b[13] = r.code.asc(), r.code.ascq()
	if r.hasInfo && r.info <= 0xffffffff {
		b[0] |= 0x80
		binary.BigEndian.PutUint32(b[3:], uint32(r.info))
	}
	if r.hasFld {
		r.putField(b[15:])
	}
	return 18
}

// putField writes the sense key specific bytes of ILLEGAL REQUEST (SPC-4
// section 4.5.2.4.2).
func (r result) putField(b []byte) {
	b[0] = 0x80
	if !r.inData {
		b[0] |= 0x40
	}
	binary.BigEndian.PutUint16(b[1:], r.field)
}

// deviceError is the one table from a device's errors to sense data. write
// says which medium error fits what the table doesn't know.
func deviceError(err error, write bool) result {
	switch {
	case err == nil:
		return result{}
	case errors.Is(err, errMiscompare):
		return check(miscompare)
	case errors.Is(err, lun.ErrNoSpace):
		return check(spaceFailed)
	case errors.Is(err, lun.ErrReadOnly):
		return check(writeProtected)
	case errors.Is(err, lun.ErrOutOfRange):
		return check(lbaOutOfRange)
	case errors.Is(err, lun.ErrClosed):
		return check(notReady)
	case errors.Is(err, ErrGone):
		return result{status: TaskAborted}
	case write:
		return check(writeError)
	default:
		return check(readError)
	}
}

var errMiscompare = errors.New("data on the unit differs")

// ErrGone is what a Sink returns when nobody waits for the data any more.
var ErrGone = errors.New("command was aborted")

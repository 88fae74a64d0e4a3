package initiator

import (
	"errors"
	"fmt"

	"github.com/cleave-san/cleave/iscsi/scsi"
)

// Errors, compared with errors.Is and wrapped with what was attempted.
var (
	// ErrLost says that there is no connection, and that none could be made
	// within Options.Recovery.
	ErrLost = errors.New("iSCSI connection lost")
	// ErrIdentity says that the LUN is not the one it was, or not the one that
	// Options.Identity asks for.
	ErrIdentity = errors.New("another LUN stands in its place")
	// ErrCacheLost says that acknowledged writes may be gone.
	ErrCacheLost = errors.New("writes acknowledged before the connection was lost may be gone")
	// ErrUncertain says that a write may be done, or may still be done.
	ErrUncertain = errors.New("outcome of the write is unknown")
	// ErrProtocol says that the target broke the protocol.
	ErrProtocol = errors.New("target breaks the protocol")
	// ErrAuth says that a login failed for its credentials, the target's or ours.
	ErrAuth = errors.New("authentication failed")
	// ErrNoTarget says that the portal has no target of that name for us.
	ErrNoTarget = errors.New("no such target")
	// ErrNoLUN says that the target has no such LUN for us.
	ErrNoLUN = errors.New("no such LUN")
	// ErrReserved says that another initiator has reserved the LUN.
	ErrReserved = errors.New("LUN is reserved by another initiator")
	// ErrBusy says that the LUN was busy for all of Options.Recovery.
	ErrBusy = errors.New("LUN is busy")
)

// protocolError wraps ErrProtocol with what was seen.
func protocolError(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// LoginError is a login that the target refused (RFC 7143 section 11.13.5).
type LoginError struct{ Class, Detail uint8 }

var loginText = map[[2]uint8]string{
	{2, 0}: "initiator error", {2, 1}: "authentication failed", {2, 2}: "not authorised", {2, 3}: "target not found",
	{2, 4}: "target removed", {2, 5}: "unsupported version", {2, 6}: "too many connections", {2, 7}: "missing parameter",
	{2, 8}: "can't be part of the session", {2, 9}: "session type not supported", {2, 10}: "session does not exist",
	{2, 11}: "invalid during login", {3, 0}: "target error", {3, 1}: "service unavailable", {3, 2}: "out of resources",
}

func (e *LoginError) Error() string {
	text := loginText[[2]uint8{e.Class, e.Detail}]
	if text == "" {
		text = "refused"
	}
	return fmt.Sprintf("login: %s (status %02x%02x)", text, e.Class, e.Detail)
}

// Is makes it one of the package's errors where it says the same.
func (e *LoginError) Is(target error) bool {
	switch e.Class<<4 | e.Detail&0xf {
	case 0x21, 0x22:
		return target == ErrAuth
	case 0x23, 0x24:
		return target == ErrNoTarget
	}
	return false
}

// StatusError is a command that ended with a status other than GOOD and without
// sense data.
type StatusError struct{ Status scsi.Status }

var statusText = map[scsi.Status]string{
	scsi.CheckCondition: "CHECK CONDITION without sense data", scsi.Busy: "BUSY",
	scsi.ReservationConflict: "RESERVATION CONFLICT", scsi.TaskSetFull: "TASK SET FULL", scsi.TaskAborted: "TASK ABORTED",
}

func (e *StatusError) Error() string {
	if s := statusText[e.Status]; s != "" {
		return s
	}
	return fmt.Sprintf("SCSI status 0x%02x", uint8(e.Status))
}

// Is makes it one of the package's errors where it says the same.
func (e *StatusError) Is(target error) bool {
	switch e.Status {
	case scsi.Busy, scsi.TaskSetFull:
		return target == ErrBusy
	case scsi.ReservationConflict:
		return target == ErrReserved
	}
	return false
}

package target

import (
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"github.com/cleave-san/cleave/iscsi/scsi"
	"github.com/cleave-san/cleave/lun"
)

// Options of a Server. The zero value is usable; every zero field means its
// default.
type Options struct {
	// Logger gets one line per login, logout and refusal; nil: none. Secrets
	// and data are never in it.
	Logger *slog.Logger

	// RequireCHAP refuses initiators that have no credentials. Without it,
	// one that is in a mask and has none logs in unauthenticated.
	RequireCHAP bool

	// Advertise lists portals that SendTargets names besides those that the
	// server listens on: what a NAT in front of it shows to the world.
	Advertise []netip.AddrPort

	// Reservations keeps persistent reservations over restarts (APTPL); nil:
	// none survives, and APTPL is refused.
	Reservations scsi.Store

	// History keeps over restarts which initiators have seen what under which
	// LUN number; nil: that is known only while the server runs.
	History History

	MaxConnections int           // connections at once, logging in or not; default 1024
	LoginTimeout   time.Duration // from accept to full feature phase; default 15 s

	// MaxLogins bounds the connections that have not finished logging in, and
	// MaxLoginsPerAddress those of one address (of one /64 with IPv6). One
	// more displaces the oldest, of that address or of the one that has
	// most. Default 256 and 64.
	MaxLogins, MaxLoginsPerAddress int

	// FailureDelay is when a login that fails for a wrong secret, an unknown
	// initiator or an unknown target is answered, counted from the arrival of
	// the request: the same for all of them, whatever it took to find out.
	// With MaxLoginsPerAddress it bounds how fast an address can guess.
	// Default 500 ms.
	FailureDelay time.Duration

	// NopInterval is how long a connection may be silent before the server
	// asks whether it lives, and how long it may then take to answer
	// before it is dropped; default 30 s, negative: never.
	NopInterval time.Duration

	// QueueDepth is how many commands one initiator may have waiting or
	// running on one LUN; the next is answered TASK SET FULL; default 128.
	QueueDepth int

	// Workers is how many of those run at once; default 16.
	Workers int

	// Memory bounds the bytes that the data of commands holds over all
	// sessions, in each direction: they divide it among themselves, and one
	// that has nothing else under way always gets through. Commands longer
	// than half their session's share have as much again together. Default 32 MiB.
	Memory int64

	// ReadMemory and WriteMemory bound a session's share from above: the bytes
	// that wait to be sent, and those that writes hold; default 4 MiB and 6 MiB.
	ReadMemory, WriteMemory int64

	// AbortTimeout bounds how long a task management function waits for
	// commands that the device is still working on; then it is answered
	// "function rejected" and the initiator goes on to the next stronger
	// means; default 20 s.
	AbortTimeout time.Duration
}

// LUN is a device as it is to be served.
type LUN struct {
	// Device is owned by the caller, who closes it after RemoveLUN has
	// returned nil.
	Device lun.Device

	// Identity is shown as serial number and NAA designator. Zero: the
	// Device's own where it is lun.Identified, else a new one.
	Identity lun.Identity

	// Writable lets initiators write where their grant does too. It can be
	// changed by SetWritable.
	Writable bool

	// Vendor and Product fill standard INQUIRY data (8 and 16 ASCII
	// characters); default "CLEAVE" and "VIRTUAL-DISK".
	Vendor, Product string
}

// NextLUN in the place of a LUN number asks for the lowest one free.
const NextLUN = -1

// Errors of the administration calls, wrapped with the name they concern.
var (
	ErrTargetExists  = errors.New("target exists already")
	ErrNoTarget      = errors.New("no such target")
	ErrNoLUN         = errors.New("no such LUN")
	ErrNumberTaken   = errors.New("LUN number is in use")
	ErrNumberRetired = errors.New("LUN number is remembered by an initiator that has not logged out")

	// ErrBusy is returned by RemoveLUN and RemoveTarget when the device had
	// not come back from all calls in time. The LUN is gone for initiators;
	// the device is still inside those calls.
	ErrBusy = errors.New("device is still busy with commands that were cut off")

	ErrClosed = errors.New("server is closed")
)

// withDefaults fills in what the caller left zero.
func (o Options) withDefaults() Options {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&o.MaxConnections, 1024)
	def(&o.MaxLogins, 256)
	def(&o.MaxLoginsPerAddress, min(64, o.MaxLogins))
	def(&o.QueueDepth, 128)
	def(&o.Workers, 16)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.LoginTimeout <= 0 {
		o.LoginTimeout = 15 * time.Second
	}
	if o.FailureDelay <= 0 {
		o.FailureDelay = 500 * time.Millisecond
	}
	if o.NopInterval == 0 {
		o.NopInterval = 30 * time.Second
	}
	if o.Memory <= 0 {
		o.Memory = 32 << 20
	}
	if o.WriteMemory <= 0 {
		o.WriteMemory = 6 << 20
	}
	if o.ReadMemory <= 0 {
		o.ReadMemory = 4 << 20
	}
	if o.AbortTimeout <= 0 {
		o.AbortTimeout = 20 * time.Second
	}
	return o
}
